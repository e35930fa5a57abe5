"""The codec `sampled`: exact expectations, the bits that it writes, and what it refuses."""

import math
import shutil

import numpy as np
import pytest
import torch
from conftest import make_store, small_profile, stored

from benchmarks.plain_losses import divergence, forward_kl, forward_kl_sampled
from primekd.capture.jobs import open_signals, training_job
from primekd.capture.run import capture
from primekd.config import LossConfig, SignalsConfig
from primekd.foundation import hash_file, read_json
from primekd.foundation.errors import UserError
from primekd.losses import distillation_loss
from primekd.signals import SampledRows, SignalReader, bits, concatenate, make_codec, shard_name
from primekd.signals.bits import BitReader, floor_log2
from primekd.signals.codecs import TopKCodec, codec_of, require_served
from primekd.signals.sampled import Draw, SampledCodec, distribution, draw_points, pack, row_offsets, unpack
from primekd.signals.shards import PACKED

ROWS, VOCABULARY, POINTS = 6, 50, 12
RESPONSE = [7, 3, 49, 0, 3, 21]
ITEM = stored("a", RESPONSE)


def logits(seed: int, rows: int = ROWS, vocabulary: int = VOCABULARY, spread: float = 3) -> torch.Tensor:
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def counts_of(rows: SampledRows, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Dense weights, (N, V)."""
    return torch.zeros(len(rows), vocabulary).scatter_add(1, rows.ids, rows.weights)


# What is drawn.


def every_draw(values: torch.Tensor, temperature: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """All samples that a row can give: their weights (D, V), and the probability of each (D,), by its offsets.

    A sample changes only where a point crosses the edge between two tokens; between two crossings one offset stands
    for all.
    """
    cumulative, _ = distribution(values[None], temperature)
    crossings = np.unique(np.concatenate([[0, 1], (cumulative[0] / cumulative[0, -1] * points) % 1]))
    middles = (crossings[:-1] + crossings[1:]) / 2
    weights = np.zeros((len(middles), len(values)))
    for number, offset in enumerate(middles):
        draw = draw_points(cumulative, np.array([offset]), points)
        weights[number, draw.ids] = draw.counts / points
    return weights, np.diff(crossings)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.942267])
@pytest.mark.parametrize("points", [1, 7, 64, 1024])
def test_over_all_offsets_weights_average_to_the_probability_and_tokens_are_kept_as_often_as_is_said(
    points, temperature
):
    for values in logits(1).double():
        p = (values / temperature).softmax(-1).numpy()
        weights, chance = every_draw(values, temperature, points)
        np.testing.assert_allclose(chance @ weights, p, atol=2e-7)
        np.testing.assert_allclose(chance @ (weights > 0), np.minimum(1, points * p), atol=2e-7 * points)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-12)
        assert np.abs(weights - p).max() <= (1 + 1e-5) / points  # above tau: off by less than tau
        variance = chance @ (weights - p) ** 2
        assert variance.max() <= (1 + 1e-5) / (4 * points**2)
        part = points * p % 1
        np.testing.assert_allclose(variance, part * (1 - part) / points**2, atol=1e-6)  # that of one rounding, no more


def test_the_expected_gradient_and_loss_are_those_of_the_full_forward_kl():
    temperature, teacher, student = 2.0, logits(2), logits(3)
    whole = student.clone().requires_grad_()
    forward_kl(teacher, whole, temperature).sum().backward()
    for row in range(ROWS):
        weights, chance = every_draw(teacher[row].double(), temperature, POINTS)
        entropy = torch.special.entr((teacher[row] / temperature).softmax(-1)).sum()
        all_ids = torch.arange(VOCABULARY).expand(len(weights), -1)
        rows = SampledRows(all_ids, torch.from_numpy(weights).float(), entropy.expand(len(weights)), temperature)
        ours = student[row].expand(len(weights), -1).clone().requires_grad_()
        values = forward_kl_sampled(rows, ours)
        (values @ torch.from_numpy(chance).float()).backward()
        torch.testing.assert_close(ours.grad.sum(0), whole.grad[row], atol=2e-6, rtol=1e-4)
        expected = forward_kl(teacher[row : row + 1], student[row : row + 1], temperature)[0]
        torch.testing.assert_close(values.detach() @ torch.from_numpy(chance).float(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_gradient_of_one_sample_is_q_minus_its_weights_and_sums_to_zero(temperature):
    codec = SampledCodec(POINTS, temperature)
    rows = codec.decode(codec.encode(logits(4), ITEM), None, ITEM)
    student = logits(5).requires_grad_()
    loss = LossConfig(temperature=temperature, alpha=0.0)
    distillation_loss(student, torch.tensor(RESPONSE), rows, loss, tokens=1)[0].backward()
    expected = temperature * ((student / temperature).softmax(-1) - counts_of(rows))
    torch.testing.assert_close(student.grad, expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(student.grad.sum(-1), torch.zeros(ROWS), atol=1e-5, rtol=0)


def test_offsets_come_from_the_row_hash_alone_and_are_uniform():
    offsets = np.concatenate([row_offsets(f"{number:064x}", 100) for number in range(200)])
    assert np.array_equal(row_offsets("ab", 5), row_offsets("ab", 9)[:5])
    assert not np.array_equal(row_offsets("ab", 5), row_offsets("ac", 5))
    assert offsets.min() >= 0 and offsets.max() < 1 and len(np.unique(offsets)) > 19_990
    histogram = np.bincount((offsets * 20).astype(int), minlength=20)
    assert ((histogram - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared, 19 degrees of freedom: one in a thousand
    correlation = np.corrcoef(offsets[:-1], offsets[1:])[0, 1]
    assert abs(correlation) < 3.3 / math.sqrt(len(offsets))


def test_the_same_rows_give_the_same_bytes_whatever_the_global_seed_and_the_blocks(monkeypatch):
    codec = SampledCodec(POINTS, 1.0)
    torch.manual_seed(1)
    expected = codec.encode(logits(6), ITEM)[PACKED]
    torch.manual_seed(2)
    assert torch.equal(codec.encode(logits(6), ITEM)[PACKED], expected)
    monkeypatch.setattr("primekd.signals.sampled.BLOCK_ROWS", 4)
    assert torch.equal(codec.encode(logits(6), ITEM)[PACKED], expected)
    other = codec.encode(logits(6), stored("b", RESPONSE))[PACKED]
    assert not torch.equal(other, expected)


def test_tokens_without_any_probability_are_never_drawn():
    values = logits(7)
    values[:, 10:40] = -torch.inf
    codec = SampledCodec(4096, 1.0)
    rows = codec.decode(codec.encode(values, ITEM), None, ITEM)
    dense = counts_of(rows)
    assert dense[:, 10:40].eq(0).all() and rows.entropy.isfinite().all()
    torch.testing.assert_close(dense, values.softmax(-1), atol=1 / 4096, rtol=0)
    # An offset of exactly 0 lies on the edge of what has no probability.
    assert draw_points(np.array([[0.0, 0.0, 1.0, 1.0, 2.0]]), np.zeros(1), 2).ids.tolist() == [2, 4]


def test_the_entropy_is_right_to_a_step_in_a_row_and_to_half_a_step_in_an_item():
    values = logits(8, rows=400)
    item = stored("a", [1] * 400)
    codec = SampledCodec(POINTS, 1.0)
    found = codec.decode(codec.encode(values, item), None, item).entropy
    expected = torch.special.entr(values.softmax(-1)).sum(-1)
    assert (found - expected).abs().max() <= 1 / 16 + 1e-5
    assert abs(float((found.double() - expected.double()).sum())) <= 1 / 32 + 1e-4


# How it is written.


@pytest.mark.parametrize("seed", range(20))
def test_numbers_come_back_from_a_stream_of_bits(seed):
    source = np.random.default_rng(seed)
    count = int(source.integers(0, 200))
    widths = source.integers(0, 40, count)
    raw = source.integers(0, 1 << 40, count) & ((1 << widths) - 1)
    small, large = source.geometric(0.3, count) - 1, source.integers(1, 1 << source.integers(1, 50, count))
    stream = np.packbits(np.concatenate([bits.unary(small), bits.raw(raw, widths), bits.gamma(large)]))
    assert len(stream) == math.ceil((small.sum() + count + widths.sum() + (2 * floor_log2(large) + 1).sum()) / 8)
    reader = BitReader(stream)
    assert np.array_equal(reader.unary(count), small)
    assert np.array_equal(reader.raw(widths), raw)
    assert np.array_equal(reader.gamma(count), large)
    reader.finish()


def test_the_logarithm_of_an_integer_is_exact_around_powers_of_two():
    for power in range(1, 53):
        assert floor_log2(np.array([2**power - 1, 2**power, 2**power + 1])).tolist() == [power - 1, power, power]


@pytest.mark.parametrize("vocabulary", [1, 2, 50, 2**15, 2**15 + 1, 49_152, 128_256])
@pytest.mark.parametrize("points", [1, 5, 300])
def test_any_sample_comes_back_from_its_bytes(vocabulary, points):
    source = np.random.default_rng([vocabulary, points])
    for _ in range(20):
        length = int(source.integers(1, 30))
        response = source.integers(0, vocabulary, length)
        # The ends of the vocabulary and the response's own tokens often, others at any size.
        choices = np.stack([
            source.integers(0, vocabulary, (length, points)),
            np.minimum(source.geometric(0.01, (length, points)), vocabulary - 1),
            np.repeat(response[:, None], points, 1),
            source.choice([0, vocabulary - 1], (length, points)),
        ])  # fmt: skip
        drawn = np.take_along_axis(choices, source.integers(0, 4, (1, length, points)), 0)[0]
        keys, counts = np.unique(drawn + vocabulary * np.arange(length)[:, None], return_counts=True)
        draw = Draw(keys // vocabulary, keys % vocabulary, counts)
        entropy = source.exponential(1, length)
        found, rounded = unpack(pack(draw, entropy, response), response, points)
        order = np.lexsort((found.ids, found.rows))
        for name in ("rows", "ids", "counts"):
            assert np.array_equal(getattr(found, name)[order], getattr(draw, name))
        assert abs(rounded.sum() - entropy.sum()) <= 1 / 32 + 1e-9


def test_a_row_without_doubt_takes_two_bits():
    values = torch.full((80, VOCABULARY), -50.0)
    response = [number % VOCABULARY for number in range(80)]
    values[torch.arange(80), torch.tensor(response)] = 50.0
    item = stored("a", response)
    codec = SampledCodec(64, 1.0)
    columns = codec.encode(values, item)
    assert len(columns[PACKED]) == 80 * 2 / 8
    rows = codec.decode(columns, None, item)
    assert rows.ids.tolist() == [[t] for t in response] and rows.weights.eq(1).all() and rows.entropy.eq(0).all()


@pytest.mark.parametrize("pattern, bits", [("magnitudes", 13.0), ("none", 17.0)])
def test_ids_that_are_mostly_small_take_fewer_bits_and_others_hardly_more_than_a_fixed_width(pattern, bits):
    """Of 12 ids a row in a vocabulary of 49,152 (16 bits), the count of points and of the row's ids included."""
    source, rows = np.random.default_rng(0), 200
    drawn = source.integers(1, 49_152, (rows, 12))
    if pattern == "magnitudes":
        drawn = np.exp(source.uniform(np.log(30), np.log(49_152), (rows, 12))).astype(int)
    keys, counts = np.unique(drawn + 49_152 * np.arange(rows)[:, None], return_counts=True)
    draw = Draw(keys // 49_152, keys % 49_152, counts)
    assert 8 * len(pack(draw, np.zeros(rows), np.zeros(rows, np.int64))) / len(keys) < bits


@pytest.mark.parametrize("change", ["cut", "longer", "nothing", "ones", "zeros"])
def test_a_stream_that_is_no_sample_is_refused(change):
    codec = SampledCodec(POINTS, 1.0)
    stream = codec.encode(logits(9), ITEM)[PACKED]
    damaged = {
        "cut": stream[:-2],
        "longer": torch.cat([stream, torch.zeros(2, dtype=torch.uint8)]),
        "nothing": stream[:0],
        "ones": torch.full_like(stream, 255),
        "zeros": torch.zeros_like(stream),
    }[change]
    with pytest.raises(UserError, match="item 'a' are damaged.*capture again"):
        codec.decode({PACKED: damaged}, None, ITEM)


@pytest.mark.parametrize("points, reason", [(4, "more tokens than points"), (20, "more points than were drawn")])
def test_a_sample_of_more_points_is_refused(points, reason):
    stream = SampledCodec(64, 1.0).encode(logits(9), ITEM)
    with pytest.raises(UserError, match=reason):
        SampledCodec(points, 1.0).decode(stream, None, ITEM)


# In a store.


def sampled_store(folder, shards=((0, 1), (2,)), codec=SampledCodec(POINTS, 1.0)):  # noqa: B008 - frozen
    """Three items of 6, 1 and 2 rows in two shards; returns the reader and the items with their logits."""
    responses = {"q10": RESPONSE, "q2": [4], "q1": [5, 6]}
    pairs = [(stored(name, ids), logits(n, len(ids))) for n, (name, ids) in enumerate(responses.items())]
    return make_store(folder, codec, [[pairs[i] for i in shard] for shard in shards]), pairs


@pytest.mark.parametrize("shards", [((0, 1), (2,)), ((0, 1, 2),), ((2,), (1,), (0,))])
def test_every_item_of_a_store_gets_its_own_bytes_back(shards, output):
    codec = SampledCodec(POINTS, 1.0)
    reader, pairs = sampled_store(output / "s" / "base-KD", shards)
    for item, states in pairs:
        found = reader.rows(item.item_id, item.response_ids)
        expected = codec.decode(codec.encode(states, item), None, item)
        assert isinstance(found, SampledRows) and found.temperature == 1.0
        for name in ("ids", "weights", "entropy"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_rows_of_different_widths_are_joined_without_changing_a_weight(output):
    reader, pairs = sampled_store(output / "s" / "base-KD")
    parts = [reader.rows(item.item_id, item.response_ids) for item, _ in pairs]
    assert len({part.ids.shape[1] for part in parts}) > 1
    joined = concatenate(parts)
    assert torch.equal(counts_of(joined), torch.cat([counts_of(part) for part in parts]))
    student = logits(11, len(joined))
    separate = torch.cat([forward_kl_sampled(p, s) for p, s in zip(parts, student.split([6, 1, 2]), strict=True)])
    torch.testing.assert_close(divergence(joined, student, LossConfig()), separate)
    assert torch.equal(counts_of(joined.part(slice(6, 9))), counts_of(joined)[6:9])


def test_a_damaged_shard_of_packed_rows_is_refused(output):
    folder = output / "s" / "base-KD"
    sampled_store(folder)
    path = folder / shard_name(0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00000\.safetensors was altered"):
        SignalReader(folder)


def test_what_a_store_says_of_itself_opens_the_same_codec(output):
    folder = output / "s" / "base-KD"
    sampled_store(folder)
    spec = read_json(folder / "manifest.json")["spec"]["codec"]
    assert codec_of(spec) == SampledCodec(POINTS, 1.0)
    assert (spec["points"], spec["temperature"]) == (POINTS, 1.0)
    assert "unbiased" in spec["error"] and "variance" in spec["error"]


def test_a_capture_that_is_taken_up_again_writes_the_same_bytes(output, lively):
    signals = {"codec": "sampled", "sampled_points": 16, "sampled_temperature": 2.0, "items_per_shard": 3}
    profile = small_profile(output, teacher={"model": lively}, signals=signals)
    job = training_job(profile, "base-KD")
    folder = capture(job)
    before = {path.name: hash_file(path) for path in folder.glob("shard-*.safetensors")}
    shutil.copy(folder / shard_name(0), output / "kept")
    (folder / shard_name(0)).write_bytes(b"cut short")
    (folder / shard_name(1)).unlink()
    capture(job)
    assert {path.name: hash_file(path) for path in folder.glob("shard-*.safetensors")} == before
    reader = open_signals(job)
    assert all(isinstance(reader.rows(name, reader.item(name).response_ids), SampledRows) for name in reader.item_ids)


# What it serves.


@pytest.mark.parametrize("kind", ["reverse_kl", "jsd"])
def test_other_divergences_are_refused_with_the_reason(kind):
    with pytest.raises(UserError, match=f"only the forward KL is linear.*{kind}.*hidden or full"):
        require_served(SampledCodec(POINTS, 1.0), LossConfig(divergence=kind))


def test_another_temperature_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"drawn at temperature 2 .*sampled_temperature"):
        require_served(SampledCodec(POINTS, 2.0), LossConfig(temperature=1.0))
    require_served(SampledCodec(POINTS, 2.0), LossConfig(temperature=2.0))


def test_the_loss_refuses_rows_of_another_temperature():
    rows = SampledRows(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), torch.zeros(1), 2.0)
    for loss in (LossConfig(temperature=1.0), LossConfig(temperature=2.0, divergence="reverse_kl")):
        with pytest.raises(ValueError, match="sparse rows serve"):
            distillation_loss(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), rows, loss, tokens=1)


def test_a_profile_asks_for_it_with_its_points_and_temperature():
    config = SignalsConfig(codec="sampled", sampled_points=100, sampled_temperature=2.0)
    assert make_codec(config, frozenset({"hidden", "logits"})) == SampledCodec(100, 2.0)
    assert isinstance(make_codec(SignalsConfig(codec="topk"), frozenset({"logits"})), TopKCodec)
    with pytest.raises(UserError, match="sampled.*needs logits"):
        make_codec(config, frozenset({"top"}))
