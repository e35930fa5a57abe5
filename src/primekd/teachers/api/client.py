"""Requests to the endpoint: the key, the pace, retries, and a sentence for everything that can go wrong. The retries
are not a client library's own, because each attempt has to be booked under the cap before it is sent."""

import contextlib
import email.utils
import os
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from primekd.config.teacher import ApiConfig
from primekd.foundation import UserError, clean, hide
from primekd.teachers.api.own_server import OwnServer
from primekd.teachers.api.spending import Ledger

LONGEST_WAIT = 600.0  # seconds; a server that asks for more has closed for the day
BACK_OFF = wait_exponential_jitter(initial=1, max=60, jitter=1)  # seconds; where the server names no time
KEPT = "what is finished is kept"
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # asked directly: a proxy of the environment is another machine
NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
NOT_BILLED = (400, 401, 403, 404, 409, 422, 429)  # refused before a token was made; of others nobody can say


class Temporary(Exception):
    """A failure that may pass. `wait`: the seconds that the server asks for, if it does."""

    def __init__(self, sentence: str, wait: float | None = None):
        super().__init__(sentence)
        self.wait = wait


class Stopped(Exception):
    """Another request failed for good, so this one is not tried (again)."""


class Endpoint:
    """One server, for several threads. `own`: the one that this process has started, and starts anew if it has ended.
    The key goes into the header alone; what a server says is cleared of it. Raises UserError if it is no key."""

    def __init__(self, config: ApiConfig, ledger: Ledger, own: OwnServer | None = None):
        self.config, self.ledger, self._own = config, ledger, own
        self._key = own.key if own else os.environ.get(config.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):  # the HTTP library would quote it in its error
            raise UserError(f"{config.key_variable} holds characters that no key has: set it again.")
        hide(self._key)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        here = urlsplit(config.base_url).hostname in LOOPBACK
        how = {"timeout": config.timeout_seconds, "trust_env": not here}
        self._http = httpx.Client(base_url=config.base_url, headers=headers, **how)
        self.stopping = threading.Event()  # set, it wakes every thread that waits; none of them sends another request
        self._pace, self._next = threading.Lock(), 0.0

    def ask(
        self, path: str, body: dict[str, Any], most: tuple[int, int], count: Callable[[dict[str, Any]], tuple[int, int]]
    ) -> dict[str, Any]:
        """Posts a request until it is answered; returns the answer's JSON object. `most`: input and output tokens that
        it can cost at most; `count`: those of an answer, which are booked in the end. Raises UserError if it is not
        answered after `retries` more attempts, or may cost too much; Stopped if told to."""
        last, again = stop_after_attempt(self.config.retries + 1), retry_if_exception_type(Temporary)
        attempts = Retrying(stop=last, wait=_wait, retry=again, sleep=self.stopping.wait, reraise=True)
        try:
            return attempts(self._attempt, path, body, self.ledger.price(*most), count)
        except Temporary as failure:
            tried = f" after {self.config.retries + 1} attempts" if self.config.retries else ""
            raise UserError(f"{failure}{tried}: run the same command again later, {KEPT}.") from None

    def _attempt(self, path: str, body: dict[str, Any], most: float, count) -> dict[str, Any]:
        self._keep_pace()
        if self._own:
            self._own.ensure()
        self.ledger.book(most)
        if self.stopping.is_set():  # while this thread waited for room under the cap
            self.ledger.cancel(most)
            raise Stopped
        try:
            reply = self._http.post(path, json=body)
        except NEVER_LEFT as error:
            self.ledger.cancel(most)
            raise Temporary(f"{self.config.base_url} cannot be reached ({clean(error)})") from None
        except httpx.TimeoutException:
            self.ledger.lose()
            raise Temporary(f"{self.config.base_url} gave no answer in {self.config.timeout_seconds:g} s") from None
        except httpx.HTTPError:
            self.ledger.lose()
            raise Temporary(f"{self.config.base_url} broke the connection before its answer was whole") from None
        except BaseException:
            self.ledger.lose()
            raise
        if not reply.is_success:
            refusal = self._refusal(reply)
            if isinstance(refusal, UserError):
                self.stopping.set()  # before the booking is freed: who waits for the room must not send
            self.ledger.cancel(most) if reply.status_code in NOT_BILLED else self.ledger.lose()
            raise refusal
        try:
            answer = reply.json()
            tokens = count(answer)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            self.ledger.lose()  # billed perhaps, and nobody can say for how many tokens
            raise Temporary(f"{self.config.base_url} answered with something that is no JSON object") from None
        self.ledger.settle(most, *tokens)
        return answer

    def _keep_pace(self) -> None:
        """Waits for this request's turn: they are sent evenly spaced, retries included."""
        if self.config.requests_per_minute:
            with self._pace:
                turn = max(time.monotonic(), self._next)
                self._next = turn + 60 / self.config.requests_per_minute
            self.stopping.wait(turn - time.monotonic())
        if self.stopping.is_set():
            raise Stopped

    def _refusal(self, reply: httpx.Response) -> UserError | Temporary:
        """What a status other than success means, and whether another attempt makes sense."""
        status, where, model = reply.status_code, self.config.base_url, self.config.model
        said = self._said(reply)
        if status == 401:
            variable = self.config.key_variable
            key = f"the key in {variable}" if self._key else f"requests without a key ({variable} is not set)"
            return UserError(f"{where} refuses {key} (401): set {variable} to a valid one and run again, {KEPT}.")
        if status == 403:
            return UserError(f"{where} does not let this key use the model {model} (403): {said}; {KEPT}.")
        if status == 404:
            fix = f"mend teacher.api.model or base_url, {KEPT}"
            return UserError(f"{where} has no model {model}, or is not the address of its API (404): {fix}.")
        if status == 429 and "insufficient_quota" in reply.text:
            return UserError(f"The account at {where} has no credit left (429): add some and run again, {KEPT}.")
        if status in (408, 409, 429) or status >= 500:
            wait = _retry_after(reply)
            if wait is not None and wait > LONGEST_WAIT:
                return UserError(f"{where} asks to wait for {wait:.0f} s ({status}): run again then, {KEPT}.")
            text = "has too many requests" if status == 429 else "fails"
            return Temporary(f"{where} {text} ({status}: {said})", wait)
        return UserError(f"{where} refuses the request ({status}): {said}; mend teacher.api in the profile, {KEPT}.")

    def _said(self, reply: httpx.Response) -> str:
        """The server's own words, cut short."""
        try:
            found = reply.json()
            found = found.get("error") or found.get("detail") or found.get("message") or found
            text = str(found.get("message", found) if isinstance(found, dict) else found)
        except (ValueError, AttributeError, RecursionError):
            text = reply.text or reply.reason_phrase
        return clean(text).rstrip(". ")


def _wait(state: RetryCallState) -> float:
    asked = state.outcome.exception().wait
    return BACK_OFF(state) if asked is None else asked


def _retry_after(reply: httpx.Response) -> float | None:
    """Seconds that the header Retry-After asks for; it holds seconds or a date (RFC 9110, 10.2.3)."""
    value = reply.headers.get("Retry-After", "")
    for read in (float, lambda date: email.utils.parsedate_to_datetime(date).timestamp() - time.time()):
        with contextlib.suppress(ValueError, OverflowError):
            return max(0.0, read(value))
    return None
