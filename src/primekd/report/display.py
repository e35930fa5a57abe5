"""What the notebooks show: small tables and figures of a stage's files."""

from typing import TYPE_CHECKING

import pandas as pd

from primekd.capture.primings import priming_of
from primekd.capture.run import Job, open_signals
from primekd.config import Profile
from primekd.config.arms import get_arm
from primekd.foundation.tables import read_records
from primekd.models import load_tokenizer
from primekd.models.chat import build_prompt, decode_response
from primekd.signals.manifest import read_store
from primekd.statistics.contrasts import ContrastRow
from primekd.statistics.summary import SummaryRow
from primekd.tasks.load import load_items

if TYPE_CHECKING:
    from matplotlib.figure import Figure

pd.set_option("display.max_colwidth", None)


def settings_table(profile: Profile) -> pd.DataFrame:
    """Every setting of a profile, one a row."""
    rows = []
    for section, values in profile.resolved().items():
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        rows += [(section, key, value) for key, value in pairs]
    return pd.DataFrame(rows, columns=["section", "key", "value"])


def prompts_table(profile: Profile, strategy: str) -> pd.DataFrame:
    """The first training question as the teacher reads it with and without the priming text, and as the student does.

    A priming text that replaces the model's default system text makes two differences, and both are seen here.
    """
    asked = load_items(profile, "train")[0].messages
    teacher, priming = load_tokenizer(profile.teacher), priming_of(get_arm(strategy), profile.teacher)
    views = {
        "teacher": build_prompt(teacher, asked, priming),
        "teacher without priming": build_prompt(teacher, asked),
        "student": build_prompt(load_tokenizer(profile.student), asked),
    }
    return pd.DataFrame([(who, prompt.text) for who, prompt in views.items()], columns=["who", "prompt"])


def responses_table(job: Job, count: int = 5) -> pd.DataFrame:
    """The teacher's first responses."""
    reader, tokenizer = open_signals(job), load_tokenizer(job.profile.teacher)
    items = load_items(job.profile, job.split)[:count]
    rows = [
        (item.question, decode_response(tokenizer, reader.item(item.id).response_ids), str(item.answer))
        for item in items
    ]
    return pd.DataFrame(rows, columns=["question", "teacher's response", "gold"])


def signals_table(job: Job) -> pd.DataFrame:
    """Size and quality of a captured store."""
    manifest = read_store(job.folder)
    facts = {
        "codec": manifest["spec"]["codec"]["name"],
        "items": manifest["items"],
        "response tokens": manifest["tokens"],
        "bytes a token": round(manifest["bytes"] / manifest["tokens"]),
        "error": manifest["spec"]["codec"]["error"],
        "seconds": sum(s["seconds"] for s in manifest["sessions"]),
    }
    facts |= {f"reconstruction: {k}": v for k, v in manifest.get("reconstruction", {}).items()}
    return pd.DataFrame(facts.items(), columns=["what", "value"])


def loss_figure(profile: Profile, strategy: str, seed: int) -> "Figure":
    """Training and validation loss of one student."""
    from matplotlib.figure import Figure

    curve = pd.read_csv(profile.student_folder(strategy, seed) / "loss_curve.csv")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve["step"], curve["loss"], label="training loss (objective)")
    validation = curve.dropna(subset="eval_loss")
    axes.plot(
        validation["step"], validation["eval_loss"], "o-", label="validation loss (cross-entropy on gold solutions)"
    )
    axes.set(xlabel="step", ylabel="nats a token", title=f"{get_arm(strategy).title} on {profile.name}")
    axes.legend()
    return figure


def summary_table(profile: Profile) -> pd.DataFrame:
    """summary.csv of this machine's logs."""
    return pd.DataFrame(read_records(profile.logs / "summary.csv", SummaryRow))


def contrasts_table(profile: Profile) -> pd.DataFrame:
    """contrasts.csv of this machine's logs."""
    return pd.DataFrame(read_records(profile.logs / "contrasts.csv", ContrastRow))
