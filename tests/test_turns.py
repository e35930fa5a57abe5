"""Where a turn ends, what a template is told, and where a priming text stands, with templates as families have them."""

import copy
import datetime
import json
from pathlib import Path

import fake_exllamav2
import pytest
import torch
from api_server import VARIABLE, api_section, good, good_answer, serving
from chat_families import ENDS, FAMILIES, ending_with, family_model
from conftest import POCKET, small_profile, write_profile
from pydantic import ValidationError
from typer.testing import CliRunner

from primekd.capture.jobs import build_spec, held_out_job, training_job
from primekd.capture.primings import priming_of
from primekd.capture.run import capture
from primekd.cli import app
from primekd.config import TeacherConfig, arms, load_profile
from primekd.config.arm import Arm
from primekd.config.arms import get_arm, load_arms
from primekd.foundation import hash_json
from primekd.foundation.errors import UserError
from primekd.models import load_tokenizer, require_same_tokenizer, template_hash
from primekd.models.chat import Priming, build_prompt, decode_response, encode_response
from primekd.models.template import DATE, default_system, render, turn_end
from primekd.planning.plan import make_plan
from primekd.running import doctor
from primekd.tasks.load import load_items
from primekd.teachers import Response, Sampling
from primekd.teachers.api import ApiEngine
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.teachers.vllm_engine import generation_settings, students_config

QUESTION = "How many are 3 and 4?"
LORA = {"lora": {"rank": 2, "alpha": 4, "target_modules": ["q_proj"]}, "dtype": "float32"}


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, str]:
    """A random model of each family."""
    return {name: family_model(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


def id_of(tokenizer, token: str) -> int:
    return tokenizer.convert_tokens_to_ids(token)


def profile_of(folder: Path, model: str, base: str | None = None, **changes):
    """The profile `ci` with another teacher and student (`base`, where it is another model) and further keys."""
    sections = {"teacher": {"model": model}, "student": {"model": base or model} | LORA}
    for name in sections:
        sections[name] |= changes.pop(name, {})
    return small_profile(folder, **sections, **changes)


def test_a_template_that_leaves_out_the_question_is_refused(references, tmp_path):
    """As one does that reads contents as a list of parts: every prompt would be the same."""
    tokenizer = copy.deepcopy(load_tokenizer(references["qwen"]))
    parts = "{% for part in m.content %}{{ part.text }}{% endfor %}"
    tokenizer.chat_template = "{% for m in messages %}" + parts + "<|im_end|>{% endfor %}"
    family_model(tmp_path, "qwen")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="leaves out what a user says.*template_of"):
        load_tokenizer(TeacherConfig(engine="vllm", model=f"path:{tmp_path}"))


# Where a turn ends.


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_ends_with_what_the_template_writes_and_with_what_generation_config_names(name, references):
    tokenizer = load_tokenizer(references[name])
    found, named = turn_end(tokenizer), FAMILIES[name][2] or []
    assert tokenizer.convert_ids_to_tokens(found.token) == ENDS[name]
    assert found.stops == {id_of(tokenizer, t) for t in {ENDS[name], tokenizer.eos_token, *named}}
    assert found.written == (name != "plain")


@pytest.mark.parametrize(
    "name", [n for n in FAMILIES if n != "spaced"]
)  # its prompts do not begin as its conversations do
def test_a_gold_response_is_what_the_template_writes_of_it(name, references):
    """The prompt and the response are a prefix of the whole conversation as the template renders it, end included."""
    tokenizer = load_tokenizer(references[name])
    if name == "qwen":  # it writes an empty thought into finished turns
        tokenizer = load_tokenizer(TeacherConfig(engine="vllm", model=references[name], template_arguments=CALM))
    ids = [*build_prompt(tokenizer, QUESTION), *encode_response(tokenizer, "They are 7.")]
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "They are 7."}]
    if name == "glm":  # the token that ends a turn begins the next one
        messages.append(messages[0])
    whole = tokenizer(render(tokenizer, messages, generate=False), add_special_tokens=False)["input_ids"]
    assert whole[: len(ids) - (name == "plain")] == ids[: len(ids) - (name == "plain")]
    assert ids[-1] == id_of(tokenizer, ENDS[name]) and decode_response(tokenizer, ids[-12:]).endswith("They are 7.")


