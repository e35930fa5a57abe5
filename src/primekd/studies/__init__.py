"""The recipes, a module each (study.py says what one is; `priming` is the first), and what all of them share: assess,
results, regrade."""
