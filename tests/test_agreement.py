"""Engines compared token by token: exact where they are known to differ by a known amount."""

import json

import pytest
import torch
from conftest import agree, write_profile
from typer.testing import CliRunner

from primekd.cli import app
from primekd.config import load_profile
from primekd.foundation.errors import UserError
from primekd.report.readme import block
from primekd.teachers.protocol import TopLogprobs

PROMPTS, RESPONSES = [[1, 2], [1]], [[3, 4, 5], [6]]


class StubEngine:
    """Says fixed logits; stands for an engine so that the arithmetic alone is tested."""

    name, vocab_size = "stub", 8

    def __init__(self, logits: list[torch.Tensor], k: int | None = None, empty_rows: int = 0):
        self.logits, self.k, self.empty_rows = logits, k, empty_rows
        self.offers = frozenset({"logits"} if k is None else {"top"})

    def score(self, prompts, responses, want):
        assert want in self.offers
        return self.logits if self.k is None else [self._top(rows) for rows in self.logits]

    def _top(self, logits):
        values, ids = logits.log_softmax(-1).topk(self.k)
        values, ids = values.clone(), ids.clone()
        for row in range(self.empty_rows):
            values[-1 - row], ids[-1 - row] = -torch.inf, -1
        return TopLogprobs(ids, values)


@pytest.fixture
def logits() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(len(r), 8, generator=generator) for r in RESPONSES]


def test_an_engine_agrees_with_itself(logits):
    found = agree(StubEngine(logits), StubEngine(logits), PROMPTS, RESPONSES)
    assert (found.tokens, found.without_signal, found.top1_agreement) == (4, 0, 1.0)
    assert found.max_kl_nats == pytest.approx(0, abs=1e-12)


def test_kl_is_from_the_reference_to_the_engine_over_the_whole_vocabulary(logits):
    other = [rows.roll(1, -1) for rows in logits]
    found = agree(StubEngine(logits), StubEngine(other), PROMPTS, RESPONSES)
    p, q = torch.cat(logits).double().softmax(-1), torch.cat(other).double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    assert found.mean_kl_nats == pytest.approx(expected.mean().item(), rel=1e-9)
    assert found.max_kl_nats == pytest.approx(expected.max().item(), rel=1e-9)
    assert found.top1_agreement == 0.0


def test_top_k_with_every_token_is_the_whole_kl_and_with_fewer_a_lower_bound(logits):
    other = [0.5 * rows + 0.1 * torch.arange(8) for rows in logits]
    whole = agree(StubEngine(logits), StubEngine(other), PROMPTS, RESPONSES)
    every = agree(StubEngine(logits), StubEngine(other, k=8), PROMPTS, RESPONSES)
    some = agree(StubEngine(logits), StubEngine(other, k=3), PROMPTS, RESPONSES)
    assert every.mean_kl_nats == pytest.approx(whole.mean_kl_nats, abs=1e-5)
    assert 0 < some.mean_kl_nats < whole.mean_kl_nats
    assert some.compared == "top K and the rest"


def test_rows_without_a_signal_are_left_out_and_counted(logits):
    found = agree(StubEngine(logits), StubEngine(logits, k=8, empty_rows=1), PROMPTS, RESPONSES)
    assert (found.tokens, found.without_signal) == (2, 2)
    assert found.mean_kl_nats == pytest.approx(0, abs=1e-5)


def test_another_vocabulary_is_refused(logits):
    wider = [torch.nn.functional.pad(rows, (0, 1)) for rows in logits]
    with pytest.raises(UserError, match="have 8 and 9 tokens"):
        agree(StubEngine(logits), StubEngine(wider), PROMPTS, RESPONSES)


def check(*words: str):
    return CliRunner().invoke(app, ["check-engine", *words])


def test_check_engine_writes_a_log_and_the_table_names_it(output, tmp_path, lively):
    profile = write_profile(tmp_path, teacher={"model": lively}, student={"model": lively})
    done = check("--profile", str(profile), "--items", "3", "--json")
    assert done.exit_code == 0, done.output
    path = output / "logs" / "engines" / "transformers-small.json"
    result = json.loads(path.read_text())
    # The same weights in the same precision, by two loads of the model.
    assert result["agreement"]["top1_agreement"] == 1.0 and result["equal_answers"] == 3
    assert result["agreement"]["tokens"] == result["generated_tokens"] > 3
    assert result["codec"] == "hidden"
    table = block("engine-table", output / "logs" / "engines")
    row = next(line for line in table.splitlines() if line.startswith("| transformers"))
    assert "100.0" in row and "3 of 3" in row and "logs/engines/transformers-small.json" in row
    assert next(line for line in table.splitlines() if line.startswith("| vllm")).count("not run") == 1
    path.write_text("{}")
    with pytest.raises(UserError, match="transformers-small.json is no check of an engine"):
        block("engine-table", output / "logs" / "engines")


def test_what_is_compared_is_what_capture_keeps(output, tmp_path, lively, monkeypatch):
    """Rows that are wrong as they are collected, of an engine that would score rightly."""
    from primekd.teachers.transformers_engine import TransformersEngine

    def wrongly(engine, *arguments):
        responses, rows = plain(engine, *arguments)
        return responses, [-states for states in rows]

    plain = TransformersEngine.generate_scored
    monkeypatch.setattr(TransformersEngine, "generate_scored", wrongly)
    profile = write_profile(tmp_path, teacher={"model": lively}, student={"model": lively})
    done = check("--profile", str(profile), "--items", "1", "--json")
    result = json.loads((output / "logs" / "engines" / "transformers-small.json").read_text())
    assert done.exit_code == 0 and result["equal_answers"] == 1 and result["agreement"]["top1_agreement"] == 0


def test_another_model_as_reference_is_refused_and_writes_nothing(output, tmp_path, lively):
    profile = write_profile(tmp_path, teacher={"model": lively}, student={"model": lively})
    done = check("--profile", str(profile), "--items", "1", "--reference", load_profile("ci").teacher.model)
    assert done.exit_code == 1
    assert not (output / "logs").exists()