def test_what_stands_between_an_answer_and_its_end_belongs_to_the_response(references):
    tokenizer = load_tokenizer(references["spaced"])
    assert tokenizer.decode(encode_response(tokenizer, "They are 7.")) == "They are 7. </s>"


def test_without_a_control_token_the_end_of_text_ends_a_turn_and_doctor_says_so(references, tmp_path):
    tokenizer = load_tokenizer(references["plain"])
    assert encode_response(tokenizer, "7")[-1] == tokenizer.eos_token_id
    (finding,) = doctor.check_templates(profile_of(tmp_path, references["plain"]))
    assert finding.level == "warning" and "no control token behind an answer: </s>" in finding.text


def test_an_end_that_is_no_control_token_is_not_read_as_text(references):
    tokenizer = copy.deepcopy(load_tokenizer(references["plain"]))
    tokenizer.stop_ids = (65,)
    ids = [*tokenizer("ab", add_special_tokens=False)["input_ids"], 65]
    assert decode_response(tokenizer, ids) == "ab"


@pytest.mark.parametrize("value, expected", [(None, []), (5, [5]), ([5, 6], [5, 6])])
def test_generation_config_names_one_end_or_several_or_none(value, expected, tmp_path):
    from primekd.models.tokenizers import stop_ids

    assert stop_ids(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
    assert stop_ids(tmp_path) == expected
    (tmp_path / "generation_config.json").write_text("{}")  # where it is there, it alone counts
    assert stop_ids(tmp_path) == []


@pytest.mark.parametrize("value", ["<eos>", [1.5], True, {"a": 1}, [None], -1])
def test_damaged_ends_are_named(value, tmp_path):
    from primekd.models.tokenizers import stop_ids

    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match="generation_config.json: eos_token_id is no list of token ids"):
        stop_ids(tmp_path)


# Engines end there.


def say(engine: TransformersEngine, prompt: list[int], place: int, token: int) -> None:
    """Makes the model say `token` at a place of its greedy answer, by exchanging two rows of its head."""
    said = engine.generate([prompt], Sampling(place + 1))[0].ids[place]
    rows = engine.model.lm_head.weight
    with torch.no_grad():
        rows[[said, token]] = rows[[token, said]]


@pytest.mark.parametrize("library", [False, True], ids=["own loop", "transformers' loop"])
@pytest.mark.parametrize("name", ["gemma", "phi", "llama", "qwen", "glm"])
def test_transformers_ends_with_every_end_of_the_family(name, library, references, monkeypatch):
    for end in FAMILIES[name][2]:
        engine = TransformersEngine(references[name], "float32")
        ends = sorted(turn_end(engine.tokenizer).stops)
        assert engine.decodes and engine.model.generation_config.eos_token_id == ends
        if library:
            monkeypatch.setattr(engine, "decodes", False)
        prompt, token = build_prompt(engine.tokenizer, QUESTION), id_of(engine.tokenizer, end)
        free = engine.generate([prompt], Sampling(8))[0]
        assert free.truncated and len(free.ids) == 8
        say(engine, prompt, 3, token)
        (response,), (rows,) = engine.generate_scored([prompt], Sampling(8), "logits")
        assert response.ids[:3] == free.ids[:3] or token in free.ids
        assert response.ids[-1] == token and not response.truncated and len(rows) == len(response.ids) <= 4
        assert rows[-1].argmax() == token  # the row of the token that was said, not of the template's own end
        assert decode_response(engine.tokenizer, response.ids) == engine.tokenizer.decode(response.ids[:-1])


