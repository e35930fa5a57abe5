"""Training a student: examples, batches, the one trainer, checkpoints, several processes.

The mathematics of the loss is in `losses`; what a teacher said is read through `signals`.
"""
