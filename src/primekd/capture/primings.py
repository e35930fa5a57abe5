"""Where each arm's priming text stands for a profile's teacher, and whether its chat template can take it."""

from primekd.config import Arm, Profile, TeacherConfig, arms_of
from primekd.models import QUESTION, Priming, build_prompt, is_present, load_tokenizer


def priming_of(strategy: Arm, teacher: TeacherConfig) -> Priming | None:
    """What the teacher is primed with under a strategy; None leaves the model's own default."""
    text, place = strategy.priming or teacher.instruction, strategy.placement or teacher.priming_placement
    return None if text is None else Priming(text, place, teacher.priming_mode)


def can_speak(profile: Profile) -> bool:
    """Whether the teacher's tokenizer and template are here, so that prompts can be made without a download."""
    teacher = profile.teacher
    return all(is_present(model, weights=False) for model in filter(None, (teacher.model, teacher.template_of)))


def require_placeable(profile: Profile) -> None:
    """Raises UserError if the teacher's chat template has no place for the priming of some strategy. Asked of all at
    once: what would stop the third capture stops the first. The tokenizer alone is loaded."""
    tokenizer = load_tokenizer(profile.teacher)
    for strategy in arms_of(profile).values():
        if strategy.teacher:
            build_prompt(tokenizer, QUESTION, priming_of(strategy, profile.teacher))
