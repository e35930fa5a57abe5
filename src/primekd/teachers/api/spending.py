"""What was spent at an endpoint, on disk, and a cap that holds through crashes and for several processes at once. Each
attempt is booked at the most that it can cost before it is sent, and settled at its price once its answer is there. An
attempt that was cut off (a time-out, a dropped connection, a killed process) or failed inside the server (status 408,
5xx) may have been billed, so it stays booked: the ledger can be above the bill, never below it."""

import json
import threading
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import BaseModel, Field, ValidationError

from primekd.config.teacher import ApiConfig
from primekd.foundation import UserError, findings_text, relative_name, write_json

USD = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]


class Spent(BaseModel):
    spent_usd: USD  # on attempts that were answered
    unsettled_usd: USD  # on those in flight or cut off, at the most that they can cost
    answers: Count
    input_tokens: Count
    output_tokens: Count


EMPTY = {"spent_usd": 0.0, "unsettled_usd": 0.0, "answers": 0, "input_tokens": 0, "output_tokens": 0}


class Ledger:
    """The ledger of one profile, a JSON file that is made with the first attempt."""

    def __init__(self, path: Path, config: ApiConfig):
        self.path, self.config = path, config
        self._changed, self._in_flight = threading.Condition(), 0

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars for so many tokens."""
        config = self.config
        return (input_tokens * config.usd_per_million_input + output_tokens * config.usd_per_million_output) / 1e6

    def book(self, most: float) -> None:
        """Books up to `most` US dollars, once others of this process have settled. UserError if it is above the cap."""
        with self._changed:
            while not self._booked(most):
                if self._in_flight == 0:
                    raise UserError(self._exhausted(most))
                self._changed.wait()
            self._in_flight += 1

    def settle(self, most: float, input_tokens: int, output_tokens: int) -> None:
        """An attempt that was booked at `most` was answered."""
        spent = self.price(input_tokens, output_tokens)
        tokens = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        self._close(unsettled_usd=-most, spent_usd=spent, answers=1, **tokens)

    def cancel(self, most: float) -> None:
        """An attempt cannot have been billed: it was never sent, or refused before a token was made."""
        self._close(unsettled_usd=-most)

    def lose(self) -> None:
        """An attempt was cut off or failed inside the server: it stays booked."""
        self._close()

    def _close(self, **change: float) -> None:
        with self._changed:
            try:
                if change:
                    with self._locked():
                        self._write(self._read(), change)
            finally:  # others wait for it
                self._in_flight -= 1
                self._changed.notify_all()

    def _booked(self, most: float) -> bool:
        with self._locked():
            found = self._read()
            fits = found["spent_usd"] + found["unsettled_usd"] + most <= self.config.max_spend_usd
            if fits:
                self._write(found, {"unsettled_usd": most})
            return fits

    def _locked(self) -> FileLock:
        """Other processes capture other strategies or shards under the same cap."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return dict(EMPTY)
        try:
            return Spent.model_validate_json(self.path.read_bytes()).model_dump()
        except ValidationError as error:
            template = json.dumps(EMPTY | {"spent_usd": "HERE"})
            raise UserError(
                f"{relative_name(self.path)} is no ledger of spending ({findings_text(error)}). Keep the file, for "
                "without it the cap begins at 0 again: look up on the provider's page what was spent, write "
                f'{template} into it with that number of US dollars in place of "HERE", and run again.'
            ) from None

    def _write(self, found: dict[str, Any], change: dict[str, float]) -> None:
        values = {key: found[key] + change.get(key, 0) for key in EMPTY}
        # Sums of floats leave crumbs such as -1e-20 behind; the smallest price is 1e-9 dollars or so.
        write_json(self.path, {k: max(0.0, round(v, 12)) if k.endswith("usd") else v for k, v in values.items()})

    def _exhausted(self, most: float) -> str:
        found = self._read()
        return (
            f"The next request may cost {most:.6g} USD, and {found['spent_usd'] + found['unsettled_usd']:.6g} of "
            f"{self.config.max_spend_usd:.6g} USD are spent or booked ({relative_name(self.path)}: "
            f"{found['unsettled_usd']:.6g} of it for attempts without an answer): raise "
            "teacher.api.max_spend_usd and run again; what is finished is kept."
        )
