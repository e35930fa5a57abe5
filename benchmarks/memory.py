"""Peak memory of one alternative, in a process of its own, so that nothing of another one is counted."""

import ctypes
import gc
import importlib
import multiprocessing
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import time_once

# What is absent is skipped.
PRELOAD = ["torch", "transformers", "benchmarks.training", "benchmarks.rival_losses", "benchmarks.rival_trainers"]


def peak_bytes(prepare: str, *arguments: Any, **options: Any) -> int:
    """Bytes that one call needs above what was there before it; as `peak_and_seconds`."""
    return peak_and_seconds(prepare, *arguments, **options)[0]


def peak_and_seconds(prepare: str, *arguments: Any, **options: Any) -> tuple[int, float]:
    """Bytes that one call needs above what was there before it, and its time.

    Args:
        prepare: "module:function"; called with the other arguments in the new process it returns the call to measure.
            What it makes itself (inputs, weights) does not count.

    Returns:
        On a CPU the growth of the resident set's high-water mark; on a GPU of the allocator's. The time is that of a
        first call, with no warm-up beyond what `prepare` does.

    Raises:
        RuntimeError: the process failed; the message is its own.
    """
    # A server that has the libraries loaded and no threads yet: its children start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, torch.get_num_threads(), prepare, arguments, options))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = "it ended without an answer, perhaps for lack of memory"
    except BaseException:  # the part's time is over
        process.kill()
        process.join()
        raise
    process.join()
    if isinstance(found, str):
        raise RuntimeError(f"{prepare} {arguments}: {found}")
    return found


def _measure(sender, threads: int, prepare: str, arguments: tuple, options: dict) -> None:
    try:
        torch.set_num_threads(threads)
        module, _, name = prepare.partition(":")
        run = getattr(importlib.import_module(module), name)(*arguments, **options)
        seconds: list[float] = []
        sender.send((growth(lambda: seconds.append(time_once(run))), seconds[0]))
    except Exception as error:  # the parent says what went wrong
        sender.send(f"{type(error).__name__}: {error}")


def growth(run) -> int:
    """Bytes by which one call of `run` raises the peak above the level before it, in this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        level = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - level
    _warm_libraries()
    ctypes.CDLL(None).malloc_trim(0)  # freed pages that stay resident would be used again and not be seen
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark (proc(5))
    level = _status("VmRSS")
    run()
    return _status("VmHWM") - level


def _warm_libraries() -> None:
    """Loads the pages of the products' code: they belong to no alternative."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.zeros(64, 64, dtype=dtype, requires_grad=True)
        (weight @ weight).float().log_softmax(-1).sum().backward()


def _status(field: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found.group(1)) * 1024
