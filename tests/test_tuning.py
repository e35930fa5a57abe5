"""Several learning rates: each arm keeps the student with the lowest validation loss, and all choices are shown."""

import csv
import json

import pytest
from conftest import small_profile

from primekd.assessment.students import find_students
from primekd.config import load_profile
from primekd.foundation import read_manifest, write_manifest, write_text
from primekd.foundation.errors import UserError
from primekd.planning.amounts import find_lengths, stages
from primekd.report.results import tuning_table
from primekd.studies.priming import costs
from primekd.tasks import load
from primekd.training import distill as stage
from primekd.training.checkpoints import Diverged
from primekd.training.distill import distill
from primekd.training.tuning import FILE, choose, read_tuning, tune

ARM = "base-fine-tune"
RATES = [1e-6, 0.5, 0.05]
DATA = {"train_items": 6, "validation_items": 3, "test_items": 2}


def with_rates(output, rates, **changes):
    return small_profile(output, data=DATA, train={"learning_rate": rates, "evaluations_per_epoch": 2} | changes)


def adapter(folder) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def profile(output):
    return with_rates(output, RATES)


@pytest.mark.parametrize(
    "losses, best",
    [
        ({1e-3: 2.0, 1e-4: 1.0, 1e-5: 3.0}, 1e-4),
        ({1e-3: 1.0, 1e-4: 1.0, 1e-5: 3.0}, 1e-4),  # of equal ones the lower rate, in whatever order they are named
        ({1e-5: 3.0, 1e-4: 1.0, 1e-3: 1.0}, 1e-4),
        ({1e-3: None, 1e-4: float("nan"), 1e-5: 3.0}, 1e-5),
    ],
)
def test_the_lowest_validation_loss_wins(losses, best):
    assert choose(losses) == best


def test_where_every_rate_diverges_no_student_is_chosen():
    with pytest.raises(UserError, match=r"every rate of train.learning_rate \(0.1, 1\): name lower ones"):
        choose({0.1: None, 1.0: None})


def test_the_kept_student_is_the_one_of_the_best_rate_and_every_choice_is_shown(profile, output):
    folder = distill(profile, ARM)
    rows, manifest = read_tuning([folder]), read_manifest(folder / "manifest.json")
    assert [row.learning_rate for row in rows] == RATES
    alone = {}
    for row in rows:  # each as if the profile named this rate alone
        other = output / f"{row.learning_rate:g}"
        other.mkdir()
        single = small_profile(
            other, data=DATA, name=f"one-{row.learning_rate:g}",
            train={"learning_rate": row.learning_rate, "evaluations_per_epoch": 2},
        )  # fmt: skip
        alone[row.learning_rate] = distill(single, ARM)
        with open(folder / "tuning" / f"{row.learning_rate:g}.csv", newline="") as handle:
            curve = list(csv.DictReader(handle))
        with open(alone[row.learning_rate] / "loss_curve.csv", newline="") as handle:
            assert [step["loss"] for step in csv.DictReader(handle)] == [step["loss"] for step in curve]
        # The last step's, of the weights that are kept.
        assert row.validation_loss == pytest.approx(float(curve[-1]["eval_loss"]), rel=1e-5)
    best = min(rows, key=lambda row: row.validation_loss)
    assert [row.chosen for row in rows] == [row is best for row in rows]
    assert len({row.validation_loss for row in rows}) == 3
    assert adapter(folder) == adapter(alone[best.learning_rate])
    assert manifest["tuning"][RATES.index(best.learning_rate)]["chosen"] is True
    assert (folder / "loss_curve.csv").read_text() == (folder / "tuning" / f"{best.learning_rate:g}.csv").read_text()
    assert not list((profile.runs / "checkpoints").iterdir())
    tokens = read_manifest(alone[best.learning_rate] / "manifest.json")["response_tokens"]
    assert manifest["response_tokens"] == 3 * tokens
    parts = [read_manifest(folder / "manifest.json") for folder in alone.values()]
    for key in ("energy_kwh", "co2e_kg"):
        assert manifest[key] > 1.5 * max(part[key] for part in parts), "of all three, not of the chosen one"
    assert {FILE, "tuning/0.5.csv", "loss_curve.csv"} < set(manifest["outputs"])


def test_a_validation_that_falls_between_the_last_steps_is_taken_again_at_the_end(output):
    """Five steps, validated after the second and fourth: the last one's weights are what is chosen between."""
    train = {"learning_rate": [0.1, 0.2], "epochs": 1, "batch_size": 1, "micro_batch_size": 1}
    folder = distill(small_profile(output, data=DATA | {"train_items": 5}, train=train), ARM)
    with open(folder / "loss_curve.csv", newline="") as handle:
        last = list(csv.DictReader(handle))[-1]
    assert last["step"] == "5"
    [chosen] = [row.validation_loss for row in read_tuning([folder]) if row.chosen]
    assert float(last["eval_loss"]) == pytest.approx(chosen, rel=1e-5)