def test_exllamav2_ends_with_the_templates_end_and_with_the_others(tmp_path, monkeypatch):
    from test_exllamav2 import PROMPTS, ExLlamaV2Engine

    tokenizer = ending_with_100_tokens()
    fake_exllamav2.install(monkeypatch)
    monkeypatch.setattr("primekd.teachers.exllamav2_engine.load_tokenizer", lambda _: tokenizer)
    quantization = {"quant_method": "exl2", "version": "0.3.2", "bits": 4.5, "head_bits": 6}
    (tmp_path / "config.json").write_text(json.dumps({"rope_theta": 1e5, "quantization_config": quantization}))
    (tmp_path / "output.safetensors").write_bytes(b"fake")
    engine = ExLlamaV2Engine(TeacherConfig(engine="exllamav2", model=f"path:{tmp_path}", context_tokens=200))
    free = engine.generate(PROMPTS, Sampling(8))
    end, other = free[1].ids[3], free[0].ids[5]
    engine.tokenizer = ending_with(tokenizer, end)
    engine.tokenizer.stop_ids = (other,)
    for before, after in zip(free, engine.generate(PROMPTS, Sampling(8)), strict=True):
        places = [place for place, token in enumerate(before.ids) if token in (end, other)]
        assert after == (Response(before.ids[: places[0] + 1], False) if places else before)


