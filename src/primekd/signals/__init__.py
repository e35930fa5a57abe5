"""What a teacher said, on disk: codecs and the store that keeps their rows."""

from primekd.signals.codecs import Codec, make_codec
from primekd.signals.rows import DenseRows, HiddenRows, SignalRows, TopKRows, concatenate
from primekd.signals.store import SignalReader, SignalWriter, StoredItem

__all__ = [
    "Codec",
    "DenseRows",
    "HiddenRows",
    "SignalReader",
    "SignalRows",
    "SignalWriter",
    "StoredItem",
    "TopKRows",
    "concatenate",
    "make_codec",
]
