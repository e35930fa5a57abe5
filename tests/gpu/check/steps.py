"""Part `steps`: one optimiser step of a LoRA student from stored rows, against cross-entropy on the same tokens.

All alternatives take turns on one model: the decoder, the loss from its states on, backward, the optimiser. Teacher
rows come from the host's memory, as they do in training; the teacher's head stays on the GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import objectives
from benchmarks.objectives import Case, rows_of
from benchmarks.timing import alternate, spread
from check.ceilings import release
from check.findings import Report, Row
from check.sizes import Shape, Sizes, llama
from primekd.config import LossConfig, load_profile
from primekd.models.students import with_adapter
from primekd.signals import HiddenRows, SignalRows
from primekd.training.examples import IGNORED
from primekd.training.objective import StudentObjective

TEMPERATURE = 5.94
LOSS = LossConfig(divergence="forward_kl", temperature=TEMPERATURE, alpha=0.5)
PLAIN_STEP, OWN_STEP = "cross-entropy, the model's own loss", "cross-entropy, this project"
MOST = 1.5  # times this project's cross-entropy step on the same response tokens, hoped
RIVALS = (objectives.TRL_CHUNKED, objectives.LIGER, objectives.LIGER_TRITON)


@dataclass
class Student:
    """A LoRA student, its optimiser and one batch, (B, S) each."""

    objective: StudentObjective
    optimizer: torch.optim.Optimizer
    batch: dict[str, Tensor]

    @property
    def targets(self) -> Tensor:
        """(N,), the response tokens in order."""
        targets = self.batch["labels"][:, 1:]
        return targets[targets != IGNORED]

    def step(self, loss: Callable[[], Any]) -> None:
        """`loss` runs forward and backward."""
        loss()
        self.optimizer.step()
        self.optimizer.zero_grad()


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    for name, shape in sizes.students.items():
        measure(name, shape, sizes, add)
        release()


def measure(name: str, shape: Shape, sizes: Sizes, add: Callable[..., None]) -> None:
    """All alternatives of one student: time and peak memory."""
    student = make_student(shape, sizes)
    signals = {f"hidden, width {width}": teacher_rows("hidden", width, sizes) for width in sizes.teacher_widths}
    signals |= {codec: teacher_rows(codec, shape.hidden_size, sizes) for codec in ("topk", "sampled")}
    calls = {PLAIN_STEP: partial(student.step, partial(plain_loss, student))}
    calls[OWN_STEP] = partial(student.step, partial(own_loss, student, None))
    calls |= {f"{signal} rows": partial(student.step, partial(own_loss, student, r)) for signal, r in signals.items()}
    for rival in RIVALS:
        for width in sizes.teacher_widths:
            rows = signals[f"hidden, width {width}"]
            loss = partial(rival_loss, student, rival, rows)
            calls[f"{rival}, hidden, width {width} rows"] = partial(student.step, loss)
    for call in refused(calls, f"{name}: a step, ", add):
        del calls[call]
    times = alternate(calls, sizes.rounds, warm_up=())
    heads = {what: rows.head.nbytes / 2**30 for what, rows in signals.items() if isinstance(rows, HiddenRows)}
    for what, call in calls.items():
        to_own, to_plain = (ratios(times[what], times[other]) for other in (OWN_STEP, PLAIN_STEP))
        mine = what.endswith(" rows") and not what.startswith(RIVALS)
        note = f"{to_own['low']:.2f} to {to_own['high']:.2f} over {len(times[what])} rounds"
        others = sum(size for signal, size in heads.items() if signal not in what)  # lie there for other alternatives
        peak = peak_gib(call)
        also = {
            "x the model's own loss": to_plain["median"], "ms": 1000 * spread(times[what])["median"],
            "GiB at the peak": None if peak is None else peak - others,
        }  # fmt: skip
        row = Row(f"{name}/{what}", f"{name}: a step, {what}", to_own["median"], "x cross-entropy", hope=True)
        add(replace(row, most=MOST if mine else None, note=note, also=also))
    alone(name, student, signals, sizes, add)


def ratios(times: list[float], others: list[float]) -> dict[str, float]:
    """Round by round."""
    return spread([a / b for a, b in zip(times, others, strict=True)])


def alone(name: str, student: Student, signals: dict[str, SignalRows], sizes: Sizes, add: Callable[..., None]) -> None:
    """The loss by itself on the step's own rows, and the head products, without which no loss can do."""
    with torch.no_grad():
        states, targets = student.objective.response_states(**student.batch)
    head = student.objective.head()[0].detach()
    for signal, rows in signals.items():
        case = Case(states.detach().clone().requires_grad_(), head, targets, rows.to(states.device), LOSS)
        calls = {kind: partial(objectives.alternative(kind), case) for kind in (objectives.FROZEN, objectives.PRODUCTS)}
        ms = {kind: 1000 * spread(seconds)["median"] for kind, seconds in alternate(calls, sizes.rounds).items()}
        also = {"ms of products": ms[objectives.PRODUCTS]}
        what = f"{name}: the loss of a step alone, {signal} rows"
        add(Row(f"{name}/{signal} rows/loss", what, ms[objectives.FROZEN], "ms", also=also))


