"""Where the published study's released answers lie; tests that need them are skipped where they do not."""

import csv
import os
from pathlib import Path

import pytest
from conftest import ROOT

FOLDER = Path(os.environ.get("PRIMEKD_PUBLISHED_LOGS") or ROOT.parent / "shared" / "data" / "published-logs")
LABELLED = ("control", "base-fine-tune", "base-KD", "reverseKL-KD")
MODELS = (*LABELLED, "teacher-KD", "ai-KD")

needs_published_logs = pytest.mark.skipif(
    not all((FOLDER / f"{model}.csv").is_file() for model in MODELS),
    reason="the published logs are not here; name their folder in PRIMEKD_PUBLISHED_LOGS",
)


def read_published(model: str) -> list[dict[str, str]]:
    """The rows of one released log, as they stand there."""
    csv.field_size_limit(2**24)
    with open(FOLDER / f"{model}.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
