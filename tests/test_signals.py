"""The signal store: what comes back is what was written, and nothing else is ever read."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_store, stored

from primekd.config import LossConfig, SignalsConfig
from primekd.foundation import hash_file, read_json
from primekd.foundation.errors import UserError
from primekd.signals import SignalReader, SignalWriter, concatenate, make_codec, shard_name
from primekd.signals.codecs import FullCodec, HiddenCodec, TextCodec, TopKCodec, require_served

VOCABULARY, WIDTH = 50, 6
RESPONSES = {"q10": [1, 2, 3], "q2": [4], "q1": [5, 6]}


def states(width: int, seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """One random row a response token of every item."""
    source = torch.Generator().manual_seed(seed)
    return {item: (torch.randn(len(ids), width, generator=source) * 3).to(dtype) for item, ids in RESPONSES.items()}


def full(states: torch.Tensor) -> dict[str, torch.Tensor]:
    return FullCodec().encode(states, stored("a", []))


def two_shards(rows: dict[str, torch.Tensor]):
    pairs = [(stored(item, RESPONSES[item]), rows[item]) for item in RESPONSES]
    return [pairs[:2], pairs[2:]]


@pytest.fixture
def store(output):
    """A store of full logits in two shards: its folder and the rows that went in."""
    rows = states(VOCABULARY, seed=0)
    make_store(output / "runs" / "signals" / "base-KD", FullCodec(), two_shards(rows), tokenizer_sha256="abc")
    return output / "runs" / "signals" / "base-KD", rows


# Round trips.


def test_full_logits_come_back_bit_for_bit(store):
    folder, rows = store
    reader = SignalReader(folder)
    for item, ids in RESPONSES.items():
        assert torch.equal(reader.rows(item, ids).to_logits(), rows[item])
    assert "none" in FullCodec().describe()["error"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hidden_states_come_back_bit_for_bit_in_their_own_precision(dtype, output):
    rows, head = states(WIDTH, seed=1, dtype=dtype), torch.randn(VOCABULARY, WIDTH).to(dtype)
    reader = make_store(output / "signals" / "base-KD", HiddenCodec(), two_shards(rows), head=head)
    for item, ids in RESPONSES.items():
        found = reader.rows(item, ids)
        assert found.hidden.dtype == dtype and torch.equal(found.hidden, rows[item])
        expected = rows[item].double() @ head.double().T
        torch.testing.assert_close(found.to_logits().double(), expected, rtol=1e-5, atol=1e-5)


def test_the_head_is_stored_once_for_all_stores_of_a_teacher(output):
    rows, head = states(WIDTH, seed=1), torch.randn(VOCABULARY, WIDTH)
    for name in ("base-KD", "ai-KD"):
        make_store(output / "signals" / name, HiddenCodec(), two_shards(rows), head=head)
    assert len(list((output / "signals").glob("head-*.safetensors"))) == 1
    make_store(output / "signals" / "teacher-KD", HiddenCodec(), two_shards(rows), head=head + 1)
    assert len(list((output / "signals").glob("head-*.safetensors"))) == 2


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.942267])
@pytest.mark.parametrize("k", [1, 8, VOCABULARY, VOCABULARY + 9])
def test_topk_rows_come_back_with_exact_log_probabilities_and_tail(k, temperature, output):
    rows = states(VOCABULARY, seed=2)
    reader = make_store(output / "signals" / "base-KD", TopKCodec(k, temperature), two_shards(rows))
    for item, ids in RESPONSES.items():
        found = reader.rows(item, ids)
        scaled = rows[item].double().numpy() / temperature
        normaliser = np.log(np.exp(scaled).sum(-1))
        order = np.argsort(-scaled, -1)[:, :k]
        assert found.ids.tolist() == order.tolist()
        kept = np.take_along_axis(scaled, order, -1) - normaliser[:, None]
        np.testing.assert_allclose(found.log_probs, kept, atol=2e-6)
        np.testing.assert_allclose(found.tail_mass, 1 - np.exp(kept).sum(-1), atol=2e-6)
        np.testing.assert_allclose(found.log_normaliser, normaliser, atol=2e-6)
        assert found.temperature == temperature


def test_a_tail_too_small_for_one_minus_the_sum_is_still_kept(output):
    """In float32 the kept mass rounds to 1, yet the tail is there."""
    logits = torch.full((1, VOCABULARY), -25.0)
    logits[0, :2] = torch.tensor([1.0, 2.0])
    reader = make_store(output / "s" / "base-KD", TopKCodec(2, 1.0), [[(stored("a", [3]), logits)]])
    weights = np.exp(logits.double().numpy()[0])
    assert float(reader.rows("a", [3]).tail_mass) == pytest.approx(weights[2:].sum() / weights.sum(), rel=1e-4)


def test_a_store_keeps_prompt_response_and_truncation(output):
    from dataclasses import replace

    item = replace(stored("a", [9, 2], prompt_ids=[5, 6, 7]), truncated=True)
    reader = make_store(output / "s" / "base-KD", FullCodec(), [[(item, torch.zeros(2, VOCABULARY))]])
    assert reader.item("a") == item


def test_items_keep_the_order_of_capture_and_their_own_rows(output):
    """Numeric, not lexicographic: q10 stands after q9, and every row is its item's own."""
    names = [f"q{number}" for number in range(12)]
    pairs = [(stored(name, [number]), torch.full((1, VOCABULARY), float(number))) for number, name in enumerate(names)]
    shards = [pairs[start : start + 1] for start in range(12)]  # shard 10 comes after shard 9 too
    reader = make_store(output / "s" / "base-KD", FullCodec(), shards)
    assert reader.item_ids == names
    for number in (10, 2, 0, 11):
        assert reader.rows(f"q{number}", [number]).to_logits()[0, 0] == number


