"""The GPU check: what runs, how exactly and how fast on one GPU, in parts that each keep what they found."""
