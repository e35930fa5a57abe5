"""The study online: students from scratch beside a live teacher, the same from a store, facts, costs, other models."""

import contextlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import small_profile
from safetensors.torch import load_file
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from benchmarks.plain_losses import distillation_loss
from primekd.assessment import completions
from primekd.assessment.completions import OTHERS, RANDOM, CompletionRow, complete, floors, rows_of
from primekd.assessment.costs import IDLE, CostRow
from primekd.assessment.logs import read_logs
from primekd.assessment.score import made_of
from primekd.assessment.try_student import Asker, ask
from primekd.cli import app
from primekd.config import Architecture, LossConfig
from primekd.config.arm import CONTROL, TEACHER
from primekd.foundation import energy, read_json, write_json
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_records, read_table, write_records
from primekd.losses import chunked_loss
from primekd.models import model_hash
from primekd.models.students import new_student, scratch_config, spread
from primekd.report.costs import cost_table
from primekd.report.formats import percent
from primekd.report.html import write_report
from primekd.report.playground import Playground, answers_view
from primekd.report.text import compared_rows, fact_table
from primekd.running import model_card
from primekd.running.export import export
from primekd.running.show import show
from primekd.running.verify import check_tables
from primekd.running.verify_run import check_lineage
from primekd.signals import DenseRows
from primekd.statistics.facts import FactContrastRow, FactRow, fact_contrasts
from primekd.statistics.families import CHECKS, MAIN
from primekd.statistics.sentences import why_not
from primekd.studies import online, text_assessment
from primekd.studies.regrade import regrade
from primekd.tasks.facts import Fact, find_keyword
from primekd.tasks.load import load_items
from primekd.tasks.text import text_folder
from primekd.teachers import open_engine
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import student_settings

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 256}  # fmt: skip
ADAMW = {"optimizer": "adamw", "learning_rate": 0.01, "epochs": 1, "batch_size": 1, "micro_batch_size": 1}
STORY = "Tom has {n} apples and a dog. The dog has {m} cats. Ann counts them all, and gives Tom {n} more. "
ARMS = ["online-KD", "online-KD-sum", "stored-KD"]
IDLE_SECONDS = online.IDLE_SECONDS  # as shipped


@pytest.fixture(scope="module")
def trained(tmp_path_factory, lively, ci):
    with pytest.MonkeyPatch.context() as patched:
        output = tmp_path_factory.mktemp("online")
        patched.setenv("PRIMEKD_OUTPUT", str(output))
        patched.setattr(online, "IDLE_SECONDS", 0.1)
        for n in range(30):
            (output / f"story{n:02}.txt").write_text(STORY.format(n=n, m=n * n) * (1 + n % 3))
        profile = small_profile(
            output, study="online", arms=ARMS, teacher={"model": lively}, train=ADAMW, max_new_tokens=6,
            data={"task": "facts", "source": "own", "test_items": 6, "train_items": 0, "validation_items": 0,
                  "templates": [], "train_file": None, "test_file": None},
            student={"model": None, "lora": None, "from_scratch": LLAMA, "tokenizer": ci.student.model,
                     "dtype": "float32"},
            text={"source": "files", "files": str(output / "story*.txt"), "block_tokens": 128, "documents_apart": False,
                  "held_out_documents": 3, "held_out_tokens": 50, "train_tokens": 512},
            pretrain={"tokens": 512, "train": ADAMW}, loss={"alpha": 0.7, "temperature": 2.0}, planned={"main": []},
            assess={"batch_size": 8},
        )  # fmt: skip
        online.STUDY.refuse(profile)
        online.tokenise(profile)
        for name in (CONTROL, *ARMS):
            online.train(profile, name)
        online.assess(profile)
        yield profile


@pytest.fixture
def assessed(trained, monkeypatch):
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(trained.runs.parents[1]))
    return trained


def weights(profile, name):
    return load_file(profile.student_folder(name) / "model" / "model.safetensors")


