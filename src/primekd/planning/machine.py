"""The machines that a plan is for: as the profile's section `hardware` states them, or this one."""

import re
import shutil
from dataclasses import dataclass

from primekd.config import Profile
from primekd.foundation.provenance import hardware, output_root

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """Nodes of one kind. Bytes are per GPU, per node, and free on the disk that runs/ lies on; None: not known."""

    stated: bool
    name: str
    nodes: int
    gpus_per_node: int
    gpu_bytes: float
    memory_bytes: float
    disk_bytes: float | None
    gpu_watts: float | None = None
    node_watts: float | None = None

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    def watts(self, gpus: int) -> float | None:
        """Power with that many GPUs at full load; every node that they fill counts whole."""
        if self.node_watts is None or (self.gpu_watts is None and gpus):
            return None
        nodes = max(1, -(-gpus // max(self.gpus_per_node, 1)))
        return nodes * self.node_watts + gpus * (self.gpu_watts or 0)


def find_machine(profile: Profile) -> Machine:
    """What the profile states, else the machine that the plan is made on."""
    stated = profile.hardware
    if stated is not None:
        name = f"{stated.nodes} x " if stated.nodes > 1 else ""
        name += f"{stated.gpus_per_node} x {stated.gpu or 'GPU'}" if stated.gpus_per_node else "CPU"
        return Machine(
            stated=True,
            name=name,
            nodes=stated.nodes,
            gpus_per_node=stated.gpus_per_node,
            gpu_bytes=(stated.gpu_memory_gib or 0) * GIB,
            memory_bytes=stated.memory_gib * GIB,
            disk_bytes=stated.disk_gib * GIB if stated.disk_gib else None,
            gpu_watts=stated.gpu_watts,
            node_watts=stated.node_watts,
        )
    facts = hardware()
    gpus = facts.get("gpus") or []
    sizes = [float(found.group(1)) * 2**20 for gpu in gpus if (found := re.search(r"(\d+) MiB", gpu))]
    root = next(p for p in (output_root(), *output_root().parents) if p.exists())
    name = f"{len(gpus)} x {gpus[0].split(',')[0]}" if sizes else f"{facts['cpu']}, {facts['cores']} cores"
    return Machine(
        stated=False,
        name=name,
        nodes=1,
        gpus_per_node=len(sizes),
        gpu_bytes=min(sizes, default=0),
        memory_bytes=facts["memory_gib"] * GIB,
        disk_bytes=shutil.disk_usage(root).free,
    )
