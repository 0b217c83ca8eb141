"""Stable-Baselines3's DQN on CartPole-v1 or LunarLander-v3 with rl-zoo3's tuned settings.

Prints one JSON line. Run it with the interpreter that `make_venvs.sh` made for it; `solve_time.py`
does. The zoo stops after 50,000 or 100,000 env steps, here the run goes on until it is solved, with
exploration falling over the same 8,000 or 12,000 env steps. The zoo's LunarLander is v2, whose
settings it has no others for.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import stable_baselines3
import torch
from criterion import Criterion, parse_arguments, print_result, process_age_s
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

EVAL_PERIOD_ENV_STEPS = {"CartPole-v1": 1_024, "LunarLander-v3": 10_000}
EXPLORING_ENV_STEPS = {"CartPole-v1": 8_000, "LunarLander-v3": 12_000}
ZOO = {
    "CartPole-v1": {
        "learning_rate": 2.3e-3,
        "batch_size": 64,
        "buffer_size": 100_000,
        "learning_starts": 1_000,
        "target_update_interval": 10,
        "train_freq": 256,
        "gradient_steps": 128,
        "exploration_final_eps": 0.04,
    },
    "LunarLander-v3": {
        "learning_rate": 6.3e-4,
        "batch_size": 128,
        "buffer_size": 50_000,
        "learning_starts": 0,
        "target_update_interval": 250,
        "train_freq": 4,
        "gradient_steps": -1,
        "exploration_final_eps": 0.1,
    },
}


class StopWhenSolved(BaseCallback):
    """Evaluates every so many env steps, at the start of a rollout: right after training."""

    def __init__(self, criterion: Criterion, period_env_steps: int, max_wall_s: float) -> None:
        super().__init__()
        self._criterion, self._max_wall_s = criterion, max_wall_s
        self._period_env_steps = period_env_steps
        self._next_env_step = period_env_steps
        self._solved = False

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next_env_step:
            self._next_env_step += self._period_env_steps
            self._solved = self._criterion.is_solved(self._greedy_actions)

    def _on_step(self) -> bool:
        return not self._solved and process_age_s() < self._max_wall_s

    def _greedy_actions(self, observations: np.ndarray) -> np.ndarray:
        return self.model.predict(observations, deterministic=True)[0]


def main() -> None:
    arguments = parse_arguments("SB3 DQN", 0, tuple(ZOO))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    env_id = arguments.env
    period = arguments.eval_period_env_steps or EVAL_PERIOD_ENV_STEPS[env_id]
    model = DQN(
        "MlpPolicy",
        gymnasium.make(env_id),
        **ZOO[env_id],
        gamma=0.99,
        exploration_fraction=min(1.0, EXPLORING_ENV_STEPS[env_id] / arguments.max_env_steps),
        policy_kwargs={"net_arch": [256, 256]},
        seed=arguments.seed,
        device="cpu",
    )
    criterion = Criterion(arguments.seed, env_id)
    model.learn(
        arguments.max_env_steps,
        callback=StopWhenSolved(criterion, period, arguments.max_wall_s),
    )
    print_result(
        "sb3",
        arguments,
        criterion,
        env_steps=int(model.num_timesteps),
        learner_steps=int(model._n_updates),
        versions={"stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__},
    )


if __name__ == "__main__":
    main()
