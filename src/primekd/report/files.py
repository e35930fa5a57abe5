"""The CSV files of a logs folder, as rows of text."""

import csv
from collections.abc import Iterable
from pathlib import Path

from primekd.errors import UserError
from primekd.provenance import relative_name

Row = dict[str, str]

_ADJUDICATED = "accuracy_adjudicated,accuracy_adjudicated_low,accuracy_adjudicated_high"
ACCURACIES = "model,extractor,n,found,correct,accuracy,accuracy_low,accuracy_high,correct_adjudicated," + _ADJUDICATED
SEEDS = "model,reference,seeds,n,accuracy,accuracy_low,accuracy_high,seed_sd,item_se,seed_se,p," + _ADJUDICATED
AUDIT = "model,n,errors,rate,rate_low,rate_high"
RESPONSES = "model,n,correct,accuracy,accuracy_low,accuracy_high,tokens,truncated,same_share,same_whole"
DISAGREEMENTS = "model,both,only_released,only_rules,neither,n"
STATED = "model,title,n,stated,logged_correct,logged_n"
PUBLISHED_CONTRASTS = (
    "extractor,model,reference,only_model,only_reference,p,p_holm,accuracy,accuracy_low,accuracy_high,mde"
)
LABELS = "set,n,stated,implied,none,ambiguous,read_twice,agreed"
VALIDATION = (
    "set,extractor,stratum,n,with_value,found,coverage,coverage_low,coverage_high,"
    "precision,precision_low,precision_high,kappa,kappa_low,kappa_high"
)


def read_rows(path: Path, columns: str | Iterable[str]) -> list[Row]:
    """Rows of a CSV file that must be there.

    Raises:
        UserError: the file is missing, or has not all of the columns.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{relative_name(path)} is missing: run the assessment first.")
    wanted = set(columns.split(",") if isinstance(columns, str) else columns)
    csv.field_size_limit(2**24)
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{relative_name(path)} cannot be read: run the assessment again.") from error
    ragged = any(None in row or None in row.values() for row in rows)
    if wanted - set(reader.fieldnames or ()) or ragged:
        raise UserError(f"{relative_name(path)} has not the columns it should: run the assessment again.")
    return rows


def read_optional(path: Path, columns: str | Iterable[str]) -> list[Row]:
    """Rows of a CSV file; none where there is no such file."""
    return read_rows(path, columns) if Path(path).is_file() else []
