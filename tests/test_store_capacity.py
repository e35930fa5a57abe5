"""A million rows through the store: memory does not grow with them."""

import json
import os
import subprocess
import sys

STREAM = '''
import json, resource, sys
from pathlib import Path
import torch
from primekd.signals import SignalReader, SignalWriter, StoredItem
from primekd.signals.codecs import TopKCodec

torch.set_num_threads(1)
PROMPT, RESPONSE, PER_SHARD = 50, 100, 64
codec = TopKCodec(4, 1.0)
ids = torch.arange(10_000, 10_000 + RESPONSE)
logits = torch.linspace(0, 3, RESPONSE * 12).reshape(RESPONSE, 12).sin()


def item(number):
    return StoredItem(f"q{number}", (ids[:PROMPT] + number).tolist(), (ids + number % 997).tolist(), False)


def stream(folder, rows):
    """Writes so many rows, reads all of them, and returns the peak of resident memory so far, in MiB."""
    items = rows // RESPONSE
    starts = range(0, items, PER_SHARD)
    writer = SignalWriter(folder, {"codec": codec.describe()}, len(starts))
    for index, start in enumerate(starts):
        numbers = range(start, min(start + PER_SHARD, items))
        writer.write_shard(index, [item(n) for n in numbers], [codec.encode(logits + n % 7, item(n)) for n in numbers])
    assert writer.complete()
    reader, read = SignalReader(folder), 0
    assert reader.manifest["tokens"] == rows
    for number, item_id in enumerate(reader.item_ids):
        found = reader.rows(item_id, reader.item(item_id).response_ids)
        assert item_id == f"q{number}" and found.ids.shape == (RESPONSE, 4)
        read += len(found.ids)
    assert read == rows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


folder = Path(sys.argv[1])
print(json.dumps([stream(folder / str(rows), rows) for rows in (250_000, 1_000_000)]))
'''

BOUND = 16  # MiB for 7,500 more items, measured: 6; a reader that keeps their 1.1 million token ids in lists: 50


def test_memory_stays_flat_while_a_million_rows_go_through_the_store(tmp_path):
    """In a process of its own: 250,000 rows are written and read, then 1,000,000 in another store."""
    environment = os.environ | {"PRIMEKD_OUTPUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STREAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    quarter, whole = json.loads(done.stdout)
    assert whole - quarter < BOUND, f"{quarter:.1f} MiB after 250,000 rows, {whole:.1f} MiB after 1,000,000"
