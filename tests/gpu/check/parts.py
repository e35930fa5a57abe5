"""The parts in order of worth: if the time is short, the last ones are missing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """`module`: in this package, with `run(sizes, add, report)`; `limit_s`: it is stopped after so many seconds."""

    does: str
    module: str
    limit_s: int


PARTS = {
    "losses": Part("losses and gradients against float64", "exactness", 100),
    "engine": Part("the transformers engine's rows against float32", "engine", 60),
    "study": Part("a tiny study from capture to answers; two processes on one GPU", "study", 150),
    "steps": Part("a distillation step against a LoRA cross-entropy step", "steps", 150),
    "alone": Part("the loss alone, against the chip's own rates", "alone", 50),
    "capture": Part("generating with and without signals, scoring, bytes on disk", "capturing", 70),
    "kernel": Part("whether a Triton kernel for the loss would pay", "kernel", 10),
    "engines": Part("every installed GPU engine, and a study by the one command", "engines", 240),
}
