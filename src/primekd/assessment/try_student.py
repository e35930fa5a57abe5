"""Asking the control and some students one question, for `inference/try_student.ipynb`."""

from collections.abc import Sequence

import pandas as pd

from primekd.assessment.reading import extract
from primekd.config import Profile
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import MANIFEST, relative_name
from primekd.models import load_tokenizer
from primekd.models.chat import build_prompt, decode_response


def ask(profile: Profile, question: str, strategies: Sequence[str]) -> pd.DataFrame:
    """Greedy answers of the control and one student a strategy, and the number that is read from each.

    Raises:
        UserError: a strategy has no trained student.
    """
    from primekd.teachers import Sampling
    from primekd.teachers.transformers_engine import TransformersEngine

    tokenizer = load_tokenizer(profile.student)
    prompt = build_prompt(tokenizer, question)
    rows = []
    for name in ["control", *strategies]:
        folder = None if name == "control" else profile.student_folder(name)
        if folder and not (folder / MANIFEST).is_file():
            raise UserError(f"{relative_name(folder)} has no student: run {name}/distill.ipynb first.")
        adapter = folder / "adapter" if folder else None
        student = profile.student
        engine = TransformersEngine(student.model, student.dtype, 1, adapter, student.quantization, tokenizer)
        text = decode_response(tokenizer, engine.generate([prompt], Sampling(profile.max_new_tokens))[0].ids)
        rows.append((name, text, extract(text).text))
    return pd.DataFrame(rows, columns=["model", "answer", "read as"])
