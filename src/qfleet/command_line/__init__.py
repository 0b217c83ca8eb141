"""The command line: words into a configuration, and what the terminal shows."""
