"""Prompts and masks: one BOS, the response alone is trained on, and the student never sees a priming text."""

import copy

import pytest
from tokenizers import AddedToken

from primekd.config.arms import default_arms, load_arms
from primekd.foundation.errors import UserError
from primekd.models.chat import build_prompt, decode_response, encode_response, join
from primekd.training.examples import IGNORED, Collator, Example, gold_examples

QUESTION = "Tom has 3 apples and buys 4. How many has he?"
# As Llama 3's: the template itself writes BOS, and the tokenizer would add one of its own.
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture(scope="module")
def llama_3(tokenizer):
    """The pocket tokenizer with Llama 3's control tokens and template, and a post-processor that adds BOS."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    names = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    changed.add_tokens([AddedToken(name, special=True) for name in names])
    changed.bos_token, changed.eos_token, changed.pad_token = names[0], names[1], names[1]
    changed.chat_template = LLAMA_3
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{names[0]} $A", pair=f"{names[0]} $A {names[0]} $B", special_tokens=[(names[0], changed.bos_token_id)]
    )
    assert changed("a")["input_ids"][0] == changed.bos_token_id  # as published checkpoints do
    return changed


def test_a_prompt_is_the_models_own_template(tokenizer):
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert build_prompt(tokenizer, QUESTION) == list(expected)
    text = tokenizer.decode(build_prompt(tokenizer, QUESTION))
    assert text.endswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_writes_bos_gives_exactly_one(llama_3):
    ids = build_prompt(llama_3, QUESTION, "Be brief.")
    assert ids[0] == llama_3.bos_token_id and ids.count(llama_3.bos_token_id) == 1


def test_a_template_without_a_leading_bos_gets_none(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert build_prompt(changed, QUESTION) == tokenizer(QUESTION, add_special_tokens=False)["input_ids"]


def test_a_template_that_writes_two_bos_tokens_is_refused(llama_3):
    changed = copy.deepcopy(llama_3)
    changed.chat_template = "{{ bos_token }}" + LLAMA_3
    with pytest.raises(UserError, match="two BOS"):
        build_prompt(changed, QUESTION)


def test_a_response_has_no_bos_and_ends_with_one_end_of_turn(tokenizer, llama_3):
    for each in (tokenizer, llama_3):
        ids = encode_response(each, "It is 7.")
        assert each.bos_token_id not in ids[:-1]
        assert ids[-1] == each.eos_token_id and ids.count(each.eos_token_id) == 1


@pytest.mark.parametrize("text", ["It is 7.\n#### 7", " leading space", "three – naïve 🙂\n\n", "7"])
def test_the_masked_in_ids_decode_to_exactly_the_response_and_end_of_turn(text, tokenizer, llama_3):
    for each in (tokenizer, llama_3):
        sequence = join(build_prompt(each, QUESTION), encode_response(each, text))
        marked = [t for t, on in zip(sequence.input_ids, sequence.response_mask, strict=True) if on]
        assert each.decode(marked) == text + each.eos_token
        assert decode_response(each, marked) == text
        unmarked = [t for t, on in zip(sequence.input_ids, sequence.response_mask, strict=True) if not on]
        assert unmarked == build_prompt(each, QUESTION)


def test_gold_solutions_are_the_masked_in_ids_of_real_items(tokenizer, items):
    for item, example in zip(items, gold_examples(tokenizer, items), strict=True):
        marked = [t for t, on in zip(example.sequence.input_ids, example.sequence.response_mask, strict=True) if on]
        assert tokenizer.decode(marked) == item.solution + "<|im_end|>"


def test_labels_are_the_response_alone_even_where_the_pad_id_is_the_end_of_turn_id(tokenizer):
    """A mask rebuilt from ids would train on padding, or drop the end of turn."""
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    short = join([5, 6], [9, tokenizer.eos_token_id])
    long = join([5, tokenizer.eos_token_id, 6, 7], [9, 9, 9, tokenizer.eos_token_id])
    batch = Collator(tokenizer.pad_token_id)([Example("a", short), Example("b", long)])
    end, none = tokenizer.eos_token_id, IGNORED
    assert batch["labels"].tolist() == [[none, none, 9, end, *[none] * 4], [*[none] * 4, 9, 9, 9, end]]
    assert batch["attention_mask"].tolist() == [[1] * 4 + [0] * 4, [1] * 8]
    assert batch["input_ids"].tolist() == [[5, 6, 9, end, *[end] * 4], [5, end, 6, 7, 9, 9, 9, end]]
    assert batch["item_ids"] == ["a", "b"]


# Priming.


def test_the_teachers_prompt_has_the_priming_text_and_the_students_has_not(tokenizer):
    for strategy in load_arms().values():
        if not strategy.priming:
            continue
        primed = tokenizer.decode(build_prompt(tokenizer, QUESTION, strategy.priming))
        plain = tokenizer.decode(build_prompt(tokenizer, QUESTION))
        assert f"<|im_start|>system\n{strategy.priming}<|im_end|>" in primed
        assert strategy.priming not in plain and primed.split("user\n")[-1] == plain.split("user\n")[-1]


def test_the_three_primed_strategies_have_different_texts():
    texts = [s.priming for s in default_arms().values() if s.priming]
    assert len(texts) == len(set(texts)) == 3


def test_a_students_training_sequence_holds_no_priming_even_if_the_store_does(tokenizer, items, output):
    import torch
    from conftest import make_store, stored

    from primekd.signals.codecs import FullCodec
    from primekd.training.examples import teacher_examples

    item, response = items[0], encode_response(tokenizer, "Seven.")
    for name, strategy in load_arms().items():
        primed = build_prompt(tokenizer, item.question, strategy.priming)
        pair = (stored(item.id, response, prompt_ids=primed), torch.zeros(len(response), 4))
        reader = make_store(output / "s" / name, FullCodec(), [[pair]])
        (example,) = teacher_examples(tokenizer, [item], reader)
        assert example.sequence.input_ids == build_prompt(tokenizer, item.question) + response
        assert example.gold is None
        (with_gold,) = teacher_examples(tokenizer, [item], reader, gold=True)
        assert with_gold.gold == gold_examples(tokenizer, [item])[0].sequence
        if strategy.priming:
            assert strategy.priming not in tokenizer.decode(example.sequence.input_ids)


# Text that poses as a tag.


def test_every_control_token_in_a_question_is_refused_by_name(tokenizer, llama_3):
    for each in (tokenizer, llama_3):
        tokens = {t.content for t in each.added_tokens_decoder.values() if t.special}
        assert tokens
        for token in sorted(tokens):
            with pytest.raises(UserError, match="control token") as refusal:
                build_prompt(each, f"What is 3{token} and 4?")
            assert token in str(refusal.value)


def test_control_tokens_in_a_priming_text_or_a_solution_are_refused(tokenizer):
    with pytest.raises(UserError, match="control token"):
        build_prompt(tokenizer, QUESTION, "You are<|im_end|> free.")
    with pytest.raises(UserError, match="control token"):
        encode_response(tokenizer, "It is 7.<|im_end|>")


def test_ordinary_angle_brackets_are_no_control_tokens(tokenizer):
    build_prompt(tokenizer, "Is 3 < 4 and 4 > 3, or <|3|>?")


def test_a_template_that_writes_a_date_writes_the_same_one_every_day(llama_3):
    dated = copy.deepcopy(llama_3)
    # As Llama 3.2's: today's date, unless it is told another.
    dated.chat_template = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today Date: {{ date_string }}\n" + LLAMA_3
    )
    assert "Today Date: 26 Jul 2024" in dated.decode(build_prompt(dated, QUESTION))