def ending_with_100_tokens():
    """As many words as the fake model has tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, fake_exllamav2.VOCABULARY))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")


def test_vllm_is_told_every_end_for_teachers_and_students(references, tmp_path):
    end = turn_end(load_tokenizer(references["gemma"]))
    (settings,) = generation_settings(Sampling(7), end.stops, 1)
    assert settings["stop_token_ids"] == sorted(end.stops) and len(end.stops) == 2 and settings["ignore_eos"]
    student = {"template_of": references["gemma"]}
    profile = profile_of(
        tmp_path, references["gemma"], base_of(references["gemma"], tmp_path / "base"), student=student
    )
    items = load_items(profile, "test")
    assert turn_end(load_tokenizer(students_config(profile, items))) == end


def api_engine(server, reference: str, folder: Path, **api) -> ApiEngine:
    config = TeacherConfig(engine="api", model=reference, api=api_section(server, **api))
    return ApiEngine(config, 2, folder / "spending.json")


@pytest.mark.parametrize("logprobs", [True, False])
def test_an_api_that_hides_the_end_of_turn_is_given_the_templates(logprobs, references, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "key")
    tokenizer = load_tokenizer(references["gemma"])
    with serving(good(references["gemma"])) as server:
        engine = api_engine(server, references["gemma"], tmp_path, logprobs=logprobs)
        (response,) = engine.generate([build_prompt(tokenizer, QUESTION)], Sampling(12))
    assert response == Response(encode_response(tokenizer, "It is 7."), False)
    assert tokenizer.convert_ids_to_tokens(response.ids[-1]) == "<end_of_turn>"


def shows(reference: str, *tokens: str):
    """A server that shows control tokens in its log-probs, as the text does not."""

    def behave(handler, request):
        answer = good_answer(reference, request)
        content = answer["choices"][0]["logprobs"]["content"]
        for place, token in tokens_at(tokens, len(content)):
            row = {"token": token, "logprob": -0.1, "bytes": list(token.encode())}
            content.insert(place, row | {"top_logprobs": [row]})
        answer["usage"]["completion_tokens"] = len(content)
        handler.reply(answer)

    return behave


def tokens_at(tokens, end):
    return [(end, tokens[0])] if len(tokens) == 1 else [(0, tokens[0])]


def test_an_api_that_shows_another_end_keeps_it_with_its_row(references, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "key")
    tokenizer = load_tokenizer(references["gemma"])
    with serving(shows(references["gemma"], "<eos>")) as server:
        engine = api_engine(server, references["gemma"], tmp_path)
        prompts = [build_prompt(tokenizer, QUESTION)]
        (response,), (rows,) = engine.generate_scored(prompts, Sampling(12), "top")
    assert response.ids[-1] == id_of(tokenizer, "<eos>") == rows.ids[-1, 0] and not response.truncated


def test_an_api_that_writes_on_behind_the_end_of_turn_is_refused(references, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "key")
    tokenizer = load_tokenizer(references["gemma"])
    with serving(shows(references["gemma"], "<end_of_turn>", "more")) as server:
        engine = api_engine(server, references["gemma"], tmp_path)
        with pytest.raises(UserError, match="wrote on behind <end_of_turn>.*teacher.api.prompt"):
            engine.generate([build_prompt(tokenizer, QUESTION)], Sampling(12))


def test_an_api_that_is_sent_a_rendered_prompt_is_told_where_a_turn_ends(references, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "key")

    def behave(handler, request):
        reply = good_answer(references["gemma"], {"model": "m"})
        reply["choices"][0]["text"] = reply["choices"][0].pop("message")["content"]
        del reply["usage"]
        handler.reply(reply)

    tokenizer = load_tokenizer(references["gemma"])
    with serving(behave) as server:
        engine = api_engine(server, references["gemma"], tmp_path, prompt="text", logprobs=False)
        engine.generate([build_prompt(tokenizer, QUESTION)], Sampling(12))
    assert server.requests[0]["stop"] == ["<end_of_turn>"]


def test_a_capture_and_its_students_end_where_the_template_does(references, tmp_path, output):
    """From the teacher's store to the student's training sequence, with a family whose eos never ends a turn."""
    from primekd.signals import SignalReader
    from primekd.training.examples import gold_examples, teacher_examples

    profile = profile_of(tmp_path, references["gemma"], teacher={"priming_placement": "user"})
    folder = capture(training_job(profile, "ai-KD"))
    reader, items = SignalReader(folder), load_items(profile, "train")
    tokenizer, end = load_tokenizer(profile.student), turn_end(load_tokenizer(profile.student))
    assert reader.spec["turn_end"] == {"token": end.token, "stops": sorted(end.stops), "before": "", "written": True}
    for item, example in zip(items, teacher_examples(tokenizer, items, reader), strict=True):
        stored = reader.item(item.id)
        assert stored.truncated == (example.sequence.input_ids[-1] not in end.stops)
    assert {e.sequence.input_ids[-1] for e in gold_examples(tokenizer, items)} == {end.token}


def test_another_list_of_ends_is_another_store_and_other_answers(references, tmp_path):
    from primekd.assessment.answers import answer_inputs

    profile = profile_of(tmp_path, references["llama"])  # with an end that no template of it writes
    items, job = load_items(profile, "test"), held_out_job(profile)
    before = hash_json(build_spec(job, items)), hash_json(answer_inputs(profile, items, None))
    tokenizer = load_tokenizer(profile.teacher)
    kept, tokenizer.stop_ids = tokenizer.stop_ids, ()
    after = hash_json(build_spec(job, items)), hash_json(answer_inputs(profile, items, None))
    tokenizer.stop_ids = kept
    assert all(a != b for a, b in zip(before, after, strict=True))


# Templates.


class Day(datetime.datetime):
    """Another day at each look."""

    days = 0

    @classmethod
    def now(cls, tz=None):
        cls.days += 1
        return datetime.datetime(2031, 1, 1) + datetime.timedelta(days=40 * cls.days)


def test_no_prompt_holds_todays_date(references, monkeypatch):
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Day)
    tokenizer = load_tokenizer(references["llama"])
    assert tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False).count("2031")  # by itself
    for priming in (None, "Be brief."):
        texts = {build_prompt(tokenizer, QUESTION, priming).text for _ in range(2)}
        assert len(texts) == 1 and "Today Date: 26 July 2024, 26.7.24 (Friday, 208)" in texts.pop()


@pytest.mark.parametrize("written", ["%Y-%m-%d", "%B %d, %Y", "%d %b %Y", "%A %-d. %-m. %y, %H:%M:%S", "100 %% of %j"])
def test_every_way_to_write_the_date_is_that_of_one_day(written, references):
    tokenizer = copy.deepcopy(load_tokenizer(references["llama"]))
    tokenizer.chat_template = (
        "{% set form = '" + written + "' %}" + "{{ strftime_now(form) }}|{{ messages[0].content }}"
    )
    assert build_prompt(tokenizer, QUESTION).text == f"{DATE.strftime(written)}|{QUESTION}"


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "  {% set x = 1 %}", "\t{% if true %}\n  a{% endif %}", " a"])
def test_a_dated_template_keeps_its_white_space(start, references):
    tokenizer = copy.deepcopy(load_tokenizer(references["llama"]))
    tokenizer.chat_template = start + "{% if false %}{{ strftime_now('%d') }}{% endif %}{{ messages[0].content }}"
    plain = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], tokenize=False)
    assert build_prompt(tokenizer, QUESTION).text == plain


CALM = {"enable_thinking": False}


def test_template_arguments_reach_prompts_specs_and_students(references, tmp_path):
    profile = profile_of(tmp_path, references["qwen"], teacher={"template_arguments": CALM})
    plain = profile_of(tmp_path, references["qwen"])
    teacher, student = load_tokenizer(profile.teacher), load_tokenizer(profile.student)
    assert build_prompt(teacher, QUESTION).text.endswith("assistant\n<think>\n\n</think>\n\n")
    assert build_prompt(student, QUESTION).text.endswith("assistant\n")  # each has its own
    items = load_items(profile, "train")
    specs = [build_spec(training_job(p, "base-KD"), items) for p in (profile, plain)]
    assert {key for key in specs[0] if specs[0][key] != specs[1][key]} == {"teacher", "template_sha256", "prompt"}
    assert template_hash(teacher) != template_hash(student) == template_hash(load_tokenizer(references["qwen"]))


@pytest.mark.parametrize("arguments", [{"messages": []}, {"strftime_now": 1}, {"a b": 1}, {"add_generation_prompt": 0}])
def test_a_template_is_not_told_what_is_the_librarys_to_tell(arguments):
    with pytest.raises(ValidationError, match="no argument that a profile can give a template"):
        TeacherConfig(engine="vllm", model="hub:a/b", template_arguments=arguments)


def test_arguments_that_a_template_does_not_know_are_refused(references, tmp_path):
    profile = profile_of(tmp_path, references["qwen"], teacher={"template_arguments": {"enable_thinkin": False}})
    with pytest.raises(UserError, match="knows no enable_thinkin: mend template_arguments"):
        load_tokenizer(profile.teacher)


def test_a_server_that_renders_by_itself_is_told_by_itself(references):
    section = api_section("http://127.0.0.1:1/v1")
    with pytest.raises(ValidationError, match="chat_template_kwargs"):
        TeacherConfig(engine="api", model=references["qwen"], api=section, template_arguments=CALM)
    section |= {"request": {"chat_template_kwargs": CALM}}
    TeacherConfig(engine="api", model=references["qwen"], api=section)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% if %}", "{{ messages[7].content.x.y }}", "{{ raise_exception('no') }}"]
)
def test_a_template_that_fails_is_one_sentence(template, references):
    tokenizer = copy.deepcopy(load_tokenizer(references["qwen"]))
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="The chat template of .* refuses messages of user .*mend its template"):
        build_prompt(tokenizer, QUESTION)


# Where the priming stands.


@pytest.mark.parametrize("name", ["gemma", "spaced"], ids=["refused by the template", "left out by the template"])
def test_a_template_without_a_system_role_is_found_out_before_anything_is_spent(
    name, references, tmp_path, monkeypatch
):
    monkeypatch.setattr("primekd.capture.run.open_engine", lambda _: pytest.fail("the teacher was loaded"))
    profile = profile_of(tmp_path, references[name])
    said = f"The chat template of {references[name]} takes no system message.*teacher.priming_placement to user"
    for strategy in ("ai-KD", "base-KD"):  # what would fail later is said at the beginning
        with pytest.raises(UserError, match=said):
            capture(training_job(profile, strategy))
    with pytest.raises(UserError, match=said):
        make_plan(profile)
    assert any("teacher.priming_placement" in found.text for found in doctor.check_templates(profile))
    build_prompt(load_tokenizer(references[name]), QUESTION)  # nothing is wrong with a question alone


def test_the_sentence_is_all_that_is_printed(references, tmp_path):
    path = write_profile(
        tmp_path, teacher={"model": references["gemma"]}, student={"model": references["gemma"]} | LORA
    )
    result = CliRunner().invoke(app, ["capture", "ai-KD", "--profile", str(path)])
    assert result.exit_code != 0 and "priming_placement" in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_priming_text_can_stand_in_front_of_the_question(references, tmp_path):
    text = get_arm("ai-KD").priming
    for name in ("gemma", "qwen"):
        profile = profile_of(tmp_path, references[name], teacher={"priming_placement": "user"})
        teacher = load_tokenizer(profile.teacher)
        prompt = build_prompt(teacher, QUESTION, priming_of(get_arm("ai-KD"), profile.teacher))
        assert prompt.messages == [{"role": "user", "content": f"{text}\n\n{QUESTION}"}]
        assert prompt.text == build_prompt(teacher, QUESTION).text.replace(QUESTION, f"{text}\n\n{QUESTION}")
        spec = build_spec(training_job(profile, "ai-KD"), load_items(profile, "train"))
        assert spec["priming_placement"] == "user" and f"{text}\n\n{{question}}" in spec["prompt"]
        unprimed = build_spec(training_job(profile, "base-KD"), load_items(profile, "train"))
        assert unprimed["priming_placement"] is None


@pytest.mark.parametrize("name, default", [("qwen", "You are Q."), ("llama", ""), ("phi", ""), ("gemma", None)])
def test_the_default_system_text_is_found_by_rendering(name, default, references):
    tokenizer = load_tokenizer(references[name])
    if default is None:
        with pytest.raises(UserError, match="takes no system message"):
            build_prompt(tokenizer, QUESTION, Priming("P", mode="add"))
        return
    assert default_system(tokenizer) == default
    added, replaced = (build_prompt(tokenizer, QUESTION, Priming("P", mode=mode)).text for mode in ("add", "replace"))
    assert f"{default}\n\nP" in added if default else added == replaced
    assert not default or default not in replaced


def test_the_pocket_models_default_text_is_replaced_or_kept(tokenizer):
    default = default_system(tokenizer)
    assert default.startswith("You are a helpful AI assistant")
    assert f"system\n{default}\n\nP<|im_end|>" in build_prompt(tokenizer, QUESTION, Priming("P", mode="add")).text


def test_mode_and_placement_change_what_primed_stores_are_keyed_on_and_no_other(references, tmp_path):
    changes = [{}, {"priming_mode": "add"}, {"priming_placement": "user"}]
    profiles = [profile_of(tmp_path, references["qwen"], teacher=change) for change in changes]
    items = load_items(profiles[0], "train")
    primed, unprimed = (
        {hash_json(build_spec(training_job(profile, name), items)) for profile in profiles}
        for name in ("ai-KD", "base-KD")
    )
    assert len(primed) == 3 and len(unprimed) == 1


def test_the_prompts_table_and_the_report_show_what_differs(references, tmp_path):
    from primekd.report.display import prompts
    from primekd.report.lineage import _of_signals

    profile = profile_of(tmp_path, references["qwen"])
    primed, plain, student = prompts(profile, "ai-KD").html.split("<figure")[1:]
    assert ["You are Q." in text for text in (primed, plain, student)] == [False, True, True]
    spec = build_spec(training_job(profile, "base-KD"), load_items(profile, "train"))
    assert "You are Q." in dict(_of_signals({"spec": spec}, None))["What the teacher reads"]


# Strategies of others' texts.


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A strategies file with one primed strategy; returns a function that writes it and reads it."""

    def write(**row) -> Arm:
        path = tmp_path / "strategies.yaml"
        path.write_text(json.dumps({"ai-KD": {"title": "t", "role": "treatment"} | row}))
        return load_arms()["ai-KD"]

    monkeypatch.setattr(arms, "arms_file", lambda: tmp_path / "strategies.yaml")
    monkeypatch.setattr(arms, "project_root", lambda: tmp_path)
    return write


