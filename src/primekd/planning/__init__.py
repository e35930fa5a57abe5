"""What a run will cost (`primekd plan`): memory, disk, tokens, hours, what will not fit. Nothing is loaded or fetched."""
