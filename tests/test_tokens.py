"""Tokens one by one: how sure the teacher was, where models depart from it, and what is kept of that."""

import pytest
import torch
from conftest import small_profile

from primekd.assessment.tokens import MOST, TokenFit, TokenLog, read_tokens, visible, write_fits, write_tokens
from primekd.capture.jobs import open_signals, training_job
from primekd.capture.run import capture
from primekd.foundation.errors import UserError
from primekd.models import load_tokenizer
from primekd.models.logits import PLAIN
from primekd.signals.certainty import ROWS, certainty_of, moved_probability, read_certainty
from primekd.signals.rows import DenseRows, HiddenRows, SampledRows, TopKRows


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    count = 2 * ROWS + 3  # chunks, the last of them short
    return HiddenRows(torch.randn(count, 8, generator=generator), torch.randn(40, 8, generator=generator), PLAIN)


def test_certainty_is_that_of_the_distributions_in_float64(rows):
    targets = [t % 40 for t in range(len(rows))]
    found = certainty_of(rows, targets, top=3)
    p = (rows.hidden.double() @ rows.head.double().T).softmax(-1)
    torch.testing.assert_close(found.entropy.double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.written.double(), p[range(len(p)), targets], rtol=1e-4, atol=1e-7)
    assert torch.equal(found.top_ids, p.topk(3).indices)
    torch.testing.assert_close(found.top_probs.double(), p.topk(3).values, rtol=1e-4, atol=1e-7)


def test_sparse_rows_say_what_they_keep_and_no_more():
    p = torch.tensor([[0.5, 0.3, 0.1]])
    top = TopKRows(torch.tensor([[7, 8, 9]]), p.log(), torch.tensor([0.1]), torch.zeros(1), 1.0)
    found = certainty_of(top, [8])
    assert found.written.tolist() == pytest.approx([0.3]) and found.top_ids.tolist() == [[7, 8, 9, -1, -1]]
    everything = torch.tensor([0.5, 0.3, 0.1, 0.1])
    assert found.entropy.item() == pytest.approx(-(everything * everything.log()).sum().item())
    assert certainty_of(top, [1]).written.isnan().all()
    sampled = SampledRows(torch.tensor([[4, 0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0.25]), 1.0)
    assert certainty_of(sampled, [0]).written.isnan().all() and certainty_of(sampled, [4]).entropy.item() == 0.25


def test_moved_probability_is_half_the_sum_of_differences(rows):
    same = DenseRows(rows.to_logits())
    assert moved_probability(rows, same).max() < 1e-5
    one, other = torch.full((1, 4), -1e9), torch.full((1, 4), -1e9)
    one[0, 0], other[0, 0], other[0, 1] = 0.0, 0.0, 0.0
    assert moved_probability(DenseRows(one), DenseRows(other)).tolist() == pytest.approx([0.5])


def test_the_logs_keep_the_first_items_whole_and_every_text(output, lively):
    profile = small_profile(output, teacher={"model": lively}, data={"train_items": 3, "validation_items": 2})
    capture(training_job(profile, "base-KD"))
    reader, tokenizer = open_signals(training_job(profile, "base-KD")), load_tokenizer(profile.student)
    answers = {item: reader.item(item).response_ids for item in reader.item_ids}
    lengths = [len(ids) for ids in answers.values()]
    fits = [TokenFit(torch.rand(n), torch.randint(9, 30, (n, 5)), torch.rand(n, 5).half().float()) for n in lengths]
    write_fits(output / "own.safetensors", fits)
    two = read_certainty(reader, list(answers), most=sum(lengths[:2]))
    assert list(two) == list(answers)[:2] and len(read_certainty(reader, list(answers), MOST)) == 3
    path = write_tokens(output / "tokens.safetensors", answers, two, {"m": output / "own.safetensors"}, tokenizer)
    log = read_tokens(output)
    assert log.items == list(two) and log.models == ["m"] and log.tokens(list(answers)[2]) == []
    second = list(answers)[1]
    tokens = log.tokens(second)
    assert [t.text for t in tokens] == [tokenizer.decode([i]) for i in answers[second]]
    assert [t.kl["m"] for t in tokens] == pytest.approx(fits[1].kl.tolist())
    assert log.sums("m")[second] == pytest.approx(float(fits[1].kl.sum()))
    assert [text for text, _ in tokens[0].top["m"]] == [tokenizer.decode([i]) for i in fits[1].top_ids[0].tolist()]
    assert [p for _, p in tokens[0].top["m"]] == pytest.approx(fits[1].top_probs[0].tolist())
    assert tokens[0].written == pytest.approx(float(two[second].written[0]), rel=1e-3)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="run the assessment again"):
        TokenLog(path)
    assert write_tokens(path, answers, {}, {}, tokenizer) is None and read_tokens(output) is None


def test_line_ends_are_seen():
    assert visible("a\n\tb") == "a⏎⇥b" and visible("") == "∅"
