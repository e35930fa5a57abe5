"""Which of the training's processes this is, as torchrun and `accelerate launch` say it in the environment."""

import os
import threading
import time

LAUNCHER = "PRIMEKD_LAUNCHER_PID"


def process_count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this process writes and speaks for all."""
    return int(os.environ.get("RANK", 0)) == 0


def join_processes() -> None:
    """Meets the other processes and takes this one's GPU; ends this process when the one that launched all is gone.

    Raises:
        UserError: fewer GPUs here than processes.
    """
    import torch
    from accelerate import PartialState

    from primekd.foundation.errors import UserError

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if 0 < gpus < here:
        raise UserError(f"{here} processes were asked for and there are {gpus} GPUs here: lower launch.processes.")
    if launcher := os.environ.get(LAUNCHER):
        threading.Thread(target=_end_with, args=(int(launcher),), daemon=True).start()
    PartialState(cpu=not gpus)


def leave_processes() -> None:
    """Closes what `join_processes` opened."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


def _end_with(process: int) -> None:
    # A killed launcher cannot end its workers, and they would write the same checkpoints as the next training.
    while True:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(2)
