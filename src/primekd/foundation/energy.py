"""Seconds and energy of a stage, for its manifest."""

import contextlib
import logging
import time
from typing import Any


class Meter:
    """Measures a `with` block. `facts` is filled in when the block ends, also when it ends badly.

    Energy is codecarbon's figure for the whole machine (RAPL or nvidia-smi where they can be read, else an estimate
    from the processor's rated power and load); it needs no network. `energy_kwh` is None where codecarbon fails.
    """

    def __init__(self):
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> "Meter":
        self._start, self._tracker = time.monotonic(), None
        logging.getLogger("codecarbon").disabled = True  # it speaks before it reads its log level
        with contextlib.suppress(Exception):  # a broken power sensor must not stop a run
            from codecarbon import OfflineEmissionsTracker

            quiet = {"save_to_file": False, "log_level": "critical", "allow_multiple_runs": True}
            # The country only turns energy into emissions, which are not reported.
            tracker = OfflineEmissionsTracker(country_iso_code="USA", measure_power_secs=10, **quiet)
            tracker.start()
            self._tracker = tracker
        return self

    def __exit__(self, *exception: object) -> None:
        energy = None
        with contextlib.suppress(Exception):
            if self._tracker is not None:
                self._tracker.stop()
                energy = round(float(self._tracker.final_emissions_data.energy_consumed), 9)
        self.facts = {
            "seconds": round(time.monotonic() - self._start, 2),
            "energy_kwh": energy,
            "energy_method": None if energy is None else "codecarbon, whole machine, measured or estimated from load",
        }
