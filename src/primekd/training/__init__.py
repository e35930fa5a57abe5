"""Training a student: one trainer for LoRA and from scratch, with stored, live or no teacher signals.

A step passes through six files, in this order:

1. `training/trainer.py` takes a micro-batch and asks for its loss;
2. `training/examples.py` made that batch, and says which tokens rows are wanted for;
3. `signals/reader.py` (a store) or `signals/live.py` (a teacher) gives the rows;
4. `training/objective.py` runs the student up to its hidden states;
5. `losses/chunked.py` makes loss and gradient of both, some rows at a time;
6. `losses/products.py` multiplies by the output head without rounding.

Rows travel as the dataclasses of `signals/rows.py`. Around a step: `checkpoints.py` and `processes.py` resume and share
out the work, `distill.py` is the stage, and what is trained is made and saved by `models/students.py`. The formulas to
read first are in `losses/slopes.py`, and as plain functions in `benchmarks/plain_losses.py`."""