def test_stored_rows_give_the_live_teachers_student_to_the_bit(assessed):
    live, stored = (weights(assessed, name) for name in ("online-KD", "stored-KD"))
    assert all(torch.equal(live[name], stored[name]) for name in live)
    curves = [(assessed.student_folder(name) / "loss_curve.csv").read_text() for name in ("online-KD", "stored-KD")]
    assert curves[0] == curves[1] and len(curves[0].splitlines()) > 3
    store = read_json(assessed.signals_folder("stored-KD") / "manifest.json")
    assert store["complete"] and store["bytes"] > 0 and store["reconstruction"]["tokens"] > 0
    manifest = read_json(assessed.student_folder("stored-KD") / "manifest.json")
    assert len(manifest["inputs"]["signals"]["shards"]) == 4 and "start" not in manifest["inputs"]
    assert check_lineage(assessed).problems == []
    others = weights(assessed, CONTROL), weights(assessed, "online-KD-sum")
    assert all(any(not torch.equal(live[name], other[name]) for name in live) for other in others)


def test_the_divergence_is_scaled_in_both_losses_and_its_gradient(tokenizer):
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 8, requires_grad=True), torch.randn(40, 8)
    teacher, targets = DenseRows(torch.randn(5, 40)), torch.arange(5)
    scaled, plain = (LossConfig(temperature=2.0, alpha=0.7, divergence_scale=s) for s in (127.0, 1.0))
    found = []
    for loss in (scaled, plain):
        value, parts = chunked_loss(hidden, head, None, targets, teacher, loss, 5)
        [gradient] = torch.autograd.grad(value, hidden)
        other = distillation_loss(hidden @ head.T, targets, teacher, loss, 5)[0]
        assert torch.allclose(value, other, rtol=1e-5)
        assert torch.allclose(gradient, torch.autograd.grad(other, hidden)[0], rtol=1e-4, atol=1e-5)
        found.append((value, parts))
    (big, parts), (small, _) = found
    assert float((big - small).detach()) == pytest.approx(float(126 * 0.3 * parts["kd"]), rel=1e-4)
    # A sum over the 127 places of each sequence, and the mean over sequences: what batchmean does to (B, 127, V).
    p, q = teacher.logits.div(2).log_softmax(-1), (hidden @ head.T).div(2).log_softmax(-1)
    batchmean = torch.nn.functional.kl_div(q[None].expand(3, 5, 40), p[None].expand(3, 5, 40), log_target=True,
                                           reduction="batchmean")  # fmt: skip
    assert float(batchmean.detach()) * 4 == pytest.approx(float(5 * parts["kd"]), rel=1e-4)
    assert "divergence_scale" not in plain.model_dump() and scaled.model_dump()["divergence_scale"] == 127


