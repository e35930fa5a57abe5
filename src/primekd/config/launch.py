"""The section `launch`: on how many processes a student is trained. No adapter's identity depends on it."""

from pydantic import model_validator

from primekd.config.section import Positive, Section


class LaunchConfig(Section):
    """`processes` in all, one a GPU; above 1 they are started by `accelerate launch`.

    `accelerate` is its configuration file, relative to the checkout; left out, configs/accelerate/multi-gpu.yaml where
    there is a GPU, else cpu.yaml. `train.batch_size` stays the number of sequences a step, over all processes.
    """

    processes: Positive = 1
    accelerate: str | None = None

    @model_validator(mode="after")
    def used(self) -> "LaunchConfig":
        if self.accelerate and self.processes == 1:
            raise ValueError("accelerate is read with two processes or more: add processes")
        return self
