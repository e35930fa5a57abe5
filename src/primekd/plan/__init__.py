"""What a run needs before it is started: memory, disk, tokens, hours, energy."""