def test_a_student_may_begin_with_every_second_layer_of_the_teacher(lively, ci, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    shape = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8,
             "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}  # fmt: skip
    teacher = AutoModelForCausalLM.from_pretrained(lively.removeprefix("path:"), dtype=torch.float32)
    teacher.config.rope_parameters |= {"rope_theta": 500.0}
    teacher.config.rms_norm_eps = 0.03
    teacher.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "other", dtype=torch.float32)
    reference = f"path:{tmp_path / 'other'}"
    given = {"model": None, "lora": None, "from_scratch": shape, "tokenizer": ci.student.model, "layers_of": reference}
    profile = small_profile(tmp_path, student=given)
    student = new_student(profile.student, seed=0)
    for name, own in student.state_dict().items():
        assert torch.equal(own, teacher.state_dict()[name][: len(own)]), name
    whole = given | {"from_scratch": shape | {"num_hidden_layers": 2}}
    student, ids = new_student(small_profile(tmp_path, student=whole).student, seed=0), torch.arange(40)[None] % 17
    assert torch.equal(student(ids).logits, teacher(ids).logits[..., : len(tokenizer)])  # as that model computes
    assert (spread(30, 15), spread(30, 7)) == ([*range(0, 30, 2)], [0, 4, 8, 12, 17, 21, 25])
    for key, size in (("intermediate_size", 48), ("num_key_value_heads", 2)):
        wrong = given | {"from_scratch": shape | {key: size}}
        with pytest.raises(UserError, match=f"layers_of has {key} {shape[key]}, and it {size}"):
            new_student(small_profile(tmp_path, name="wrong", student=wrong).student, seed=0)
    more = given | {"from_scratch": shape | {"num_hidden_layers": 3}}
    with pytest.raises(UserError, match="layers_of has 2 layers, and it 3"):
        new_student(small_profile(tmp_path, name="more", student=more).student, seed=0)
    inputs = {"student": student_settings(profile.student), "strategy": "online-KD"}
    assert inputs["student"]["model_sha256"] == model_hash(reference)
    card = model_card._facts(profile, SimpleNamespace(manifest={"inputs": inputs}), {"accuracy": None})
    assert "of which it began with some layers: model_type llama" in card["Base model"]
    assert card["Its licence"] == model_card.UNKNOWN


