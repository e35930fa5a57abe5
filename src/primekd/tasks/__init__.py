"""What is asked and how an answer is judged: one file a task behind `protocol`, and what tasks share.

Nothing outside this package and `studies` knows what a question is about. No models and no prompts' templates here.
"""
