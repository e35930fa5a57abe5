"""Tiny tokenizers that talk as families of published chat models do. The templates are ours, written in their style."""

import copy
import json
from pathlib import Path

from conftest import save_llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from primekd.models.template import turn_end

GENERATE = "{% if add_generation_prompt %}"
# No system role; the model's role has a name of its own; a line ends behind the end of a turn.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}" + GENERATE + "<start_of_turn>model\n{% endif %}"
)
# Behind a whole conversation the end of text follows the end of the turn.
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    + GENERATE + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)  # fmt: skip
# The date of the day, as long as nobody names another, and a system message around it.
LLAMA = (
    "  {% if date is not defined %}{% set date = strftime_now('%d %B %Y, %-d.%-m.%y (%A, %j)') %}{% endif %}"
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    + GENERATE + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)  # fmt: skip
# Thinks unless told not to; has a system text of its own.
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Q.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    + GENERATE
    + "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# A space in front of the end; system messages are left out in silence.
SPACED = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }} </s>{% endfor %}"
    + GENERATE
    + "[A]{% endif %}"
)
# No end of a turn but the next turn's first token, which generation_config names.
GLM = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}" + GENERATE + "<|assistant|>\n{% endif %}"
# Nothing special at all.
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + GENERATE + "assistant: {% endif %}"

# name -> template, control tokens (the first is the end of text, the second BOS), generation_config's ends
FAMILIES = {
    "gemma": (GEMMA, ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], ["<eos>", "<end_of_turn>"]),
    "phi": (
        PHI,
        ["<|endoftext|>", "<s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        ["<|endoftext|>", "<|end|>"],
    ),
    "llama": (
        LLAMA,
        ["<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
         "<|eot_id|>"],
        ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
    ),
    "qwen": (QWEN, ["<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"], ["<|im_end|>", "<|endoftext|>"]),
    "spaced": (SPACED, ["</s>", "<s>"], None),
    "glm": (GLM, ["<|endoftext|>", "<s>", "<|user|>", "<|assistant|>", "<|system|>"], ["<|endoftext|>", "<|user|>"]),
    "plain": (PLAIN, ["</s>", "<s>"], None),
}  # fmt: skip
ENDS = {
    "gemma": "<end_of_turn>", "phi": "<|end|>", "llama": "<|eot_id|>", "qwen": "<|im_end|>", "spaced": "</s>",
    "glm": "<|user|>", "plain": "</s>",
}  # fmt: skip


def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """256 bytes and the family's control tokens; the end of text is the tokenizer's `eos`."""
    template, controls, _ = FAMILIES[name]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(control, special=True) for control in controls])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=controls[0], bos_token=controls[1])
    made.chat_template = template
    return made


def family_model(folder: Path, name: str) -> str:
    """A random Llama of that family, with its generation_config; returns its reference."""
    tokenizer = family_tokenizer(name)
    reference = save_llama(folder, tokenizer, seed=3)
    ends = FAMILIES[name][2]
    ids = None if ends is None else [tokenizer.convert_tokens_to_ids(end) for end in ends]
    (folder / "generation_config.json").write_text(json.dumps({} if ids is None else {"eos_token_id": ids}))
    return reference


def ending_with(tokenizer, token: int):
    """The tokenizer with a template that ends turns with that token."""
    changed, text = copy.deepcopy(tokenizer), tokenizer.convert_ids_to_tokens(token)
    changed.add_tokens([AddedToken(text, special=True, normalized=False)])
    changed.chat_template = "{% for m in messages %}{{ m.content }}" + text + "\n{% endfor %}"
    assert turn_end(changed).token == token != changed.eos_token_id
    return changed
