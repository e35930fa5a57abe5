"""The one exception that a user is meant to see: a sentence that names the file and the fix."""

from pydantic import ValidationError

from primekd.foundation.outside import clean


class UserError(Exception):
    """A mistake or a condition that the user can mend. The command line and notebooks show it without a traceback."""

    def _render_traceback_(self) -> list[str]:  # what IPython asks an exception for
        return [f"primekd: {self}"]


def findings_text(error: ValidationError, most: int = 3) -> str:
    """What pydantic found, in one line: the place and what is wrong there, of the first few findings."""
    found = []
    for detail in error.errors(include_url=False, include_input=False)[:most]:
        key = clean(".".join(str(part) for part in detail["loc"] if part != "[key]"), 80)
        if detail["type"] == "extra_forbidden":
            found.append(f"unknown key '{key}'")
        elif detail["type"] == "missing":
            found.append(f"key '{key}' is missing")
        else:
            found.append(f"{key or '(top level)'}: {' '.join(detail['msg'].removeprefix('Value error, ').split())}")
    return "; ".join(found)
