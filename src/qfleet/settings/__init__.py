"""From presets, files and flags to one checked configuration."""
