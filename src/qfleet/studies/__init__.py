"""Studies: the same program with one thing changed, over several seeds, and a report of it."""
