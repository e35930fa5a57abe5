"""A chat template for those who do not know a profile: one that needs no arguments, and Ollama's form of it."""

import copy
import json
import re
from typing import TYPE_CHECKING

from primekd.foundation.errors import UserError
from primekd.models.template import FIXED_DATE, TEMPLATE_DATE, render, turn_end
from primekd.tasks.text import begins_with_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = ("primekdmarka", "primekdmarkb", "primekdmarkc", "primekdmarkd")


def portable(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """The tokenizer with a chat template that says by itself what this project hands it: a profile's arguments and one
    fixed date. Raises UserError if it would then write something else."""
    found = copy.deepcopy(tokenizer)
    if not tokenizer.chat_template:
        return found
    template = tokenizer.get_chat_template()
    given = {"date_string": TEMPLATE_DATE} | tokenizer.template_arguments
    lines = [
        f"{{% set {name} = {'none' if value is None else json.dumps(value)} %}}\n"
        for name, value in given.items()
        if re.search(rf"\b{name}\b", template)
    ]
    found.chat_template = "".join([*lines, FIXED_DATE if "strftime_now" in template else "", template])
    asked = [{"role": "user", "content": MARKS[0]}]
    if found.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) != render(tokenizer, asked):
        raise UserError("The chat template writes something else without the profile's arguments: not exported.")
    return found


def modelfile(tokenizer: "PreTrainedTokenizerBase", file: str) -> str:
    """Ollama's Modelfile for a GGUF file beside it: template, stop tokens, and greedy decoding as in an assessment."""
    stops = tokenizer.convert_ids_to_tokens(sorted(turn_end(tokenizer).stops))
    lines = [f"FROM ./{file}", f'TEMPLATE """{go_template(tokenizer)}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join([*lines, "PARAMETER temperature 0", "PARAMETER repeat_penalty 1", ""])


def go_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The chat template as Ollama's, found by rendering: what stands in front of each message, by its role, and whether
    it is the first or the second one. Exact where a template writes only what depends on that."""
    if not tokenizer.chat_template:
        return "{{ .Prompt }}"
    system, user, answer, again = MARKS
    talk = [_said("user", user), _said("assistant", answer), _said("user", again)]
    first, to_answer, to_user, end = _between(tokenizer, talk, (user, answer, again))
    branches = [f'{{{{ if eq .Role "assistant" }}}}{to_answer}', f"{{{{ else if eq $i 0 }}}}{first}"]
    try:
        before, behind, *_ = _between(tokenizer, [_said("system", system), *talk], (system, user))
    except (UserError, ValueError):  # it takes no system message, or puts it somewhere else
        pass
    else:
        branches.insert(1, f'{{{{ else if eq .Role "system" }}}}{before}')
        branches.append(f"{{{{ else if eq $i 1 }}}}{behind}")
    return (
        "{{ range $i, $_ := .Messages }}" + "".join(branches) + f"{{{{ else }}}}{to_user}{{{{ end }}}}"
        f"{{{{ .Content }}}}{{{{ end }}}}{end}"
    )  # fmt: skip


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _between(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], marks: tuple[str, ...]) -> list[str]:
    """What a template writes around marked messages, without a beginning of text. ValueError if it leaves one out."""
    text, parts = render(tokenizer, messages), []
    if begins_with_bos(tokenizer):
        text = text.removeprefix(tokenizer.bos_token)
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise ValueError(f"{mark} is left out")
        parts.append(part)
    # Braces would be a tag of Ollama's, and three quotes the end of the template.
    return [re.sub(r'\{\{|"""', lambda m: "{{ " + json.dumps(m[0]) + " }}", part) for part in [*parts, text]]
