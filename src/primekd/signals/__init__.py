"""What a teacher said, on disk: codecs and the store that keeps their rows.

Nothing is read whose hash does not match. writer.py says which files a store has, claims.py how several workers share
it.
"""

from primekd.signals.codecs import Codec, make_codec
from primekd.signals.reader import SignalReader
from primekd.signals.rows import DenseRows, HiddenRows, SampledRows, SignalRows, TopKRows, concatenate
from primekd.signals.shards import StoredItem, shard_name
from primekd.signals.writer import SignalWriter

__all__ = [
    "Codec",
    "DenseRows",
    "HiddenRows",
    "SampledRows",
    "SignalReader",
    "SignalRows",
    "SignalWriter",
    "StoredItem",
    "TopKRows",
    "concatenate",
    "make_codec",
    "shard_name",
]
