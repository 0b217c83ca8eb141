"""Stable-Baselines3's DQN on CartPole-v1 with rl-zoo3's tuned settings, until solved.

Prints one JSON line. Run it with the interpreter that `make_venvs.sh` made for it; `solve_time.py`
does. The settings are rl-zoo3's for CartPole-v1; the zoo stops after 50,000 env steps, here the run
goes on until it is solved, with exploration falling over the same 8,000 env steps.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import stable_baselines3
import torch
from criterion import Criterion, parse_arguments, print_result
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

ZOO_ENV_STEPS = 50_000
ZOO_EXPLORATION_FRACTION = 0.16
TRAIN_FREQUENCY_ENV_STEPS = 256
GRADIENT_STEPS = 128


class StopWhenSolved(BaseCallback):
    """Evaluates every so many env steps, at the start of a rollout: right after training."""

    def __init__(self, criterion: Criterion, period_env_steps: int) -> None:
        super().__init__()
        self._criterion = criterion
        self._period_env_steps = period_env_steps
        self._next_env_step = period_env_steps
        self._solved = False

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next_env_step:
            self._next_env_step += self._period_env_steps
            self._solved = self._criterion.is_solved(self._greedy_actions)

    def _on_step(self) -> bool:
        return not self._solved

    def _greedy_actions(self, observations: np.ndarray) -> np.ndarray:
        return self.model.predict(observations, deterministic=True)[0]


def main() -> None:
    # Four phases of 128 updates are 512: about qfleet's 500 updates between evaluations.
    arguments = parse_arguments("SB3 DQN on CartPole-v1", 4 * TRAIN_FREQUENCY_ENV_STEPS)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    fraction = ZOO_EXPLORATION_FRACTION * ZOO_ENV_STEPS / arguments.max_env_steps
    model = DQN(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1_000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=TRAIN_FREQUENCY_ENV_STEPS,
        gradient_steps=GRADIENT_STEPS,
        exploration_fraction=min(1.0, fraction),
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=arguments.seed,
        device="cpu",
    )
    criterion = Criterion(arguments.seed)
    model.learn(
        arguments.max_env_steps,
        callback=StopWhenSolved(criterion, arguments.eval_period_env_steps),
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
