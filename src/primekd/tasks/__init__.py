"""What is asked and how an answer is judged: one file a task behind `protocol`, and what tasks share.

Nothing outside this package and `studies` knows what a question is about. No models and no prompts' templates here."""

from primekd.tasks.clusters import cluster_of
from primekd.tasks.load import NEUTRAL, load_answer_sets, load_items, task_of
from primekd.tasks.numbers import NUMBERS, NumberTask, parse_answer
from primekd.tasks.protocol import Item, Task, Unlabelled, as_text, with_examples, with_instruction, without_gold
from primekd.tasks.splits import hash_items, refuse_overlap
