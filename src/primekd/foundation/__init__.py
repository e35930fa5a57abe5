"""The ground that all else stands on: errors, hashes, atomic writes, manifests, tables, progress, energy, this machine.
Knows nothing of models, teachers or questions, and imports nothing from beyond itself."""

# ruff: noqa: I001 - a name a line would make most of a page
from primekd.foundation.energy import AMOUNTS, INTERVAL, Meter, summed
from primekd.foundation.errors import UserError, findings_text
from primekd.foundation.manifests import MANIFEST, altered_outputs, checked, is_current, read_manifest
from primekd.foundation.outside import clean, hide, holds_secret
from primekd.foundation.progress import Progress, StageState, clock, open_bar, progress_folder, progress_path
from primekd.foundation.progress import quiet_libraries, read_state
from primekd.foundation.provenance import environment, git_state, hardware, package_versions, requirement_pins
from primekd.foundation.provenance import write_manifest
from primekd.foundation.stage_code import ask_anew, forget_wishes, is_older, maker_of, mixed
from primekd.foundation.storage import canonical_json, disk_errors, hash_file, hash_json, hash_text, now, output_root
from primekd.foundation.storage import parse_yaml, project_root, read_json, read_mapping, relative_name, set_aside
from primekd.foundation.storage import sync_folder, write_atomically, write_json, write_text
from primekd.foundation.tables import Cells, Count, Estimated, Flag, MaybeEstimated, Name, as_count, as_flag, nested
from primekd.foundation.tables import read_cells, read_records, read_table, table_row, table_text, write_csv
from primekd.foundation.tables import write_records, write_table
