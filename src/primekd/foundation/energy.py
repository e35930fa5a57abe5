"""Seconds, energy and emissions of a stage, for its manifest."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from primekd.foundation.storage import now

SENSORS = ("intel_rapl", "intel_power_gadget", "windows_emi")  # codecarbon's ways to know a processor that are read
WITH_SENSORS = ("GPU", "AppleSiliconChip")  # its parts that are always read
INTERVAL = 10  # seconds between two readings
AMOUNTS = ("seconds", "energy_kwh", "co2e_kg")
COUNTRY = "USA"  # whose mix of electricity counts where nobody says another


class Meter:
    """Measures a `with` block. `facts` is filled in when the block ends, also when it ends badly. Energy is
    codecarbon's figure for the whole machine; it needs no network. `energy_method` says what it was read from, and is
    "measured" only where every part but memory has a sensor (RAPL, nvidia-smi); a processor without one is estimated
    from its rated power and its load. `co2e_kg` is what that much electricity stands for in `country` (ISO 3166, three
    letters). Both are None where codecarbon fails."""

    def __init__(self, country: str = COUNTRY):
        self.country, self.facts = country, dict[str, Any]()

    def __enter__(self) -> "Meter":
        self._start, self._began, self._tracker = time.monotonic(), now(), None
        logging.getLogger("codecarbon").disabled = True  # it speaks before it reads its log level
        with contextlib.suppress(Exception):  # a broken power sensor must not stop a run
            from codecarbon import OfflineEmissionsTracker

            quiet = {"save_to_file": False, "log_level": "critical", "allow_multiple_runs": True}
            tracker = OfflineEmissionsTracker(country_iso_code=self.country, measure_power_secs=INTERVAL, **quiet)
            tracker.start()
            self._tracker = tracker
        return self

    def so_far(self) -> dict[str, Any]:
        """The facts while the block runs, for one that may be killed: of energy nobody knows."""
        seconds = round(time.monotonic() - self._start, 2)
        return {"start": self._began, "end": now(), "seconds": seconds, "energy_kwh": None, "energy_method": None}

    def __exit__(self, *exception: object) -> None:
        found = self.so_far()
        with contextlib.suppress(Exception):
            if self._tracker is not None:
                self._tracker.stop()
                data = self._tracker.final_emissions_data
                found |= {
                    "energy_kwh": round(float(data.energy_consumed), 9), "energy_method": _method(self._tracker),
                    "co2e_kg": round(float(data.emissions), 9), "country": self.country,
                }  # fmt: skip
        self.facts = found


def summed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of several Meters as one's, from the first start to the last end. An amount is None where one is."""
    starts, ends = ([part[key] for part in parts if part.get(key)] for key in ("start", "end"))
    found = (dict(parts[-1]) if parts else {}) | {"start": min(starts, default=None), "end": max(ends, default=None)}
    for key in AMOUNTS:
        values = [part.get(key) for part in parts]
        found[key] = None if None in values or not values else round(sum(values), 9)
    methods = dict.fromkeys(part["energy_method"] for part in parts if part.get("energy_method"))
    return found | {"energy_method": "; ".join(methods) or None}


def _method(tracker: Any) -> str:
    """What codecarbon read, part by part. Of memory it knows a model alone, so that decides nothing."""
    kinds = [(type(part).__name__, getattr(part, "_mode", None)) for part in getattr(tracker, "_hardware", [])]
    parts = [(kind, mode or ("sensor" if kind in WITH_SENSORS else "model")) for kind, mode in kinds]
    read = [mode in ("sensor", *SENSORS) for kind, mode in parts if kind != "RAM"]
    said = "measured" if read and all(read) else "partly an estimate" if any(read) else "an estimate"
    return f"codecarbon, whole machine, {said} ({', '.join(map(' '.join, parts))})"
