"""The recipes, a module each: what is trained and scored in a study, its planned contrasts and its tables.

study.py says what a recipe is; `priming` is the first. What all of them share (assess, results, regrade) is here too.
"""
