"""The roles of a run and the loops that drive them, in one process or over Ray."""
