"""What the published study's released code did otherwise, each difference a switch of its own.

Written from a description of that code. An arm of the role `deviation` has some of them (`deviations`), or all that go
together (`protocol: published`); docs/deviations.md says what each did."""

from typing import Any, Literal, get_args

Deviation = Literal[
    "question-logits", "gold-by-position", "cut-to-shortest", "priming-prefix", "lexicographic-rows", "no-template",
    "single-examples", "climbing-cosine", "reverse-kl", "gold-labels", "socratic", "no-shuffle", "dropout",
]  # fmt: skip
DEVIATIONS: tuple[Deviation, ...] = get_args(Deviation)
OF_ONE_ARM: tuple[Deviation, ...] = ("dropout",)  # the released code gave it to one of its students alone
PUBLISHED = frozenset(DEVIATIONS) - frozenset(OF_ONE_ARM)
# What is said of each, in a sentence.
SAID: dict[Deviation, str] = {
    "question-logits": "The teacher's rows are those of the question's own tokens, and no response is generated; the "
    "cross-entropy is taken on the gold solution.",
    "gold-by-position": "The student reads the prompt alone; its logits at the question's token t are held against the "
    "gold solution's token t, unshifted.",
    "cut-to-shortest": "Response and gold solution are cut to the length of the shorter one.",
    "priming-prefix": "The teacher's rows are taken by their place in its own text, which the priming makes longer: "
    "rows of other tokens, as many places earlier as its text is longer than the student's.",
    "lexicographic-rows": "Rows are read in the order of their keys as text (Question 1, 10, 100, …), so most items "
    "get another item's; where that has fewer, from its first one again.",
    "no-template": "Teacher and student read the bare question, the priming in front of it, without a chat template.",
    "single-examples": "One example a step, so a batch becomes several steps, and gradients are not clipped.",
    "climbing-cosine": "The cosine of the learning rate ends with the first epoch, and climbs again in the second.",
    "reverse-kl": "KL(student || teacher) in place of KL(teacher || student).",
    "gold-labels": "The cross-entropy is taken on the gold solution, a sequence of its own.",
    "socratic": "Gold solutions with a question in front of each step.",
    "no-shuffle": "Every epoch reads the examples in the order of the data.",
    "dropout": "LoRA dropout of 0.2, which the release has in one student alone.",
}
LOSS: dict[Deviation, dict[str, Any]] = {
    "reverse-kl": {"divergence": "reverse_kl"},
    # Of question-logits there is no response.
    **dict.fromkeys(("gold-labels", "question-logits", "gold-by-position", "socratic"), {"labels": "gold"}),
}
TRAIN: dict[Deviation, dict[str, Any]] = {
    "single-examples": {"batch_size": 1, "micro_batch_size": 1, "max_grad_norm": 0.0},
    "climbing-cosine": {"schedule": "climbing"},
    "no-shuffle": {"shuffle": False},
}
LORA: dict[Deviation, dict[str, Any]] = {"dropout": {"dropout": 0.2}}


def settings(of: dict[Deviation, dict[str, Any]], deviations: frozenset[str]) -> dict[str, Any]:
    """What a section takes from these deviations, in the order of DEVIATIONS."""
    return {key: value for name in DEVIATIONS if name in deviations for key, value in of.get(name, {}).items()}