def test_rows_of_several_items_are_joined_in_the_order_asked_for(store):
    folder, rows = store
    reader = SignalReader(folder)
    joined = concatenate([reader.rows(item, RESPONSES[item]) for item in ("q1", "q10")])
    assert torch.equal(joined.to_logits(), torch.cat([rows["q1"], rows["q10"]]))


def test_the_same_rows_give_the_same_bytes(output):
    rows = states(VOCABULARY, seed=3)
    for number in range(5):
        make_store(output / f"{number}" / "base-KD", FullCodec(), two_shards(rows))
    assert len({(output / f"{number}" / "base-KD" / shard_name(0)).read_bytes() for number in range(5)}) == 1


def test_a_store_holds_no_pickle(store):
    folder, _ = store
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


# Damage.


def altered(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit altered": altered,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_refused_by_name(damage, store):
    folder, _ = store
    damage(folder / shard_name(1))
    with pytest.raises(UserError, match=r"base-KD/shard-00001\.safetensors.*again"):
        SignalReader(folder)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_counts_as_missing_for_the_writer(damage, store):
    folder, rows = store
    before = (folder / shard_name(1)).read_bytes()
    damage(folder / shard_name(1))
    writer = SignalWriter(folder, read_json(folder / "manifest.json")["spec"], 2)
    assert writer.has_shard(0) and not writer.has_shard(1)
    writer.write_shard(1, [stored("q1", RESPONSES["q1"])], [full(rows["q1"])])
    assert (folder / shard_name(1)).read_bytes() == before
    SignalReader(folder)


@pytest.mark.parametrize("damage", [altered, DAMAGE["missing"]])
def test_a_damaged_head_is_refused_by_name(damage, output):
    make_store(
        output / "s" / "base-KD", HiddenCodec(), two_shards(states(WIDTH, 1)), head=torch.randn(VOCABULARY, WIDTH)
    )
    head = next((output / "s").glob("head-*.safetensors"))
    damage(head)
    reader = SignalReader(output / "s" / "base-KD")
    with pytest.raises(UserError, match=head.name):
        reader.rows("q2", RESPONSES["q2"])


def edit(folder, change):
    manifest = read_json(folder / "manifest.json")
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


EDITS = {
    "a value of the spec": lambda m: m["spec"].update(tokenizer_sha256="xyz"),
    "the codec": lambda m: m["spec"]["codec"].update(name="hidden"),
    "the format": lambda m: m.update(format=99),
    "a shard's hash": lambda m: m["shards"][shard_name(0)].update(sha256="0" * 64),
    "not complete": lambda m: m.update(complete=False),
    "complete left out": lambda m: m.pop("complete"),
    "shards left out": lambda m: m.pop("shards"),
    "spec left out": lambda m: m.pop("spec"),
    "shards swapped": lambda m: m["shards"].update(
        {shard_name(0): m["shards"][shard_name(1)], shard_name(1): m["shards"][shard_name(0)]}
    ),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_an_edited_manifest_is_refused(change, store):
    folder, _ = store
    edit(folder, change)
    with pytest.raises(UserError, match="base-KD"):
        SignalReader(folder)


def test_items_of_a_shard_that_was_struck_from_the_manifest_are_not_silently_left_out(store):
    folder, _ = store
    edit(folder, lambda m: m["shards"].pop(shard_name(1)))
    with pytest.raises(UserError, match="q1"):
        SignalReader(folder).rows("q1", RESPONSES["q1"])


def test_a_manifest_that_is_no_json_is_refused_by_name(store):
    folder, _ = store
    (folder / "manifest.json").write_text('{"kind": "sig')
    with pytest.raises(UserError, match=r"base-KD/manifest\.json"):
        SignalReader(folder)


def test_an_absent_store_names_the_command_that_makes_it(output):
    with pytest.raises(UserError, match=r"runs/signals/ai-KD has no signals.*primekd capture"):
        SignalReader(output / "runs" / "signals" / "ai-KD")


def test_a_store_that_was_begun_and_not_finished_is_refused(output):
    folder = output / "s" / "base-KD"
    writer = SignalWriter(folder, {"codec": FullCodec().describe()}, 1)
    writer.write_shard(0, [stored("a", [1])], [full(torch.zeros(1, VOCABULARY))])
    with pytest.raises(UserError, match="not complete"):
        SignalReader(folder)


@pytest.mark.parametrize("key, value", [("tokenizer_sha256", "other"), ("codec", HiddenCodec().describe())])
def test_a_store_of_another_tokenizer_or_codec_is_refused(key, value, store):
    folder, _ = store
    SignalReader(folder, tokenizer_sha256="abc", codec=FullCodec().describe())  # the right ones
    with pytest.raises(UserError, match=f"base-KD was captured with another {key}"):
        SignalReader(folder, **{key: value})


def test_rows_of_another_response_are_refused(store):
    folder, _ = store
    reader = SignalReader(folder)
    for other in ([1, 2, 4], [1, 2], [1, 2, 3, 3], []):
        with pytest.raises(UserError, match="q10.*another response"):
            reader.rows("q10", other)


def test_an_item_that_was_not_captured_is_refused(store):
    folder, _ = store
    with pytest.raises(UserError, match="no item 'q3'"):
        SignalReader(folder).rows("q3", [1])


def test_an_item_that_stands_in_two_shards_is_refused(output):
    pair = (stored("a", [1]), torch.zeros(1, VOCABULARY))
    with pytest.raises(UserError, match="'a'"):
        make_store(output / "s" / "base-KD", FullCodec(), [[pair], [pair]])


def test_rows_whose_tokens_were_exchanged_are_refused_even_if_the_manifest_vouches_for_the_shard(store):
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder, _ = store
    path = folder / shard_name(0)
    with safe_open(path, framework="pt") as handle:
        tensors, header = {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata()  # noqa: SIM118
    tensors["response_ids"] = tensors["response_ids"].flip(0)
    save_file(tensors, path, metadata=header)
    edit(folder, lambda m: m["shards"][shard_name(0)].update(sha256=hash_file(path)))
    with pytest.raises(UserError, match=r"shard-00000.*hash"):
        SignalReader(folder)


def test_the_writer_refuses_a_store_of_another_configuration_and_leaves_it_alone(store):
    folder, _ = store
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="base-KD"):
        SignalWriter(folder, {"codec": FullCodec().describe(), "tokenizer_sha256": "other"}, 2)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_writer_refuses_columns_without_one_row_a_response_token(output):
    writer = SignalWriter(output / "s", {"codec": FullCodec().describe()}, 1)
    with pytest.raises(ValueError, match="not one a response token"):
        writer.write_shard(0, [stored("a", [1, 2])], [full(torch.zeros(3, VOCABULARY))])


def test_a_store_of_responses_alone_has_no_columns(output):
    pairs = [(stored("a", [1, 2]), None), (stored("b", []), None)]  # a server may answer with nothing at all
    reader = make_store(output / "s" / "base-KD", TextCodec(), [pairs])
    assert reader.item("a").response_ids == [1, 2] and reader.item("b").response_ids == []
    assert reader.rows("a", [1, 2]) is None and reader.rows("b", []) is None


def test_a_shard_that_is_replaced_under_an_open_reader_is_not_read(store):
    folder, rows = store
    reader = SignalReader(folder)
    writer = SignalWriter(folder, reader.spec, 2)
    writer.write_shard(1, [stored("q1", [6, 5])], [full(rows["q1"])])
    with pytest.raises(UserError, match=r"shard-00001.*'q1' do not match their hash"):
        reader.rows("q1", [6, 5])


# How a store is written: by several workers, and by this program before there were several.


def write(writer: SignalWriter, rows: dict[str, torch.Tensor], *indices: int) -> None:
    for index in indices:
        pairs = two_shards(rows)[index]
        writer.write_shard(index, [item for item, _ in pairs], [full(states) for _, states in pairs])


def test_the_manifest_does_not_depend_on_who_wrote_which_shard_and_in_what_order(store, output):
    folder, rows = store
    other = output / "other" / "base-KD"
    spec = read_json(folder / "manifest.json")["spec"]
    workers = [SignalWriter(other, spec, 2) for _ in range(2)]
    for worker, name in zip(workers, "ab", strict=True):
        worker.facts = {"engine": {"engine": name}, "environment": {"machine": name}}
    write(workers[1], rows, 1)
    assert workers[0].missing() == workers[1].missing() == [0]
    assert not workers[1].complete()
    write(workers[0], rows, 0)
    assert all(worker.missing() == [] and worker.complete() for worker in workers)
    manifest, expected = read_json(other / "manifest.json"), read_json(folder / "manifest.json")
    assert manifest.pop("engine") == {"engine": "a"} and manifest.pop("environment") == {"machine": "a"}  # of shard 0
    made = [(group["engine"], group["parts"]) for group in manifest.pop("mixed")]
    assert made == [({"engine": "a"}, [shard_name(0)]), ({"engine": "b"}, [shard_name(1)])]
    assert manifest == expected and list(manifest["shards"]) == [shard_name(0), shard_name(1)]
    assert manifest["items"] == 3 and manifest["tokens"] == 6


def test_of_two_workers_who_wrote_one_shard_with_different_bytes_neither_is_believed(store):
    """A's file, B's file, B's vouching, A's vouching: it vouches for bytes that are not there."""
    folder, rows = store
    writer = SignalWriter(folder, read_json(folder / "manifest.json")["spec"], 2)
    vouch = (folder / "shard-00001.json").read_bytes()
    write(writer, {**rows, "q1": rows["q1"] + 1}, 1)
    (folder / "shard-00001.json").write_bytes(vouch)
    assert writer.missing() == []  # it has the right size
    assert not writer.complete() and writer.missing() == [1]
    write(writer, rows, 1)
    assert writer.complete()
    SignalReader(folder)


def test_a_worker_does_not_complete_a_store_whose_damage_another_has_found(store):
    folder, rows = store
    spec = read_json(folder / "manifest.json")["spec"]
    one, other = SignalWriter(folder, spec, 2), SignalWriter(folder, spec, 2)
    assert one.missing() == other.missing() == []
    altered(folder / shard_name(1))
    assert not other.complete()
    before = (folder / "manifest.json").read_bytes()
    assert not one.complete() and one.missing() == [1]
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "vouch", ["", "{}", "[1]", '{"spec_sha256": "0", "sha256": "0"}'], ids=["empty", "nothing", "no mapping", "other"]
)
def test_a_shard_whose_vouching_file_was_altered_counts_as_missing(vouch, store):
    folder, _ = store
    (folder / "shard-00001.json").write_text(vouch)
    writer = SignalWriter(folder, read_json(folder / "manifest.json")["spec"], 2)
    assert writer.missing() == [1] and not writer.has_shard(1) and not writer.complete()


def test_a_shard_copied_without_its_manifest_is_not_taken_over(store, output):
    folder, _ = store
    other = output / "copy"
    other.mkdir()
    shutil.copy(folder / shard_name(0), other)
    assert not SignalWriter(other, read_json(folder / "manifest.json")["spec"], 2).has_shard(0)


# What a codec can serve.


def test_topk_refuses_another_temperature_with_the_reason_and_the_fix():
    with pytest.raises(UserError, match=r"captured at temperature 2 .*5\.942267.*signals\.topk_temperature"):
        require_served(TopKCodec(64, 2.0), LossConfig(temperature=5.942267))


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
def test_topk_refuses_losses_that_need_every_token_with_the_reason(divergence):
    with pytest.raises(UserError, match=f"{divergence} needs the teacher's probability of every token"):
        require_served(TopKCodec(64, 1.0), LossConfig(divergence=divergence))


def test_topk_serves_the_forward_kl_at_its_own_temperature_and_dense_codecs_serve_all():
    require_served(TopKCodec(64, 2.0), LossConfig(temperature=2.0))
    for codec in (FullCodec(), HiddenCodec()):
        for divergence in ("forward_kl", "reverse_kl", "jsd"):
            require_served(codec, LossConfig(divergence=divergence, temperature=3.0))


def test_the_default_codec_is_hidden_where_the_engine_offers_it_else_topk():
    config = SignalsConfig(codec="auto", top_k=7)
    assert make_codec(config, frozenset({"hidden", "logits"})) == HiddenCodec()
    assert make_codec(config, frozenset({"logits"})) == TopKCodec(7, 1.0)


def test_a_codec_that_the_engine_cannot_feed_is_refused():
    with pytest.raises(UserError, match="'hidden' needs hidden"):
        make_codec(SignalsConfig(codec="hidden"), frozenset({"logits"}))


def test_a_damaged_head_is_written_anew_and_never_vouched_for(tmp_path):
    from primekd.signals.heads import save_head

    head = torch.randn(5, 3)
    first = save_head(tmp_path / "store", head)
    path = tmp_path / first["file"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert save_head(tmp_path / "store", head) == first
    path.write_bytes(data[:-7])
    assert save_head(tmp_path / "store", head) == first