def test_what_is_said_of_each_layer_is_taken_with_the_layer(ci, tokenizer, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    size |= {"tie_word_embeddings": False, "max_position_embeddings": 64}
    config = AutoConfig.for_model(
        "qwen2", **size, vocab_size=len(tokenizer), num_hidden_layers=4, use_sliding_window=True, max_window_layers=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    own = Architecture(model_type="qwen2", **size, num_hidden_layers=2)
    found = scratch_config(own, tokenizer, f"path:{tmp_path / 'source'}")
    assert config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert found.layer_types == ["full_attention", "sliding_attention"]


def test_a_question_is_shown_as_a_student_of_text_reads_it(assessed):
    item = load_items(assessed, "test")[0]
    for model in (ARMS[0], TEACHER):
        (read,) = [part.rows for part in show(assessed, item.id, model) if part.title == "What the model read"]
        assert read == [("Prompt", item.question)]


def test_completions_are_the_models_own_greedy_text_behind_the_question(lively, assessed, monkeypatch):
    engine, items = TransformersEngine(lively, "float32"), load_items(assessed, "test")
    with monkeypatch.context() as without:  # what is measured as a model's cost has no judge in it
        without.setattr(completions, "cosines", None)
        written = complete(engine, items, 5)
    rows = rows_of(items, written)
    for item, row in zip(items, rows, strict=True):
        ids = torch.tensor([engine.tokenizer(item.question)["input_ids"]])
        for _ in range(row.tokens):
            best = engine.model(ids).logits[0, -1, : engine.vocab_size].argmax()
            ids = torch.cat([ids, best[None, None]], -1)
        written = ids[0, -row.tokens :].tolist()
        assert row.truncated or written[-1] == 0  # <|endoftext|>
        assert row.response == engine.tokenizer.decode(written, skip_special_tokens=True)
    found = floors(items)
    assert [len(found[name]) for name in (OTHERS, RANDOM)] == [6, 6]
    assert not any(find_keyword(row.response, item.accepted) for item, row in zip(items, found[OTHERS], strict=True))


def test_what_answers_cost_is_writing_them_alone(output, ci, monkeypatch):
    runs = []

    @contextlib.contextmanager
    def meter(country):
        runs.append(country)
        yield SimpleNamespace(facts={"seconds": 1.0})
        runs.clear()

    monkeypatch.setattr(text_assessment, "Meter", meter)
    told = []
    judge = lambda items, said: told.append((said, runs[:])) or []  # noqa: E731
    probe = replace(online.PROBE, ask=lambda *asked: runs.copy(), judge=judge)
    tried = []

    class Engine:
        decodes = property(lambda self: tried.append(("decodes", runs[:])))
        branches = property(lambda self: tried.append(("branches", runs[:])))

    assert text_assessment.probe_model(ci, "any", [], Engine, probe, {}, "now") == []
    assert told == [([ci.country], [])] and online.PROBE.judge is rows_of
    assert tried == [("decodes", []), ("branches", [])], "how it decodes is found out before the clock runs"


def test_facts_costs_and_documents_stand_in_the_logs_the_report_and_verify(assessed):
    logs = read_logs(assessed)
    assert set(logs) == {CONTROL, *ARMS, TEACHER}
    rows = {row.model: row for row in read_records(assessed.logs / "facts.csv", FactRow)}
    assert set(rows) == {*logs, OTHERS, RANDOM} and rows[OTHERS].reached == pytest.approx(0, abs=1e-6)
    assert rows[OTHERS].accuracy is None and rows["online-KD"].perplexity > 1 and rows["online-KD"].kl > 0
    assert rows[TEACHER].perplexity > 1 and rows[TEACHER].kl == 0
    folders = [folder for name in logs for *_, folder in made_of(assessed, name).values()]
    manifests = [read_json(folder / "manifest.json") for folder in folders]
    assert len(manifests) == 2 * len(logs)
    for key in ("seconds", "energy_kwh", "co2e_kg"):  # of every part, and of the whole of them
        assert read_json(assessed.logs / "manifest.json")[key] == pytest.approx(sum(one[key] for one in manifests))
        assert read_json(text_folder(assessed) / "manifest.json")[key] >= 0
    control = read_records(assessed.logs / "completions" / "control.csv", CompletionRow)
    assert rows[CONTROL].cosine == pytest.approx(sum(row.cosine for row in control) / 6, rel=1e-4)
    costs = {row.model: row for row in read_records(assessed.logs / "costs.csv", CostRow)}
    assert set(costs) == {*logs, IDLE} and all(costs[name].answers == 6 and costs[name].seconds > 0 for name in logs)
    assert check_tables(assessed).problems == [] and regrade(assessed) == assessed.logs
    assert check_tables(assessed).problems == []
    page = write_report(assessed).read_text()
    for text in ("Facts", "Right answers to other questions", "Llama-2-7B (published; 18,216 s)", "What a thousand"):
        assert text in page, text


def test_any_model_stands_in_the_same_table_and_is_asked_once(assessed, lively, monkeypatch):
    """By the verb itself, with what it took and how it fits the documents; a student's own folder among them."""
    own, runner = f"path:{assessed.student_folder('online-KD') / 'model'}", CliRunner()
    asked = ["compare-models", lively, own, "--profile", str(assessed.runs.parents[1] / "small.yaml")]
    said = runner.invoke(app, asked)
    assert said.exit_code == 0, said.output
    for text in ("Facts", "(published", "What a thousand answers cost", "Joules", "Perplexity"):
        assert text in said.output, text
    monkeypatch.setattr(TransformersEngine, "__init__", None)  # nothing is loaded again
    said = runner.invoke(app, [*asked, "--json"]).output
    found = json.loads(said[said.index("{\n") :])
    facts, costs = ({row["model"]: row for row in found[name]} for name in ("facts", "costs"))
    teacher, student, idle = costs
    assert idle == IDLE and costs.pop(idle)["seconds"] > 0
    assert list(facts) == [teacher, student, OTHERS, RANDOM] and facts[OTHERS]["accuracy"] is None
    assert facts[teacher]["kl"] == pytest.approx(0, abs=1e-4) and facts[student]["kl"] > 0
    logged = {row.model: row for row in read_records(assessed.logs / "facts.csv", FactRow)}["online-KD"]
    for key in ("accuracy", "cosine", "perplexity", "perplexity_high", "kl"):
        assert facts[student][key] == pytest.approx(getattr(logged, key), rel=1e-3), key
    assert all(row["seconds"] > 0 and row["answers"] == 6 for row in costs.values())
    shown = str(fact_table(assessed.logs).rows)
    assert f"{teacher} (compared)" in shown and f"{student} (compared)" in shown and f"{OTHERS} (comp" not in shown
    of_teacher = {row.model: row for row in read_records(assessed.logs / "facts.csv", FactRow)}[TEACHER]
    assert facts[teacher]["perplexity"] == pytest.approx(of_teacher.perplexity, rel=1e-3)


def test_models_are_compared_by_benchmarks_in_the_study_micro(tmp_path, output, lively):
    profile = small_profile(
        tmp_path, study="micro", data={"task": "choices", "source": "own", "benchmarks": ["snli"], "test_items": 3}
    )
    rows = compared_rows(online.compare(profile, [lively]))
    assert [(row["benchmark"], row["n"]) for row in rows["benchmarks"]] == [("snli", 3)]
    assert rows["benchmarks"][0]["model"] == rows["costs"][0]["model"]
    with pytest.raises(UserError, match="asks gsm-symbolic: choose a profile of facts or choices"):
        online.compare(small_profile(tmp_path), [lively])


@pytest.mark.parametrize("name", [CONTROL, "online-KD"])
def test_a_student_of_text_is_exported_as_it_was_assessed(assessed, tmp_path, name):
    folder = export(assessed, name, to=tmp_path / "x", gguf=["F16"], dtype="float32")
    engine, items = TransformersEngine(f"path:{folder}", "float32"), load_items(assessed, "test")
    rows = read_records(assessed.logs / "completions" / f"{name}.csv", CompletionRow)
    assert [text for text, *_ in complete(engine, items, 6)] == [row.response for row in rows]
    manifest, card = read_json(folder / "manifest.json"), (folder / "README.md").read_text()
    assert manifest["chats"] is False and not (folder / "chat_template.jinja").exists()
    assert read_json(folder / "generation_config.json")["eos_token_id"] in (0, [0])
    assert engine.tokenizer.eos_token == "<|endoftext|>" and engine.tokenizer.chat_template is None
    assert 'ask("A TEXT TO GO ON FROM"' in card and "n = 6, before it was exported" in card
    assert ("| Teacher |" in card) == (name != CONTROL) and "| Data |" not in card and "| Text |" in card
    assert "{{ .Prompt }}" in (folder / "Modelfile").read_text()
    with pytest.raises(UserError, match="micro-text has no student: run the notebook of micro-KD/ that"):
        export(assessed, "micro-text", to=tmp_path / "y")


def test_students_from_scratch_are_tried_as_they_were_assessed(assessed, monkeypatch):
    asker, item = Asker(assessed), load_items(assessed, "test")[0]
    for name in (CONTROL, "online-KD", TEACHER):
        row = read_records(assessed.logs / "completions" / f"{name}.csv", CompletionRow)[0]
        stream = asker.stream(name, item.question)
        assert list(stream)[-1] == row.response and stream.reply.tokens == row.tokens, name
    list(stream := asker.stream("online-KD", item.question))
    assert len(asker.tokens(stream)) == stream.reply.tokens
    answers = ask(assessed, item.question, asker=asker)
    shown = answers_view(item.question, answers)
    assert [r.name for r in answers] == [CONTROL, *ARMS, TEACHER] and not any(r.values for r in answers)
    assert "Tokens a second: control" in shown.html and "Read as" not in shown.html and "tokens/s" in shown.text
    form = Playground(asker, item.question, ["online-KD"])
    form.thread.join()
    form.ask()
    form.thread.join()
    assert len(form.answers.children) == 2 and "Tokens a second: control" in form.chart.value
    with pytest.raises(UserError, match="control: the question and max_new_tokens make 307 tokens, more than the"):
        asker.stream(CONTROL, "word " * 300)
    untrained = Asker(assessed.model_copy(update={"name": "other"}))
    with pytest.raises(UserError, match="students/control has no student: run the notebook of distil-llama/ that"):
        untrained.stream(CONTROL, item.question)


def test_arms_that_go_on_from_a_control_are_not_for_this_study(assessed):
    with pytest.raises(UserError, match="micro-text goes on from the control"):
        half = assessed.pretrain.model_copy(update={"tokens": 192})
        online.STUDY.refuse(assessed.model_copy(update={"arms": ("micro-text",), "pretrain": half}))


@pytest.mark.parametrize("change", [{"block_tokens": 32}, {"documents_apart": True}])
def test_a_sum_over_other_places_than_a_block_has_is_refused(assessed, change):
    with pytest.raises(UserError, match="online-KD-sum sums over 127 places"):
        online.STUDY.refuse(assessed.model_copy(update={"text": assessed.text.model_copy(update=change)}))


def test_stored_rows_are_tested_against_nobody_unless_the_profile_says_so():
    names, pair = [CONTROL, "online-KD", "online-KD-seed1", "stored-KD"], ("stored-KD", "online-KD")
    assert online.planned(names) == {("online-KD", CONTROL): CHECKS}
    assert online.planned(names, [pair]) == {pair: MAIN, ("online-KD", CONTROL): CHECKS}


def test_a_teacher_may_be_asked_in_four_bits(monkeypatch, tmp_path, lively):
    asked = {}
    monkeypatch.setattr(TransformersEngine, "__init__", lambda self, *a, **how: asked.update(how))
    teacher = {"model": lively, "quantization": "nf4"}
    open_engine(profile := small_profile(tmp_path, teacher=teacher))
    assert asked["quantization"] == "nf4" and profile.teacher.identity()["quantization"] == "nf4"
    assert "quantization" not in small_profile(tmp_path).teacher.identity()
    with pytest.raises(UserError, match="quantization is for the engine transformers"):
        small_profile(tmp_path, teacher=teacher | {"engine": "llamacpp"})


def test_the_idle_machine_is_counted_once_and_emits_as_its_country_does(ci, monkeypatch):
    """All times are a tenth of those shipped. An end in the middle of a reading would have two count one stretch."""
    from codecarbon.external.hardware import CPU

    stretches, real = [], CPU.measure_power_and_energy
    measure = lambda part, last_duration: stretches.append(last_duration) or real(part, last_duration)  # noqa: E731
    monkeypatch.setattr(CPU, "measure_power_and_energy", measure)
    monkeypatch.setattr(energy, "INTERVAL", energy.INTERVAL / 10)
    monkeypatch.setattr(online, "IDLE_SECONDS", IDLE_SECONDS / 10)
    facts = online._idle(ci.model_copy(update={"country": "FRA"}))
    assert facts["country"] == "FRA" and facts["co2e_kg"] >= 0 and facts["energy_kwh"] > 0
    assert sum(stretches) == pytest.approx(IDLE_SECONDS / 10, abs=0.2)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("RAM", None), ("CPU", "cpu_load")], "an estimate (RAM model, CPU cpu_load)"),
        (
            [("RAM", None), ("CPU", "constant"), ("GPU", None)],
            "partly an estimate (RAM model, CPU constant, GPU sensor)",
        ),
        ([("GPU", None), ("CPU", "cpu_load")], "partly an estimate (GPU sensor, CPU cpu_load)"),
        ([("CPU", "intel_rapl"), ("RAM", None), ("GPU", None)], "measured (CPU intel_rapl, RAM model, GPU sensor)"),
        ([], "an estimate ()"),
    ],
)
def test_energy_is_called_measured_only_where_all_but_memory_has_a_sensor(parts, said):
    hardware = [type(kind, (), {"_mode": mode} if mode else {})() for kind, mode in parts]
    assert energy._method(SimpleNamespace(_hardware=hardware)) == f"codecarbon, whole machine, {said}"


