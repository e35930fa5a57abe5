"""Seconds, energy and emissions of a stage, for its manifest."""

import contextlib
import logging
import time
from typing import Any

SENSORS = ("intel_rapl", "intel_power_gadget", "windows_emi")  # codecarbon's ways to know a processor that are read
WITH_SENSORS = ("GPU", "AppleSiliconChip")  # its parts that are always read
INTERVAL = 10  # seconds between two readings
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
        self._start, self._tracker = time.monotonic(), None
        logging.getLogger("codecarbon").disabled = True  # it speaks before it reads its log level
        with contextlib.suppress(Exception):  # a broken power sensor must not stop a run
            from codecarbon import OfflineEmissionsTracker

            quiet = {"save_to_file": False, "log_level": "critical", "allow_multiple_runs": True}
            tracker = OfflineEmissionsTracker(country_iso_code=self.country, measure_power_secs=INTERVAL, **quiet)
            tracker.start()
            self._tracker = tracker
        return self

    def __exit__(self, *exception: object) -> None:
        found: dict[str, Any] = {"energy_kwh": None, "energy_method": None}
        with contextlib.suppress(Exception):
            if self._tracker is not None:
                self._tracker.stop()
                data = self._tracker.final_emissions_data
                found = {
                    "energy_kwh": round(float(data.energy_consumed), 9), "energy_method": _method(self._tracker),
                    "co2e_kg": round(float(data.emissions), 9), "country": self.country,
                }  # fmt: skip
        self.facts = {"seconds": round(time.monotonic() - self._start, 2), **found}


def _method(tracker: Any) -> str:
    """What codecarbon read, part by part. Of memory it knows a model alone, so that decides nothing."""
    kinds = [(type(part).__name__, getattr(part, "_mode", None)) for part in getattr(tracker, "_hardware", [])]
    parts = [(kind, mode or ("sensor" if kind in WITH_SENSORS else "model")) for kind, mode in kinds]
    read = [mode in ("sensor", *SENSORS) for kind, mode in parts if kind != "RAM"]
    said = "measured" if read and all(read) else "partly an estimate" if any(read) else "an estimate"
    return f"codecarbon, whole machine, {said} ({', '.join(map(' '.join, parts))})"