def test_a_stopped_choice_goes_on_rate_by_rate_and_a_finished_one_does_nothing(profile, monkeypatch, capsys):
    trained, train = [], stage.train_student

    def counted(*args, **rest):
        trained.append(rest["train"].learning_rate)
        if len(trained) == 2:
            raise KeyboardInterrupt
        train(*args, **rest)

    monkeypatch.setattr(stage, "train_student", counted)
    with pytest.raises(KeyboardInterrupt):
        distill(profile, ARM)
    folder = distill(profile, ARM)
    assert trained == [RATES[0], RATES[1], RATES[1], RATES[2]]
    kept = adapter(folder)
    capsys.readouterr()
    distill(profile, ARM)
    assert "nothing to do" in capsys.readouterr().out and len(trained) == 4
    assert adapter(folder) == kept
    assert [student.name for student in find_students(profile, ARM)] == [ARM]


def test_the_test_split_is_never_looked_at(profile, monkeypatch):
    seen, task_of = [], load.task_of

    class Watched:
        def __init__(self, task):
            self.task = task

        def items(self, data, split, *rest):
            seen.append(split)
            if split == "test":
                raise AssertionError("the test split was read")
            return self.task.items(data, split, *rest)

        def __getattr__(self, name):
            return getattr(self.task, name)

    monkeypatch.setattr(load, "task_of", lambda data: Watched(task_of(data)))
    distill(profile, ARM)
    assert set(seen) == {"train", "validation"}


def test_a_rate_that_diverges_is_shown_and_not_chosen(profile, tmp_path, capsys):
    def run(folder, label, inputs, checkpoints, train):
        if train.learning_rate == 0.5:
            raise Diverged("at step 1 (loss nan)")
        write_text(folder / "adapter" / "adapter_model.safetensors", f"{train.learning_rate}")
        write_text(folder / "loss_curve.csv", "step\n")
        files = [folder / "adapter" / "adapter_model.safetensors", folder / "loss_curve.csv"]
        write_manifest(folder, "adapter", inputs, files, validation_loss=train.learning_rate, response_tokens=1)

    code = {"sha256": "0" * 64, "modules": {}, "packages": {}}
    folder = tmp_path / "student"
    tune(folder, "distill x", profile.train, {"train": {}}, tmp_path / "checkpoints", code, run)
    assert "distill x (0.5): The training diverged at step 1 (loss nan)" in capsys.readouterr().out
    assert [(row.validation_loss, row.chosen) for row in read_tuning([folder])] == [
        (1e-6, True), (None, False), (0.05, False),
    ]  # fmt: skip
    assert (folder / "adapter" / "adapter_model.safetensors").read_text() == "1e-06"
    table = tuning_table(folder)
    assert [str(cell) for cell in table.rows[1][1:]] == ["0.5", "diverged", ""]
    assert [row[-1] for row in table.rows] == ["yes", "", ""]


def test_one_number_stays_what_it_was(output):
    single = small_profile(output, data=DATA)
    dumped = single.train.model_dump(mode="json")
    assert dumped["learning_rate"] == 0.1 and single.train.rates == (0.1,)
    folder = distill(single, ARM)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter", "loss_curve.csv", "manifest.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert not {"tuning", "validation_loss"} & set(manifest)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"train": {"learning_rate": [0.1]}}, "train.learning_rate.list"),
        ({"train": {"learning_rate": [0.1, 11]}}, "train.learning_rate.list.1"),
        ({"train": {"learning_rate": [0.1, 0.1]}}, "names one rate twice"),
        ({"train": {"learning_rate": [0.1, 0.2]}, "launch": {"processes": 2}}, "one number where launch.processes"),
    ],
)
def test_rates_that_cannot_be_used_are_refused(changes, said, output):
    with pytest.raises(UserError, match=said):
        small_profile(output, **changes)


def test_a_taught_teacher_has_one_rate(output):
    train = {"optimizer": "adamw", "learning_rate": [1e-3, 1e-4], "batch_size": 2, "micro_batch_size": 2}
    prepare = load_profile("pocket").prepare.model_dump(mode="json") | {"train": train}
    with pytest.raises(UserError, match="a teacher is not tuned"):
        small_profile(output, prepare=prepare)


def test_plan_and_clock_count_every_rate(output):
    plain, several = small_profile(output, data=DATA), with_rates(output, RATES)
    [one], [many] = ([s for s in stages(p, find_lengths(p)) if s.name == "distill"] for p in (plain, several))
    assert many.response_tokens == pytest.approx(3 * one.response_tokens)
    assert costs(several)["distill"] - costs(plain)["distill"] == pytest.approx(
        2 * (costs(plain)["distill"] - 15), rel=1e-6
    )
