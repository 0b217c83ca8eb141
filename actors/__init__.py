"""The actors' room: policy, n-step accumulation, rollout, evaluation and the Ray shell."""
