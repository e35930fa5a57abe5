"""The forms of a solution that a teacher is taught: other words, the same answer."""

from random import Random

import pytest

from primekd.config import load_profile
from primekd.tasks.forms import FORMS
from primekd.tasks.gsm_symbolic import generate_gsm_symbolic
from primekd.tasks.numbers import parse_answer

SOLUTION = "Michael has 76 / 4 = 19 friends.\nDavid has 2 * 19 = $38 in all\n#### 38"
STEPS = ["Michael has 76 / 4 = 19 friends", "David has 2 * 19 = $38 in all"]


@pytest.fixture(scope="module")
def taught() -> list:
    """Four items of every template of the profile pocket."""
    data = load_profile("pocket").data
    return generate_gsm_symbolic(data.templates, "teacher", 4 * len(data.templates), 0, data.difficulty)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_ends_in_the_gold_answer_and_names_no_other(form, taught):
    assert len({item.id.rsplit("-", 1)[0] for item in taught}) == len(load_profile("pocket").data.templates)
    for item in taught:
        text = FORMS[form](item.solution, Random(1))
        assert text.count("####") == 1 and text.startswith("####") == (form == "answer")
        assert parse_answer(text.splitlines()[-1].removeprefix("#### ")) == item.answer


def test_the_answer_alone_shows_no_calculation_and_gold_is_the_solution_as_it_is():
    assert FORMS["answer"](SOLUTION, Random(0)) == "#### 38"
    assert FORMS["gold"](SOLUTION, Random(0)) == SOLUTION


def test_varied_steps_are_the_solutions_in_every_wording():
    texts = {FORMS["varied"](SOLUTION, Random(seed)) for seed in range(400)}
    for place in (0, 1):
        lines = {text.splitlines()[place] for text in texts}
        assert len(lines) == 27  # three openings, equals signs and closings
        plain = {line.split(": ")[-1].replace(" equals ", "=").replace(" = ", "=").rstrip(".;") for line in lines}
        assert plain == {STEPS[place].replace(" = ", "=")}
    assert FORMS["varied"](SOLUTION, Random(7)) == FORMS["varied"](SOLUTION, Random(7))


def test_explained_steps_say_each_result_again():
    lines = FORMS["explained"](SOLUTION, Random(0)).splitlines()
    assert len(lines) == 6 and lines[2::2] == ["This step gives 19.", "This step gives 38."]


def test_a_step_without_a_result_is_explained_by_nothing():
    lines = FORMS["explained"]("Mary = all of them\nShe has 2 = 2.0 apples, 3 pears\n#### 5", Random(0)).splitlines()
    assert len(lines) == 4 and not any("gives" in line for line in lines)
