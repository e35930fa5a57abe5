"""What items share with each other, from their ids alone: a file of answers does not say which task it is of."""

import re

from primekd.tasks import grammar, gsm_symbolic

TASKS = (gsm_symbolic.TASK, grammar.TASK)  # those whose items are no independent draws


def transfer_id(item_id: str) -> str:
    """The id of an item of the second set: no item of the first has it."""
    return f"transfer:{item_id}"


def sample_id(item_id: str, number: int) -> str:
    """The id of an item's `number`-th sampled answer, from 1."""
    return f"{item_id}#sample-{number}"


def item_of(answer_id: str) -> str:
    """The item that an id is of: its samples have it in common."""
    return re.sub(r"#sample-[0-9]+\Z", "", answer_id)


def cluster_of(answer_id: str) -> str:
    """The cluster that the first task finds which knows the id's form; an item of no known form is itself."""
    item_id = item_of(answer_id).removeprefix("transfer:")
    return next((found for task in TASKS if (found := task.cluster(item_id)) != item_id), item_id)
