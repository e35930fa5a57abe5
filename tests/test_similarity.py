"""Cosine of sentence embeddings and ROUGE-L, against what is known of them."""

import pytest

from primekd.assessment.similarity import cosines, embed, rouge_l

SENTENCES = ["The capital of France is Paris.", "Paris.", "A recipe for soup with carrots, onions and a little salt."]


def test_embeddings_have_length_one_and_do_not_depend_on_their_neighbours():
    together = embed(SENTENCES)
    assert together.norm(dim=-1).sub(1).abs().max() < 1e-5
    for row, text in zip(together, SENTENCES, strict=True):
        assert (embed([text])[0] - row).abs().max() < 1e-5


def test_what_means_the_same_is_nearer_than_what_does_not():
    others = [[SENTENCES[0]], ["Paris is the French capital city."], [SENTENCES[2]], [SENTENCES[2], SENTENCES[0]]]
    same, near, far, nearest = cosines([SENTENCES[0]] * 4, others)
    assert min(same, nearest) == pytest.approx(1, abs=1e-5) and 0.8 < near < 1 and far < 0.2


def test_rouge_is_the_longest_common_subsequence_of_words():
    assert rouge_l("the cat sat", ["the cat was sat on"]) == (1.0, pytest.approx(3 / 5))
    assert rouge_l("", ["Paris"]) == (0, 0) and rouge_l("Paris, PARIS", ["paris"]) == (pytest.approx(0.5), 1.0)
    for spelled in ("Brasília", "Brasilia"):
        assert rouge_l(f"{spelled}.", ["Brasília", "Brasilia"]) == (1, 1)
