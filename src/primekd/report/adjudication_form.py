"""The form of a notebook, with what follows it: logs regraded, the report written anew."""

from typing import Any

from primekd.assessment.decisions.cases import decides_on
from primekd.assessment.decisions.decisions import default_who
from primekd.assessment.decisions.form import Form, is_attended
from primekd.assessment.decisions.session import open_session
from primekd.config import Profile
from primekd.foundation.errors import UserError
from primekd.report.readme import write_anew
from primekd.studies.settling import finish


def adjudication_form(profile: Profile, who: str | None = None, **chosen: Any) -> None:
    """Shows the form. `chosen`: models, limit, audit and seed, as for `primekd adjudicate`. Where nobody sits before
    the notebook (`primekd run`), it only says how many answers wait. Raises UserError if a log or the file of decisions
    cannot be read, a model has no log, or an audit names nobody."""
    if who is None:
        try:
            who = default_who()
        except UserError:
            if chosen.get("audit"):
                raise  # which answers are drawn depends on who has seen which
            who = ""  # asked for in the form
    if not decides_on(profile):
        print("People decide on answers that are numbers, which those to this task are not.")
        return
    session, said = open_session(profile, who, **chosen)
    if not session.cases:
        print(f"There is nothing to adjudicate. {said}")
    elif not is_attended():
        print(f"{said} Open this notebook, or run `primekd adjudicate --profile {profile.name}`, to decide on them.")
    else:
        from IPython.display import display

        display(Form(session, lambda done: finish(done, write_anew), said).root)
