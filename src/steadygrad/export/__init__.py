"""Write a run for other tools: a file of a format of theirs."""
