"""Where each arm's priming text stands for a profile's teacher, and whether its chat template can take it."""

from primekd.chat import Priming, build_prompt
from primekd.config import Profile, TeacherConfig
from primekd.models import load_tokenizer
from primekd.strategies import Strategy, load_strategies
from primekd.template import QUESTION


def priming_of(strategy: Strategy, teacher: TeacherConfig) -> Priming | None:
    """What the teacher is primed with under a strategy; None leaves the model's own default."""
    if strategy.priming is None:
        return None
    return Priming(strategy.priming, strategy.placement or teacher.priming_placement, teacher.priming_mode)


def require_placeable(profile: Profile) -> None:
    """Raises UserError if the teacher's chat template has no place for the priming of some strategy.

    The tokenizer alone is loaded.
    """
    tokenizer = load_tokenizer(profile.teacher)
    for strategy in load_strategies().values():
        if strategy.teacher:
            build_prompt(tokenizer, QUESTION, priming_of(strategy, profile.teacher))
