"""The bookkeeping of one run: counters, budgets, evaluations, checkpoints, what is shown."""
