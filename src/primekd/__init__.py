"""primekd: does the way a teacher is prompted change how much a student learns from its logits?"""

import os

__version__ = "0.1.0"

# OpenMP threads spin while they wait for each other. As soon as anything else runs on a machine with few cores, a
# training step then takes ten times as long (25 s instead of 2 s measured); sleeping costs nothing that was measurable.
# OpenMP reads this when torch is first imported, so it has to stand here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
