"""Where roles run: what they ask for against what there is, and what they find there."""
