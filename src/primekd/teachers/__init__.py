"""Teacher engines: one file an engine, one protocol for all (protocol.py): generate responses, score given ones.

They know token ids, no questions and no files of signals."""

from primekd.config import Profile
from primekd.models import load_tokenizer
from primekd.teachers.packages import explained
from primekd.teachers.protocol import Response, Sampling, TeacherEngine, TopLogprobs


def open_engine(profile: Profile) -> TeacherEngine:
    """Loads a profile's teacher. Raises UserError if the model is not there, or the engine cannot run it here."""
    config = profile.teacher
    if config.engine == "llamacpp":
        with explained("llamacpp"):
            from primekd.teachers.llamacpp_engine import LlamaCppEngine

        return LlamaCppEngine(config.model, config.context_tokens, config.batch_size, load_tokenizer(config))
    if config.engine == "exllamav2":
        with explained("exllamav2"):
            from primekd.teachers.exllamav2_engine import ExLlamaV2Engine

        return ExLlamaV2Engine(config)
    if config.engine == "vllm":
        with explained("vllm"):
            from primekd.teachers.vllm_engine import VllmEngine

        return VllmEngine(config, top_k=profile.signals.top_k)
    if config.engine == "api":
        with explained("api"):
            from primekd.teachers.api import ApiEngine
            from primekd.teachers.api.own_server import start

        own = start(config) if config.api.own_server else None
        return ApiEngine(config, top_k=profile.signals.top_k, ledger=profile.ledger, own=own)
    from primekd.teachers.transformers_engine import TransformersEngine

    of, how = config.quantization, load_tokenizer(config)
    return TransformersEngine(config.model, config.dtype, config.batch_size, quantization=of, tokenizer=how)
