"""The task facts: what counts as a right completion, and which files it reads."""

import json

import pytest
from conftest import small_profile

from primekd.foundation.errors import UserError
from primekd.tasks.facts import TASK, find_keyword, keywords_of
from primekd.tasks.load import load_items
from primekd.tasks.protocol import Item


def facts(folder, **data):
    return small_profile(
        folder, data={"task": "facts", "source": "own", "train_items": 0, "validation_items": 0} | data
    )


def test_there_are_two_hundred_facts_of_many_kinds_each_once(tmp_path):
    items = load_items(facts(tmp_path, test_items=200), "test")
    assert len({item.question for item in items}) == 200 and len({item.category for item in items}) >= 10
    for item in items:
        assert item.accepted and not find_keyword(item.question, item.accepted), f"{item.id} gives its answer away"
        assert TASK.judge(item, f" {item.accepted[0]}.", None).correct, item.id
    assert load_items(facts(tmp_path, test_items=200), "train", 0) == []
    known = {item.id: item for item in items}
    for name, wrong, right in (
        ("authors-18", "Emily Brontë", "Charlotte Bronte"), ("authors-15", "Percy Bysshe Shelley", "Mary Shelley"),
        ("oceans-06", "red line", "Red Sea"), ("history-01", "Washington, D.C.", "George Washington"),
        ("inventions-05", "Orville Redenbacher", "Orville and Wilbur Wright"), ("currencies-18", "shill", "shillings"),
        ("geography-08", "Prussia", "the Russian Federation"), ("mountains-07", "K20", "Mount Godwin Austen"),
    ):  # fmt: skip
        assert [TASK.judge(known[name], said, None).correct for said in (wrong, right)] == [False, True], name


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("Paris", " Paris, of course.", True),
        ("Paris", "PARIS", True),
        ("Paris", "Parisian food", False),
        ("Rome | Roma", "it is called Roma.", True),
        ("Fe", "Fe", True),
        ("Fe", "fe fi fo", False),
        ("H2O", "H2O2", False),
        ("van Gogh | Gogh", "Vincent van\nGogh", True),
        ("Brontë", "Charlotte Brontë", True),
        ("six | 6", "sixteen, 66", False),
        ("12 | twelve", "12.5", False),
        ("12 | twelve", "2,012", False),
        ("12 | twelve", "It is 12.", True),
        ("100", "100,000", False),
        ("100", "100, or 373 K", True),
        ("Paris", "", False),
    ],
)
def test_a_completion_is_right_that_holds_a_keyword_as_a_whole_word(answer, response, right):
    judged = TASK.judge(Item("a", "q", "", answer), response, None)
    assert judged.correct == right and (judged.span is not None) == right
    if right:
        assert response[slice(*judged.span)] == judged.value
        assert judged.value.casefold() in [word.casefold() for word in keywords_of(answer)]
    assert judged.rule == ("keyword" if right else "no-keyword" if response else "empty")


def test_a_response_of_ten_thousand_tokens_is_judged():
    assert TASK.judge(Item("a", "q", "", "Paris"), "word " * 10_000 + "Paris", None).correct


@pytest.mark.parametrize(
    "row",
    [
        {"query": "The capital of France is"},
        {"query": "x", "accepted": []},
        {"query": "x", "accepted": ["a", " "]},
        {"query": "x", "accepted": "Paris"},
        {"query": "", "accepted": ["a"]},
        {"query": "x", "accepted": ["a | b"]},
    ],
)
def test_a_query_without_a_keyword_is_refused_with_its_line(tmp_path, row):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps({"query": "The capital of Italy is", "accepted": ["Rome"]}) + "\n" + json.dumps(row))
    with pytest.raises(UserError, match=r"facts.jsonl line 2: .*(accepted|query)"):
        load_items(facts(tmp_path, source="jsonl", test_file=str(path), test_items=2), "test")
