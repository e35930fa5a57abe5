"""The distillation objectives, one copy of the mathematics: temperature, divergence, and their mix with cross-entropy.

`plain` takes whole logits, `chunked` hidden states in chunks, `products` the head products of both. No model and no
file is read here.
"""

from primekd.losses.chunked import chunked_loss, row_losses
from primekd.losses.plain import distillation_loss
