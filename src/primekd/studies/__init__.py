"""The recipes, a module each (study.py says what one is), and what they share: assess, results, regrade."""
