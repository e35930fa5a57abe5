"""What a run will cost before it is made: memory, disk, tokens, hours, and what will not fit.

Nothing is loaded or downloaded; `primekd plan` prints it.
"""
