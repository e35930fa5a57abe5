"""Which arms are compared, and which comparisons are one family of tests. Both follow from the arms' roles, unless the
profile names its own questions before the run (`planned.main`)."""

from collections.abc import Collection, Iterable, Mapping

from primekd.config import CONTROL, FEW_SHOT, NO_STUDENTS, TEACHER, WORDS, Arm, load_arms, of_role, split_seed

Pair = tuple[str, str]  # (arm, reference)
Planned = dict[Pair, str]  # a contrast -> its family
MAIN, CHECKS = "main", "checks"
OF_MAIN = ("baseline", "treatment", "fine-tuning")  # the published study's questions; all else checks the design


def planned_contrasts(models: Iterable[str], arms: Mapping[str, Arm]) -> list[Pair]:
    """Every comparison that the roles ask for, as far as both sides are among `models`. Every student meets the
    control; every taught one the baseline and the fine-tuned one; a treatment meets each placebo; an arm meets the one
    that it varies, and those that it has its text and its signals from; a selection meets that of the baseline by the
    same rule. Further seeds of an arm add no contrast: they are in the arm's."""
    here = list(dict.fromkeys(split_seed(model)[0] for model in models))
    students = [name for name in here if name not in NO_STUDENTS]
    taught = [name for name in students if name in arms and arms[name].teacher]
    pairs = [(name, CONTROL) for name in (*students, FEW_SHOT) if name in here]
    pairs += [(name, FEW_SHOT) for name in students if name in arms and arms[name].role == "baseline"]
    placebos = [name for name in taught if arms[name].role == "placebo"]
    pairs += [(name, ref) for ref in of_role("baseline", arms) for name in taught if name != ref]
    pairs += [(name, placebo) for placebo in placebos for name in taught if arms[name].role == "treatment"]
    pairs += [(name, ref) for ref in of_role("fine-tuning", arms) for name in taught]
    for name in taught:
        arm = arms[name]
        pairs += [(name, ref) for ref in (arm.variant_of, arm.text, arm.signals) if ref not in WORDS]
        if arm.role == "selection":  # what is left of a priming where both texts are chosen alike
            alike = [other for other in taught if arms[other].treatment == arm.treatment and other != name]
            pairs += [(name, ref) for ref in alike if arms[ref].variant_of in of_role("baseline", arms)]
    return [(name, ref) for name, ref in dict.fromkeys(pairs) if ref in here]


def plan_of(models: Iterable[str], arms: Mapping[str, Arm], named: Collection[Pair] = ()) -> Planned:
    """The planned contrasts, those `named` by the profile first, each with the family that p is adjusted in."""
    models = list(models)
    here = {split_seed(model)[0] for model in models}
    pairs = [pair for pair in named if here.issuperset(pair)]
    pairs += [pair for pair in planned_contrasts(models, arms) if not {pair, pair[::-1]} & set(named)]
    return {pair: family_of(pair, arms, named) for pair in pairs}


def family_of(pair: Pair, arms: Mapping[str, Arm], named: Collection[Pair] = ()) -> str:
    """The study's own questions, a treatment against a placebo among them, or checks of its design."""
    if named:
        return MAIN if pair in named else CHECKS
    roles = tuple(arms[name].role for name in pair if name in arms)
    return MAIN if roles == ("treatment", "placebo") or all(role in OF_MAIN for role in roles) else CHECKS


def title_of(model: str) -> str:
    """The published title of a model; a further seed is named behind it."""
    arms = load_arms()
    titles = {CONTROL: "No distillation", FEW_SHOT: "No distillation, other prompt", TEACHER: "Teacher, unprimed"}
    if model in titles:
        return titles[model]
    name, seed = split_seed(model)
    if name not in arms:
        return model
    return f"{arms[name].title} (seed {seed})" if seed else arms[name].title
