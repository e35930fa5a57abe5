"""An OpenAI-compatible endpoint as the teacher: its text, and the few log-probs that come with it."""

import json
import math
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from primekd.config import TeacherConfig
from primekd.foundation import UserError, clean, hash_json, holds_secret, read_json, relative_name, write_json
from primekd.models import encode_response, load_tokenizer, model_hash, turn_end
from primekd.models.template import control_tokens
from primekd.teachers.api.client import Endpoint, Stopped
from primekd.teachers.api.exchange import Answer, Usage, build_request, read_answer
from primekd.teachers.api.own_server import OwnServer
from primekd.teachers.api.spending import Ledger
from primekd.teachers.api.tokens import Shown, token_map
from primekd.teachers.protocol import Ids, Response, Sampling, TeacherEngine, TopLogprobs, Want

GREEDY_SLACK = 0.1  # nats by which a greedy token may miss the top; sums differ in the last bits between batches
SUM_SLACK = 1e-3  # by which the shown probabilities of one token may exceed 1
TEMPLATE_TOKENS = 64  # what a server's own template writes around a conversation, at most
OVERSHOOT = 3  # tokens; llama-cpp-python's server finishes a character of four bytes before it heeds the token limit
UNWRITTEN = 1  # calls whose answers may not be on disk when another begins: capture writes one shard beside it

Row = dict[int, float]  # token id -> log-probability


