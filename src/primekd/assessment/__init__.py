"""Asking models the test questions and judging what they answer: answers, held-out fit, grading, per-item logs.

`reading` reads a value from a text, `decisions` keeps what people decided. No intervals and no tests: see `statistics`.
"""
