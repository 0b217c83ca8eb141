"""One run in progress: budgets, evaluations, checkpoints, its end."""