def refused(calls: dict[str, Callable[[], None]], what: str, add: Callable[..., None]) -> list[str]:
    """Runs each once, which compiles what has to be compiled; names those that do not run, which only rivals may."""
    failed = []
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            if not name.startswith(RIVALS):
                raise
            failed.append(name)
            add(Row(name, what + name, None, note=f"{type(error).__name__}: {error}"[:200]))
    return failed


def make_student(shape: Shape, sizes: Sizes) -> Student:
    """Random weights in bfloat16, the paper profile's LoRA without its dropout, AdamW, and one batch of full rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lora = load_profile("paper").student.lora.model_copy(update={"dropout": 0.0})
    model = with_adapter(llama(shape, sizes.vocabulary, torch.bfloat16), lora, "bfloat16").to(device).train()
    objective = StudentObjective(model, LOSS, sizes.vocabulary)
    generator = torch.Generator().manual_seed(1)
    length = sizes.prompt + sizes.response
    ids = torch.randint(sizes.vocabulary, (sizes.sequences, length), generator=generator)
    labels = ids.clone()
    labels[:, : sizes.prompt] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    parameters = [p for p in model.parameters() if p.requires_grad]
    return Student(objective, torch.optim.AdamW(parameters, lr=1e-4), {k: v.to(device) for k, v in batch.items()})


def teacher_rows(codec: str, width: int, sizes: Sizes) -> SignalRows:
    """Random rows of all response tokens; they lie in the host's memory, the head where it is used."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(2)
    head = torch.randn(sizes.vocabulary, width, generator=generator, device=device, dtype=torch.bfloat16)
    head.mul_(objectives.LOGIT_SD / width**0.5)
    states = torch.randn(sizes.sequences * sizes.response, width, generator=generator, device=device)
    rows = rows_of(codec, states.bfloat16(), head, TEMPERATURE)
    if codec != "hidden":
        return rows.to(torch.device("cpu"))
    return HiddenRows(rows.hidden.cpu(), head)


def plain_loss(student: Student) -> None:
    """The model's own loss, autocast as transformers' `Trainer(bf16=True)` does it."""
    with torch.autocast(student.batch["input_ids"].device.type, torch.bfloat16):
        loss = student.objective.model(**student.batch).loss
    loss.backward()


def own_loss(student: Student, rows: SignalRows | None) -> None:
    """This project's objective, rows brought from the host."""
    device = student.batch["input_ids"].device
    rows = None if rows is None else rows.to(device)
    loss, _ = student.objective(**student.batch, teacher=rows, tokens=len(student.targets))
    loss.backward()


def rival_loss(student: Student, rival: str, rows: SignalRows) -> None:
    """The same decoder, then a rival's loss from its states on."""
    states, targets = student.objective.response_states(**student.batch)
    head = student.objective.head()[0]
    objectives.alternative(rival)(Case(states, head, targets, rows.to(states.device), LOSS))


def peak_gib(call: Callable[[], None]) -> float | None:
    """What torch's allocator holds at most in one step, weights and heads included; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30
