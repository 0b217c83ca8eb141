"""The command line: words into a configuration."""