class ApiEngine(TeacherEngine):
    """A teacher behind an HTTP endpoint; `teacher.model` is its tokenizer here. The log-probs of a response come with
    it, so `score` gives those of what `generate` has just returned, and nothing else. A server that ends a response
    without showing the end of turn says nothing of that place: its row is empty. Finished answers lie beside the ledger
    until the call after the next one or `close`, so that those of a shard that was never written are not paid for
    twice. `own`: a server that this process has started, the engine's to close."""

    name, transform = "api", None

    def __init__(self, config: TeacherConfig, top_k: int, ledger: Path, own: OwnServer | None = None):
        self.config, self.top_k = config, top_k
        self.api = config.api.model_copy(update={"base_url": own.url}) if own else config.api
        self.tokenizer = load_tokenizer(config)
        self.end = turn_end(self.tokenizer)
        self.vocab_size, self.offers = len(self.tokenizer), config.offers
        self.answers = ledger.parent / "answers"
        self._tokens = token_map(config.model)
        self._where = "own" if own else self.api.base_url  # an own server has another port each time
        self._asked = [self._where, *([model_hash(config.model)] if own else [])]  # whose answers may be used again
        self._own, self._endpoint = own, Endpoint(self.api, Ledger(ledger, self.api), own)
        self._rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Row]] = {}
        self._kept: deque[list[Path]] = deque()  # of each call
        self.served: set[str] = set()  # what the server calls itself; whoever goes on with its answers adds theirs
        self._naming = threading.Lock()

    def identity(self) -> dict[str, Any]:
        """What is known of a teacher that cannot be looked at; `served` is what the server calls the model."""
        return {
            "engine": self.name, "tokenizer": self.config.model, "base_url": self._where, "model": self.api.model,
            "served": sorted(self.served), "prompt": self.api.prompt, "request": self.api.request,
            "top_k": self.top_k if self.api.logprobs else None,
        }  # fmt: skip

    def generate(self, prompts: Ids, sampling: Sampling) -> list[Response]:
        """As the protocol has it. UserError if the server refuses or does something else, or the cap is reached."""
        self._forget(UNWRITTEN)
        self._rows.clear()
        self._endpoint.stopping.clear()
        with ThreadPoolExecutor(self.api.concurrency) as pool:
            futures = [pool.submit(self._respond, prompt, sampling, n) for n, prompt in enumerate(prompts)]
            try:
                for future in as_completed(futures):
                    if future.exception() is None:
                        sampling.ended()
            except BaseException:  # Ctrl-C: answers in flight are still waited for, they are paid
                self._endpoint.stopping.set()
                raise
        failures = [future.exception() for future in futures if future.exception() is not None]
        for failure in sorted(failures, key=lambda failure: isinstance(failure, Stopped)):
            raise failure
        answered = [future.result() for future in futures]
        for prompt, (response, rows, _) in zip(prompts, answered, strict=True):
            self._rows[tuple(prompt), tuple(response.ids)] = rows
        self._kept.append([kept for _, _, kept in answered])
        return [response for response, _, _ in answered]

    def score(self, prompts: Ids, responses: Ids, want: Want) -> list[TopLogprobs]:
        """The log-probs that came with the last responses. UserError for another signal, or other responses."""
        if want not in self.offers:
            raise UserError(f"This API gives no {want}: set signals.codec to {'topk' if self.offers else 'text'}.")
        keys = [(tuple(p), tuple(r)) for p, r in zip(prompts, responses, strict=True)]
        if any(key not in self._rows for key in keys):
            raise UserError("An API scores nothing but the responses that it has just generated: capture them anew.")
        return [_top(self._rows[key]) for key in keys]

    def close(self) -> None:
        """Deletes the last calls' answers: left behind, they would be used again for signals that were moved away. Not
        while an exception passes: the last shards may not be written, and the next session needs their answers."""
        if self._own:
            self._own.close()
        if sys.exc_info()[0] is None:
            self._forget(0)

    def _forget(self, calls: int) -> None:
        """Deletes the answers of all but the last `calls` calls. The caller has written those: it waits for a shard to
        be on disk before it has the next but one asked for. A call that failed handed nothing over; its answers stay.
        """
        while len(self._kept) > calls:
            done = self._kept.popleft()
            for path in set(done).difference(*self._kept):  # the same request made again shares its answer
                path.unlink(missing_ok=True)

    def _respond(self, prompt: list[int], sampling: Sampling, place: int) -> tuple[Response, list[Row], Path]:
        """One prompt's response; a failure stops the requests that have not been sent yet."""
        try:
            return self._ask(prompt, sampling, place)
        except BaseException:
            self._endpoint.stopping.set()
            raise

    def _ask(self, prompt: list[int], sampling: Sampling, place: int) -> tuple[Response, list[Row], Path]:
        bos, end = self.tokenizer.bos_token, self.tokenizer.convert_ids_to_tokens(self.end.token)
        path, body = build_request(self.api, prompt, bos, sampling, place, self.top_k, end)
        kept = self.answers / f"{hash_json([*self._asked, path, body])}.json"
        most = self._input_bound(prompt), sampling.max_new_tokens + OVERSHOOT
        if there := kept.is_file():
            try:
                answer = read_answer(self.api, read_json(kept))
            except UserError as error:
                name = relative_name(kept)
                raise UserError(f"{name} is no answer: delete it, to have it asked for again.") from error
        else:
            fields = self._endpoint.ask(path, body, most, lambda fields: self._count(prompt, fields, most))
            answer = read_answer(self.api, fields)
        found = self._response(prompt, answer, sampling)
        self._refuse_another(answer.model)
        if not there:  # only answers that are good are kept
            write_json(kept, answer.fields)
        return *found, kept

    def _refuse_another(self, model: str | None) -> None:
        """Raises UserError if another model answers than before: its labels are no longer one teacher's."""
        with self._naming:
            if model and self.served and model not in self.served:
                raise UserError(
                    f"{self.api.base_url} answered as {model}, and as {min(self.served)} before: name one of them in "
                    f"teacher.api.model; to have everything asked anew, delete {relative_name(self.answers)}/*.json "
                    "and run with --force-stage capture."
                )
            self.served.update([model] if model else [])

    def _input_bound(self, prompt: list[int]) -> int:
        """The most tokens that a prompt can be by the server's own template and tokenizer: each has a byte at least."""
        if self.api.prompt != "messages":
            return len(prompt) + 1
        return TEMPLATE_TOKENS + sum(len(message["content"].encode()) for message in prompt.messages)

    def _count(self, prompt: list[int], fields: dict[str, Any], most: tuple[int, int]) -> tuple[int, int]:
        """Tokens that an answer cost: the server's count, or ours where it gives none. A count that is no number, 0, or
        more than the request can cost (`most`) says nothing: then it cost the most."""
        if usage := fields.get("usage"):
            try:
                said = Usage.model_validate(usage)
            except ValidationError:
                return most
            counts, least = (said.prompt_tokens, said.completion_tokens), 1
        else:
            choice = (fields.get("choices") or [{}])[0]
            text = choice.get("text") or (choice.get("message") or {}).get("content") or ""
            counts, least = (len(prompt), len(self.tokenizer(text, add_special_tokens=False)["input_ids"])), 0
        return counts if all(least <= n <= bound for n, bound in zip(counts, most, strict=True)) else most

    def _response(self, prompt: list[int], answer: Answer, sampling: Sampling) -> tuple[Response, list[Row]]:
        """An answer as token ids of our own, with a row for each of them (none where text alone is kept)."""
        self._check(prompt, answer, sampling)
        if holds_secret(answer.text) or holds_secret(json.dumps(answer.fields)):  # or in the tokens that it shows
            raise UserError(self._other("an answer with the API key in it, which is thrown away"))
        truncated = answer.finish_reason == "length"
        of_text = control_tokens(self.tokenizer) if answer.rows is None else ()
        control = [token for token in of_text if token in answer.text]
        if control and not self.api.withheld_is_empty:
            raise UserError(self._other(f"an answer with the control token {control[0]!r} in it"))
        if answer.withheld or control:  # which no student should learn
            return Response([self.end.token], truncated=False), [{}] * bool(self.api.logprobs)
        if answer.rows is None:
            ids, rows = encode_response(self.tokenizer, answer.text, ended=not truncated), []
            if answer.response_tokens is None and len(ids) > sampling.max_new_tokens + OVERSHOOT:
                raise UserError(self._other(f"{len(ids)} tokens where {sampling.max_new_tokens} were asked for"))
        else:
            ids, rows = self._with_rows(answer, truncated, sampling)
        if truncated:
            ids, rows = ids[: sampling.max_new_tokens], rows[: sampling.max_new_tokens]
        if not ids:
            raise UserError(f"{self.api.base_url} gave an empty answer, cut off by the token limit: raise it.")
        return Response(ids, truncated), rows

    def _with_rows(self, answer: Answer, truncated: bool, sampling: Sampling) -> tuple[list[int], list[Row]]:
        shown = list(answer.rows)
        end = self._shown_end([token for token, _ in shown])  # some servers show the end of turn
        ended = not truncated and end is not None
        ids = self._tokens.response_ids([token for token, _ in (shown[:-1] if ended else shown)], answer.text)
        while ids is None and shown:
            last = shown.pop()[0].text
            # Part of a character that the limit cut off, which the text does not show; or the line's end.
            cut = not last.strip("\ufffd") if truncated else self.api.stop_at_line_end and last[:1] == "\n"
            if not cut:
                break
            ids = self._tokens.response_ids([token for token, _ in shown], answer.text)
        if ids is None:
            raise UserError(self._other(f"tokens that are not those of {self.config.model}'s tokenizer"))
        if not truncated:
            ids = [*ids, end if end in self.end.stops else self.end.token]
        rows = [self._row(token, top, ids[n], sampling) for n, (token, top) in enumerate(shown)]
        return ids, rows + [{}] * (len(ids) - len(rows))

    def _shown_end(self, tokens: list[Shown]) -> int | None:
        """The control token that a server shows last, if any. Raises UserError if it wrote on behind an end of turn."""
        ids = [self._tokens.id_of(token) for token in tokens]
        if passed := [i for i in ids[:-1] if i in self.end.stops]:
            name = self.tokenizer.convert_ids_to_tokens(passed[0])
            fix = "set teacher.api.prompt to messages, or mend the server's stop tokens"
            raise UserError(f"{self.api.base_url} wrote on behind {name}, which ends a turn: {fix}.")
        known = self.end.stops.union(self.tokenizer.all_special_ids)
        return ids[-1] if ids and ids[-1] in known else None

    def _row(self, token: Shown, top: list[Shown], token_id: int, sampling: Sampling) -> Row:
        """The probabilities of one place; tokens that are not told apart for certain are left to the tail."""
        values = [token.log_prob, *(other.log_prob for other in top)]
        known = [(self._tokens.id_of(other), other.log_prob) for other in top]
        own = self._tokens.id_of(token)
        row = {found: value for found, value in known if found is not None and value > -math.inf}
        row[token_id if own is None else own] = token.log_prob
        mass = sum(math.exp(value) for value in row.values() if value <= 1)
        wrong = token.log_prob == -math.inf or any(math.isnan(value) or value > SUM_SLACK for value in values)
        if wrong or mass > 1 + SUM_SLACK:
            raise UserError(f"{self.api.base_url} gives log-probs that are no probabilities: set logprobs: false.")
        if sampling.temperature == 0 and token.log_prob < max(values) - GREEDY_SLACK:
            raise UserError(
                f"{self.api.base_url} was asked for its most probable token and gave {clean(token.text)!r}, which is "
                "not: it has a penalty or a sampler on by default; switch it off with teacher.api.request, for example "
                "{repeat_penalty: 1.0}, and run again."
            )
        return row

    def _check(self, prompt: list[int], answer: Answer, sampling: Sampling) -> None:
        """Raises UserError where the server did something else than it was asked for."""
        asked, served = clean(self.api.model), answer.model
        dated = served is not None and served.startswith(f"{asked}-") and served[len(asked) + 1 :][:1].isdigit()
        if served and served != asked and not dated:
            raise UserError(self._other(f"the model {served} where {asked} was asked for"))
        if answer.withheld and not self.api.withheld_is_empty:
            fix = "take the item out of the data, or set teacher.api.withheld_is_empty"
            raise UserError(f"{self.api.base_url} withheld an answer (content_filter): {fix}.")
        if answer.finish_reason not in ("stop", "length", "content_filter"):
            raise UserError(self._other(f"an answer that ended with {answer.finish_reason!r}, not with 'stop'"))
        shown = None if answer.rows is None else len(answer.rows)
        count = max(filter(None, [answer.response_tokens, shown]), default=0)
        if count > sampling.max_new_tokens + OVERSHOOT:
            raise UserError(self._other(f"{count} tokens where {sampling.max_new_tokens} were asked for"))
        if shown is not None and answer.response_tokens is not None and answer.response_tokens - shown not in (0, 1):
            raise UserError(self._other(f"log-probs of {shown} of its {answer.response_tokens} tokens"))
        if self.api.prompt != "messages" and answer.prompt_tokens not in (None, len(prompt)):
            raise UserError(
                f"{self.api.base_url} read {answer.prompt_tokens} prompt tokens where ours has {len(prompt)}: it adds "
                "a BOS of its own, or has another tokenizer; set teacher.api.prompt to text-without-bos, text or ids."
            )
        if (answer.prompt_tokens or 0) > (bound := self._input_bound(prompt)):
            raise UserError(self._other(f"a count of {answer.prompt_tokens} prompt tokens; at most {bound} were sent"))

    def _other(self, what: str) -> str:
        return f"{self.api.base_url} gave {what}: check teacher.api and teacher.model in the profile."


def _top(rows: list[Row]) -> TopLogprobs:
    """Rows of unequal lengths as (T, K), best first, unfilled places at the end."""
    width = max([1, *map(len, rows)])
    ids, values = torch.full((len(rows), width), -1), torch.full((len(rows), width), -torch.inf)
    for place, row in enumerate(rows):
        for column, (token_id, value) in enumerate(sorted(row.items(), key=lambda entry: -entry[1])):
            ids[place, column], values[place, column] = token_id, value
    return TopLogprobs(ids, values)
