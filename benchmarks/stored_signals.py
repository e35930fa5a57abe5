"""Small real stores: the teacher's signals for gold solutions, each codec's in a store of its own."""

from pathlib import Path

from torch import Tensor

from primekd.config import Profile, load_profile
from primekd.models import load_tokenizer
from primekd.models.chat import StudentSequence
from primekd.signals import Codec, SignalReader, SignalWriter, StoredItem
from primekd.signals.codecs import FullCodec, HiddenCodec, TopKCodec
from primekd.signals.heads import save_head
from primekd.signals.sampled import SampledCodec
from primekd.tasks.load import load_items
from primekd.teachers import open_engine
from primekd.training.examples import Example, gold_examples

TOP_K = POINTS = 64


def codec_at(name: str, temperature: float) -> Codec:
    """A codec by its name, at the size that the benchmarks compare."""
    return {
        "full": FullCodec(),
        "hidden": HiddenCodec(),
        "topk": TopKCodec(TOP_K, temperature),
        "sampled": SampledCodec(POINTS, temperature),
    }[name]


def examples_of(profile: Profile, count: int) -> list[Example]:
    """The profile's first training items with their gold solutions."""
    return gold_examples(load_tokenizer(profile.student.model), load_items(profile, "train", count))


def score(profile: Profile, examples: list[Example]) -> tuple[list[StoredItem], list[Tensor], Tensor]:
    """What the profile's teacher says of the examples: items, hidden states (T, D) of each, and its head (V, D)."""
    items = [_stored(example.item_id, example.sequence) for example in examples]
    engine = open_engine(profile)
    try:
        states = engine.score([i.prompt_ids for i in items], [i.response_ids for i in items], "hidden")
        return items, [s.cpu() for s in states], engine.head().detach().cpu().clone()
    finally:
        engine.close()


def write_stores(folder: Path, profile_name: str, names: tuple[str, ...], count: int) -> None:
    """folder/<codec>/ for each name, all with the same items, at the temperature of the profile's loss."""
    profile = load_profile(profile_name)
    items, states, head = score(profile, examples_of(profile, count))
    for name in names:
        codec = codec_at(name, profile.loss.temperature)
        write_store(folder / name, codec, items, as_needed(codec, states, head), head)


def as_needed(codec: Codec, states: list[Tensor], head: Tensor) -> list[Tensor]:
    """Hidden states, or their logits where the codec takes those."""
    return states if codec.needs == "hidden" else [s.float() @ head.float().T for s in states]


def write_store(folder: Path, codec: Codec, items: list[StoredItem], seen: list[Tensor], head: Tensor) -> None:
    """One complete store of one shard. `seen`: what the codec takes, a tensor an item."""
    writer = SignalWriter(folder, {"codec": codec.describe()}, 1)
    if codec.needs == "hidden":
        writer.facts["head"] = save_head(folder, head)
    columns = [codec.encode(s, item) for s, item in zip(seen, items, strict=True)]
    writer.write_shard(0, items, columns)
    writer.complete()


def read_store(folder: Path) -> int:
    """Reads every row of a store; returns their number."""
    reader = SignalReader(folder)
    return sum(len(reader.rows(i, reader.item(i).response_ids)) for i in reader.item_ids)


def _stored(item_id: str, sequence: StudentSequence) -> StoredItem:
    start = sequence.response_mask.index(True)
    return StoredItem(item_id, sequence.input_ids[:start], sequence.input_ids[start:], truncated=False)
