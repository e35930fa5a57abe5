"""Teacher engines: one file an engine, one protocol for all."""

from primekd.config import TeacherConfig
from primekd.teachers.protocol import Response, Sampling, TeacherEngine

__all__ = ["Response", "Sampling", "TeacherEngine", "open_engine"]


def open_engine(config: TeacherConfig) -> TeacherEngine:
    """Loads the teacher that a profile names.

    Raises:
        UserError: the model is not there, or is not in the engine's format.
    """
    if config.engine == "llamacpp":
        from primekd.teachers.llamacpp_engine import LlamaCppEngine

        return LlamaCppEngine(config.model, context_tokens=config.context_tokens)
    from primekd.teachers.transformers_engine import TransformersEngine

    return TransformersEngine(config.model, config.dtype, batch_size=config.batch_size)
