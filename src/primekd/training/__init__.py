"""Training a LoRA student on response tokens: examples, the trainer, checkpoints without pickle."""
