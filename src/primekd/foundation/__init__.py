"""The ground that all else stands on: errors, hashes, atomic writes, manifests, tables, progress, energy, this machine.
Knows nothing of models, teachers or questions, and imports nothing from beyond itself."""

from primekd.foundation.energy import Meter
from primekd.foundation.errors import UserError
from primekd.foundation.progress import Progress
from primekd.foundation.provenance import MANIFEST, hash_json, now, read_manifest, relative_name, write_manifest
from primekd.foundation.tables import Count, Estimated, Name, read_records, table_row, table_text, write_table
