"""The control and the students in vLLM: one loaded base model that puts on one adapter after the other."""

from collections.abc import Sequence
from pathlib import Path

from primekd.config import Profile, TeacherConfig
from primekd.foundation.errors import UserError
from primekd.models import load_tokenizer
from primekd.models.chat import build_prompt
from primekd.tasks.protocol import Item
from primekd.teachers.vllm_engine import VllmEngine


def students_config(profile: Profile, items: Sequence[Item]) -> TeacherConfig:
    """The students' base in a teacher's place, with room for the longest question. Raises UserError for 4-bit ones."""
    if profile.student.quantization is not None:
        raise UserError(
            f"assess.engine vllm serves students in {profile.student.dtype}, and these were trained on a base in "
            f"{profile.student.quantization}: set assess.engine to transformers."
        )
    tokenizer = load_tokenizer(profile.student)
    longest = max(len(build_prompt(tokenizer, item.messages)) for item in items)
    return TeacherConfig(
        engine="vllm",
        model=profile.student.model,
        template_of=profile.student.template_of,
        template_arguments=profile.student.template_arguments,
        dtype=profile.student.dtype,
        batch_size=profile.assess.batch_size,
        context_tokens=longest + profile.max_new_tokens,
        vllm=profile.assess.vllm,
    )


def open_students(profile: Profile, items: Sequence[Item], adapters: Sequence[Path]) -> VllmEngine:
    """Starts vLLM on the students' base model, as assess.vllm says, with room for these adapters
    (`VllmEngine.wearing`).

    Raises UserError as `VllmEngine`, or for 4-bit students.
    """
    return VllmEngine(students_config(profile, items), top_k=1, adapters=adapters)
