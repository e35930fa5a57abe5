"""The ground that all else stands on: errors, hashes, atomic writes, manifests, tables, progress, energy, this machine.
Knows nothing of models, teachers or questions, and imports nothing from beyond itself."""

# ruff: noqa: I001 - a name a line would make most of a page
from primekd.foundation.energy import Meter
from primekd.foundation.errors import UserError, findings_text
from primekd.foundation.outside import clean, hide, holds_secret
from primekd.foundation.progress import Progress, StageState, clock, open_bar, progress_folder, progress_path
from primekd.foundation.progress import quiet_libraries, read_state
from primekd.foundation.provenance import MANIFEST, hash_json, now, read_manifest, relative_name, write_manifest
from primekd.foundation.provenance import altered_outputs, environment, hardware, hash_file, hash_text, output_root
from primekd.foundation.provenance import package_versions, project_root, read_json, requirement_pins, write_json
from primekd.foundation.provenance import disk_errors, set_aside, sync_folder, write_atomically, write_text
from primekd.foundation.stage_code import ask_anew, forget_wishes, is_older, maker_of, mixed
from primekd.foundation.tables import Cells, Count, Estimated, Flag, Name, read_cells, read_records, read_table
from primekd.foundation.tables import table_row, table_text, write_table
