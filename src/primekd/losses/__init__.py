"""The distillation objectives, one copy of the mathematics: temperature, divergence, and their mix with cross-entropy.

`chunked` takes hidden states or logits in chunks, `slopes` has divergences, `products` head products. No model is read.
"""

from primekd.losses.chunked import chunked_loss, distillation_loss, row_losses
