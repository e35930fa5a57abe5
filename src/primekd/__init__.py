"""primekd: does the way a teacher is prompted change how much a student learns from its logits?"""

__version__ = "0.1.0"
