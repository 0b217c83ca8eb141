"""When a peer counts as solved, and the one JSON line that it prints: the same rule as qfleet's.

Used by every script in this folder, so that no peer is measured by another yardstick: a greedy
evaluation over 20 episodes with a mean at the environment's threshold or above, then a confirmation
over 100 on disjoint seeds. Episodes are stepped as one vector, which favours the peer.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

EVAL_EPISODES = 20
CONFIRM_EPISODES = 100

GreedyActions = Callable[[np.ndarray], np.ndarray]
"""`float32 [E, *O]` observations to `int [E]` actions, without exploration."""


def process_age_s() -> float:
    """Seconds since the operating system started this process (Linux), else since its clock."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.process_time()
    return uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def greedy_returns(
    env_id: str, actions_of: GreedyActions, n_episodes: int, seed: int
) -> np.ndarray:
    """Returns of the first episode of each of `n_episodes` sub-environments, `float64 [n]`."""
    spec = gymnasium.spec(env_id)
    mode = "vector_entry_point" if spec.vector_entry_point else "sync"
    env = gymnasium.make_vec(env_id, num_envs=n_episodes, vectorization_mode=mode)
    observations, _ = env.reset(seed=seed)
    returns = np.zeros(n_episodes)
    running = np.ones(n_episodes, dtype=bool)
    for _ in range(spec.max_episode_steps or 10_000):
        observations, rewards, terminated, truncated, _ = env.step(actions_of(observations))
        returns[running] += rewards[running]
        running &= ~(terminated | truncated)
        if not running.any():
            break
    env.close()
    return returns


class Criterion:
    """Evaluates when told to, remembers what it cost, and says when training may stop."""

    def __init__(self, seed: int, env_id: str = "CartPole-v1") -> None:
        self._seed, self._env_id = seed, env_id
        self._threshold = gymnasium.spec(env_id).reward_threshold or 0.0
        self.evaluations = 0
        self.best_return: float | None = None
        self.confirmed_return: float | None = None
        self.eval_s = 0.0

    def is_solved(self, actions_of: GreedyActions) -> bool:
        """One periodic evaluation, and the confirmation when it passes."""
        started = time.perf_counter()
        self.evaluations += 1
        # Odd seeds select, even seeds confirm: the two never share an episode.
        select_seed = 2 * (1_000_000 * self._seed + self.evaluations) + 1
        mean = float(greedy_returns(self._env_id, actions_of, EVAL_EPISODES, select_seed).mean())
        self.best_return = max(mean, self.best_return or mean)
        if mean >= self._threshold:
            returns = greedy_returns(self._env_id, actions_of, CONFIRM_EPISODES, select_seed + 1)
            confirmed = returns.mean()
            if confirmed >= self._threshold:
                self.confirmed_return = float(confirmed)
        self.eval_s += time.perf_counter() - started
        return self.confirmed_return is not None


def parse_arguments(
    description: str, eval_period_env_steps: int, envs: tuple[str, ...] = ("CartPole-v1",)
) -> argparse.Namespace:
    """The flags that all peers share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--env", choices=envs, default=envs[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-env-steps", type=int, default=2_000_000)
    parser.add_argument("--eval-period-env-steps", type=int, default=eval_period_env_steps)
    parser.add_argument("--max-wall-s", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: its own choice")
    return parser.parse_args()


def print_result(
    peer: str, arguments: argparse.Namespace, criterion: Criterion, **more: Any
) -> None:
    """One JSON line on standard output; the caller has nothing left to do."""
    solved = criterion.confirmed_return is not None
    row = {
        "peer": peer,
        "env": arguments.env,
        "seed": arguments.seed,
        "solved": solved,
        "eval_return_mean": criterion.confirmed_return if solved else criterion.best_return,
        "evaluations": criterion.evaluations,
        "eval_s": round(criterion.eval_s, 3),
        "wall_s": round(process_age_s(), 3),
        **more,
    }
    print(json.dumps(row), flush=True)
