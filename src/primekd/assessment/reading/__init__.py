"""From an answer's text to the number that it gives. Pure: no files, no models, never raises.

published         the study's four rules, in their order (the default)
validated         run-on-aware rules, measured against labelled answers (docs/extraction.md)
strict-match      lm-evaluation-harness, task gsm8k
flexible-extract  lm-evaluation-harness, task gsm8k
math-verify       Hugging Face's Math-Verify, default settings"""

from dataclasses import replace

from primekd.assessment.reading import harness, published, validated
from primekd.assessment.reading.ending import answer_part, is_cut
from primekd.assessment.reading.numbers import NONE, NOT_FOUND, Extraction

__all__ = ["EXTRACTORS", "NONE", "NOT_FOUND", "RULES", "Extraction", "extract", "looks_cut"]

RULES = {
    "published": published.RULES,
    "validated": validated.RULES,
    harness.STRICT: (harness.STRICT, NONE),
    harness.FLEXIBLE: (harness.FLEXIBLE, NONE),
    harness.MATH_VERIFY: (harness.MATH_VERIFY, NONE),
}
EXTRACTORS = tuple(RULES)


def looks_cut(text: str) -> bool:
    """Whether an answer looks as if it ran into the limit of new tokens, in its reasoning or behind it."""
    return answer_part(text)[2] or is_cut(text)


def extract(
    text: str, extractor: str = "published", truncated: bool | None = None, question: str | None = None
) -> Extraction:
    """Reads one answer by one of EXTRACTORS. Blocks of reasoning (<think>) are no part of it for this project's rules.
    `truncated`: whether it ran into the limit of new tokens; if unknown, judged from its end. `question`: what was
    asked; `validated` alone looks at it, to tell its numbers from the answer."""
    start, end, reasoning = answer_part(text)
    cut = looks_cut(text) if truncated is None else truncated
    answer = text[start:end]
    readers = {
        "published": lambda: published.by_published_rules(answer),
        "validated": lambda: validated.by_validated_rules(answer, question, reasoning or truncated),
        harness.MATH_VERIFY: lambda: harness.by_math_verify(text),
    }
    found = readers[extractor]() if extractor in readers else harness.by_harness(text, extractor)
    if found.span and extractor in ("published", "validated"):
        found = replace(found, span=(start + found.span[0], start + found.span[1]))
    # A value at the very end of what only looks cut may lack digits, or be the whole answer.
    doubtful = truncated is None and cut and found.span is not None and found.span[1] >= len(text)
    return replace(found, truncated=cut, ambiguous=found.ambiguous or doubtful)