def test_a_question_that_does_not_fit_into_the_context_is_refused(lively):
    item = Fact("geo-1", "word " * 300, "", "Paris")
    engine = TransformersEngine(lively, "float32")
    assert len(engine.tokenizer(item.question)["input_ids"]) == 301
    with pytest.raises(UserError, match="geo-1: the question and max_new_tokens make 514 tokens, more than .* of 512"):
        complete(engine, [item], 213)


def test_a_completion_that_was_cut_says_so_and_is_right_or_wrong_all_the_same(assessed):
    for name in (CONTROL, "online-KD"):
        cut = [row.truncated for row in read_records(assessed.logs / "completions" / f"{name}.csv", CompletionRow)]
        assert any(cut) and [row.truncated for row in read_logs(assessed)[name]] == cut
    contrasts = read_table(assessed.logs / "contrasts.csv")
    assert contrasts and not any(why_not(row, "accuracy") for row in contrasts)


def test_likeness_has_intervals_and_paired_tests(assessed):
    rows = {row.model: row for row in read_records(assessed.logs / "facts.csv", FactRow)}
    for row in rows.values():
        for key in ("cosine", "rouge_precision", "rouge_recall"):
            assert getattr(row, f"{key}_low") <= getattr(row, key) <= getattr(row, f"{key}_high")
    student = rows["online-KD"]
    assert student.perplexity_low < student.perplexity < student.perplexity_high and student.kl_low < student.kl
    tests = read_records(assessed.logs / "fact-contrasts.csv", FactContrastRow)
    assert {t.measure for t in tests} == {"cosine", "rouge_precision", "rouge_recall"} and tests[0].model in rows


