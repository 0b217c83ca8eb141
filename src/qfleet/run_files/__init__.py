"""The run directory: what is written, read again and resumed."""
