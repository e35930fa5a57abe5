"""The distillation objectives, one copy of the mathematics: temperature, divergence, and their mix with cross-entropy.

`plain` takes whole logits, `chunked` hidden states in chunks, `products` has head products. No model, no file is read.
"""

from primekd.losses.chunked import chunked_loss, row_losses
from primekd.losses.plain import distillation_loss
