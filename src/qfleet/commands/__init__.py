"""What each command but `train` does."""
