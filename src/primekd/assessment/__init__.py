"""Scoring: generate answers, extract numbers, grade them, and say what the counts can show."""
