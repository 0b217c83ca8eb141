"""Videos and learning curves."""
