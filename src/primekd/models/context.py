"""How many tokens a model has positions for."""

from collections.abc import Mapping

from primekd.foundation.errors import UserError


def refuse_too_long(model, tokens: Mapping[str, int], what: str, fix: str) -> None:
    """Raises UserError if an item's tokens, of which the last one is not read, do not fit into a model's context."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for name, count in tokens.items():
        if most and count - 1 > most:
            raise UserError(f"{name}: {what} {count} tokens, more than the model's context of {most} holds: {fix}.")