def test_the_paired_test_of_likeness_is_students_on_the_differences_item_by_item(tmp_path):
    values = {"online-KD": [0.2, 0.7, 0.5, 0.9], CONTROL: [0.1, 0.5, 0.6, 0.4]}
    for name, of_model in values.items():
        recall = [float(name != CONTROL and place < 3) for place in range(4)]
        rows = [CompletionRow(str(i), "x", 1, False, v, v / 2, recall[i]) for i, v in enumerate(of_model)]
        write_records(tmp_path / "completions" / f"{name}.csv", CompletionRow, rows)
    found = fact_contrasts(tmp_path, values, {("online-KD", CONTROL): "main"})
    cosine, precision, recall = found
    assert cosine.difference == pytest.approx(0.175) and cosine.difference_low < 0.175 < cosine.difference_high
    assert cosine.p == pytest.approx(precision.p) == pytest.approx(ttest_rel(*values.values()).pvalue)
    assert cosine.p_holm == pytest.approx(2 * cosine.p) or cosine.p_holm == pytest.approx(3 * min(cosine.p, recall.p))
    assert (recall.difference, recall.difference_high) == (0.75, 1)  # no further than two shares are apart


def test_costs_of_several_sessions_or_machines_are_told_apart(assessed, monkeypatch, tmp_path):
    manifest = read_json(assessed.logs / "manifest.json")
    assert len(set(manifest["measured"].values())) == 1
    [note] = cost_table(assessed.logs).notes
    assert "one session" not in note
    for name in ("costs.csv", "summary.csv"):
        shutil.copy(assessed.logs / name, tmp_path)
    manifest["measured"]["online-KD"] = "2026-01-01 on abc"
    write_json(tmp_path / "manifest.json", manifest)
    [note] = cost_table(tmp_path).notes
    assert "Not all were measured in one session on one machine" in note and "online KD: 2026-01-01 on abc" in note
    row = next(row for row in cost_table(tmp_path).rows if getattr(row[0], "model", "") == CONTROL)
    right = sum(r.correct for r in read_logs(assessed)[CONTROL]) / 6
    assert row[1] == percent(right) and float(row[5]) == pytest.approx(3600 * float(row[4]), rel=0.01)


def test_help_has_examples():
    said = CliRunner().invoke(app, ["compare-models", "--help"]).output
    assert "baby-llama" in said