@pytest.mark.parametrize("absolute", [True, False])
def test_a_priming_text_can_lie_in_a_file(absolute, written, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfThink\nhard.\n")
    strategy = written(priming_file=str(tmp_path / "text.txt") if absolute else "text.txt", placement="user")
    assert strategy.priming == "Think\nhard."
    teacher = TeacherConfig(engine="vllm", model="hub:a/b", priming_mode="add")
    assert priming_of(strategy, teacher) == Priming("Think\nhard.", "user", "add")


def test_the_files_text_is_what_a_store_is_keyed_on(written, tmp_path, references):
    profile = profile_of(tmp_path, references["qwen"])
    items, hashes = load_items(profile, "train"), []
    for name, text in (("one.txt", "Think."), ("two.txt", "Think hard."), ("three.txt", "Think.\n")):
        (tmp_path / name).write_text(text)
        written(priming_file=name)
        hashes.append(hash_json(build_spec(training_job(profile, "ai-KD"), items)))
    assert hashes[0] != hashes[1] and hashes[0] == hashes[2]


@pytest.mark.parametrize(
    "row, said",
    [
        ({"priming_file": "absent.txt"}, "ai-KD: priming_file absent.txt is no readable UTF-8 text"),
        ({"priming_file": "latin.txt"}, "latin.txt is no readable UTF-8 text"),
        ({"priming_file": "blank.txt"}, "blank.txt is empty"),
        ({"priming_file": "blank.txt", "priming": "x"}, "both priming and priming_file"),
        ({"role": "baseline", "placement": "user"}, "a placement and no priming"),
        ({"priming": "x", "placement": "assistant"}, "placement"),
    ],
)
def test_priming_files_that_do_not_do_are_one_sentence(row, said, written, tmp_path):
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(UserError, match=said):
        written(**row)


# Two models, one language.


def base_of(reference: str, folder: Path, template: str | None = None, eos: str | None = None) -> str:
    """The base model of a family: the same vocabulary, another end of text, and perhaps no template."""
    tokenizer = copy.deepcopy(load_tokenizer(reference))
    tokenizer.chat_template = template
    if eos:
        tokenizer.eos_token = eos
    tokenizer.save_pretrained(folder)
    source = Path(reference.removeprefix("path:"))
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    return f"path:{folder}"


def test_another_end_of_text_is_allowed_where_a_turn_ends_alike(references, tmp_path):
    base = base_of(references["qwen"], tmp_path / "base", load_tokenizer(references["qwen"]).chat_template, "<s>")
    require_same_tokenizer(references["qwen"], base)
    profile = profile_of(tmp_path, references["qwen"], base)
    assert encode_response(load_tokenizer(profile.student), "7")[-1] == id_of(load_tokenizer(base), "<|im_end|>")


def test_turns_that_end_differently_are_refused_by_name(references, tmp_path):
    other = load_tokenizer(references["qwen"]).chat_template.replace("<|im_end|>", "<s>")
    base = base_of(references["qwen"], tmp_path / "base", other)
    with pytest.raises(UserError, match=r"with \d+ <\|im_end\|> and \d+ <s>: set student.template_of to path:"):
        require_same_tokenizer(references["qwen"], base)


def test_another_vocabulary_is_refused_with_what_differs(references):
    with pytest.raises(
        UserError, match=r"260 and 262 tokens, \d+ entries differ, the first is '<eos>' at 256\).*family"
    ):
        require_same_tokenizer(references["gemma"], references["phi"])


def test_a_base_student_is_refused_with_the_way_out_and_then_uses_the_teachers_template(references, tmp_path, output):
    """Its own end of text still ends an answer."""
    from primekd.assessment.score import CONTROL, Model

    base = base_of(references["qwen"], tmp_path / "base", eos="<|endoftext|>")
    with pytest.raises(UserError, match=r"base has no chat template.*\(student.template_of"):
        capture(training_job(profile_of(tmp_path, references["qwen"], base), "base-KD"))
    profile = profile_of(tmp_path, references["qwen"], base, student={"template_of": references["qwen"]})
    require_same_tokenizer(profile.teacher, profile.student)
    student, teacher = load_tokenizer(profile.student), load_tokenizer(profile.teacher)
    assert build_prompt(student, QUESTION) == build_prompt(teacher, QUESTION)
    assert turn_end(student).stops == {id_of(student, t) for t in ("<|im_end|>", "<|endoftext|>")}
    assert profile.resolved()["student"]["template_of"] == references["qwen"]  # as manifests say it
    engine = Model(CONTROL).open(profile)
    prompt = build_prompt(student, QUESTION)
    say(engine, prompt, 2, id_of(student, "<|im_end|>"))
    assert engine.generate([prompt], Sampling(8))[0].ids[-1] == id_of(student, "<|im_end|>")


def test_a_template_is_not_borrowed_from_another_vocabulary(references, tmp_path):
    profile = profile_of(tmp_path, references["qwen"], student={"template_of": references["phi"]})
    with pytest.raises(UserError, match="cannot use the chat template of .*entries differ"):
        load_tokenizer(profile.student)


def test_a_gguf_file_names_its_ends(ci):
    assert load_tokenizer(POCKET).stop_ids == (2,) and load_profile("ci").student == ci.student
