"""What a teacher says, from disk or asked live, as rows that predict response tokens: codecs, the store that keeps
their rows, and the live source. writer.py says which files a store has, claims.py how several workers share it."""

from primekd.signals.certainty import TOP, Certainty, Compared, certainty_of, moved_probability, read_certainty
from primekd.signals.codecs import Codec, make_codec, require_served
from primekd.signals.live import LiveSource, SignalSource, dense_codec
from primekd.signals.manifest import read_store, shards_hash
from primekd.signals.reader import SignalReader
from primekd.signals.rows import Asked, DenseRows, HiddenRows, SampledRows, SignalRows, TopKRows, concatenate
from primekd.signals.shards import StoredItem, shard_name
from primekd.signals.writer import SignalWriter
