"""One answer in the making, shown as it is written, and stopped when nobody wants more of it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from primekd.assessment.decisions.decisions import as_written
from primekd.assessment.decisions.session import spoken
from primekd.assessment.reading import EXTRACTORS, extract
from primekd.models.chat import Prompt, decode_response
from primekd.teachers.protocol import Sampling

INTERVAL = 0.1  # seconds between two looks at an answer in the making


@dataclass(frozen=True)
class Reply:
    """`tokens`: with the one that ends it. `seconds`: from the prompt's first to the last token. `truncated`: cut off
    at the limit; `stopped`: by whoever asked. `values`: extractor -> what it reads, in words, where answers are
    numbers."""

    name: str
    text: str
    tokens: int
    seconds: float
    truncated: bool
    stopped: bool
    values: dict[str, str]
    ids: tuple[int, ...] = ()

    @property
    def speed(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def facts(self) -> str:
        ended = "stopped" if self.stopped else "cut off at the limit" if self.truncated else "complete"
        return f"{self.tokens} tokens, {self.speed:.1f} tokens/s, {ended}"


class _Stopped(Exception):
    """Ends a generation from within."""


class Stream:
    """Iterate over its text so far, ten times a second; the last is all of it, and `reply` is there."""

    def __init__(
        self, name: str, question: str, tokenizer, prompt: Prompt, engine, sampling: Sampling,
        extractors: Sequence[str] = EXTRACTORS,
    ):  # fmt: skip
        self.name, self.question, self._tokenizer = name, question, tokenizer
        self.prompt, self._engine, self._sampling, self._extractors = prompt, engine, sampling, extractors
        self._ids: list[int] = []
        self._stop, self._response, self._error, self.reply = False, None, None, None

    def stop(self) -> None:
        """Ends the answer at the next token; what there is of it stays."""
        self._stop = True

    def __iter__(self) -> Iterator[str]:
        thread, start, shown = threading.Thread(target=self._generate, daemon=True), time.perf_counter(), ""
        thread.start()
        try:
            while thread.is_alive():
                thread.join(INTERVAL)
                # Bytes of a character whose other tokens are still to come are no text yet.
                if thread.is_alive() and (text := self._text(self._ids).rstrip("\ufffd")) != shown:
                    shown = text
                    yield text
        finally:
            self.stop()  # whoever leaves early wants no more of it
            thread.join()
        if self._error:
            raise self._error
        seconds, stopped = time.perf_counter() - start, self._response is None
        ids = self._ids if stopped else self._response.ids
        truncated, text = stopped or self._response.truncated, self._text(ids)
        values = {e: spoken(as_written(extract(text, e, truncated, self.question).value)) for e in self._extractors}
        self.reply = Reply(self.name, text, len(ids), seconds, truncated, stopped, values, tuple(ids))
        yield text

    def _generate(self) -> None:
        try:
            with _overheard(self._engine, self._hear):
                [self._response] = self._engine.generate([self.prompt], self._sampling)
        except _Stopped:
            pass
        except Exception as error:  # raised again by the thread that asked
            self._error = error

    def _hear(self, token: int | None) -> None:
        if token is not None:
            self._ids.append(token)
        if self._stop:
            raise _Stopped

    def _text(self, ids: Sequence[int]) -> str:
        return decode_response(self._tokenizer, list(ids))


@contextmanager
def _overheard(engine, hear: Callable[[int | None], None]):
    """While `engine` generates one response, calls `hear` with each token before the next one is made (None before the
    first, from some engines); what `hear` raises ends the generation. The engine's own path stays as it is."""
    if engine.name == "transformers":
        passes = count()

        def before(_module, arguments, named) -> None:
            ids = named["input_ids"] if "input_ids" in named else arguments[0]
            hear(int(ids[0, -1]) if next(passes) else None)

        hook = engine.decoder.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
    else:
        step = engine._step

        def heard(context, active, *rest) -> None:
            step(context, active, *rest)
            for answer in active.values():
                hear(answer.ids[-1])

        engine._step = heard
        try:
            yield
        finally:
            del engine._step
