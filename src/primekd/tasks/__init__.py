"""What is asked and how an answer is judged: one file a task, and where items come from.

Nothing outside this package and `studies` knows what a question is about.
"""
