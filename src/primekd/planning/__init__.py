"""What a run will cost before it is made (`primekd plan`): memory, disk, tokens, hours, and what will not fit. Nothing
is loaded or downloaded."""
