"""Part `alone`: the loss by itself at Llama's vocabulary, against the chip's matrix rate and memory bandwidth.

A loss from hidden rows needs three products, of 2 N V D operations each: the student's logits, the gradient for its
states, and, at the teacher's width, the teacher's logits. What it takes beyond them it spends on passes over logits.
"""

from collections.abc import Callable
from functools import partial

from benchmarks import objectives
from benchmarks.objectives import CROSS_ENTROPY, FROZEN, LIGER, LIGER_TRITON, PRODUCTS, TRL_CHUNKED, make_case
from benchmarks.timing import alternate, spread
from check.ceilings import bytes_per_s, products_per_s, release
from check.findings import Report, Row
from check.sizes import Sizes

SHARE = 0.5  # of the matrix rate, hoped of the loss from hidden rows
PASSES_OF = "passes over float32 logits that fit between its products"
FLOOR = 1.05  # a loss that is faster than its own products was not measured rightly
PASSES = 12  # over float32 logits, hoped: what stands between the products, each pass a reading or a writing
RIVALS = (TRL_CHUNKED, LIGER, LIGER_TRITON)


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    rate, bandwidth = products_per_s(sizes), bytes_per_s(sizes)
    add(
        Row("rate", f"bfloat16 product of {sizes.square} x {sizes.square}", rate / 1e12, "TFLOP/s"),
        Row("bandwidth", f"copy of {sizes.copied / 2**30:.3g} GiB, read and written", bandwidth / 1e12, "TB/s"),
    )
    release()
    for width in sizes.teacher_widths:
        measure("hidden", width, sizes, rate, bandwidth, add)
        release()
    for signal in ("topk", "sampled"):
        measure(signal, sizes.checked_width, sizes, rate, bandwidth, add)
        release()


def measure(signal: str, width: int, sizes: Sizes, rate: float, bandwidth: float, add: Callable[..., None]) -> None:
    """This project's loss and its rivals on the same inputs."""
    n, v, d = sizes.alone, sizes.vocabulary, sizes.checked_width
    case = make_case(n, d, v, "bfloat16", signal, teacher_width=width)
    calls = {name: partial(objectives.alternative(name), case) for name in (CROSS_ENTROPY, FROZEN, PRODUCTS)}
    what = f"{signal} rows" + (f", width {width}" if signal == "hidden" else "")
    if signal == "hidden":
        for rival in RIVALS:
            try:
                call = partial(objectives.alternative(rival), case)
                call()
                calls[rival] = call
            except Exception as error:  # not installed, or it does not run here
                note = f"{type(error).__name__}: {error}"[:200]
                add(Row(f"{rival}/{what}", f"{n} tokens, {rival}, {what}", None, note=note))
    seconds = {name: spread(times)["median"] for name, times in alternate(calls, sizes.rounds).items()}
    operations = 2 * n * v * (2 * d + (width if signal == "hidden" else 0))
    own = calls[FROZEN]()
    for name, taken in seconds.items():
        # A rival that is fast at something else would be no rival.
        note = f"its loss is {calls[name]() / own:.4f} of this project's" if name in RIVALS else ""
        add(Row(f"{name}/{what}", f"{n} tokens, {name}, {what}", 1000 * taken, "ms", note=note))
    share, between = operations / seconds[FROZEN] / rate, seconds[FROZEN] - seconds[PRODUCTS]
    floor = seconds[PRODUCTS]
    passes = between * bandwidth / (4 * n * v)
    hoped = SHARE if signal == "hidden" else None
    add(
        Row(f"floor/{what}", f"{PRODUCTS}, of the loss's time, {what}", floor / seconds[FROZEN], most=FLOOR),
        Row(f"share/{what}", f"of the matrix rate, {FROZEN}, {what}", share, "", least=hoped, hope=True),
        Row(f"passes/{what}", f"{PASSES_OF}, {what}", passes, "", most=PASSES, hope=True),
    )
