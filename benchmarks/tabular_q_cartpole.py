"""Tabular Q-learning on CartPole-v1: what a table of 8 bins per variable reaches.

The course starts from this: four numbers cut into eight bins each give 8^4 = 4096 states, times two
actions. A deep network has to be better than the table, so the table's figure stands beside ours.
NumPy and Gymnasium only; run it as `python benchmarks/tabular_q_cartpole.py`.

Source: Watkins & Dayan 1992 (Q-learning).
Differs: the course gives the size of the table; bin edges, step size and exploration are ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from bisect import bisect

import gymnasium
import numpy as np

BINS_PER_VARIABLE = 8
N_ACTIONS = 2
# Position and angle end where the episode ends; the velocities are unbounded and are clipped at
# what a played episode rarely exceeds.
LIMITS = (2.4, 3.0, 0.2095, 3.0)
EDGES = [list(np.linspace(-limit, limit, BINS_PER_VARIABLE + 1)[1:-1]) for limit in LIMITS]


def state_index(observation: np.ndarray) -> int:
    """The table's row for an observation `float32 [4]`, in [0, 4096)."""
    index = 0
    for value, edges in zip(observation.tolist(), EDGES, strict=True):
        index = index * BINS_PER_VARIABLE + bisect(edges, value)
    return index


def greedy_action(row: list[float]) -> int:
    """The better of two actions; a tie goes to the first."""
    return 0 if row[0] >= row[1] else 1


def play(
    env: gymnasium.Env,
    table: list[list[float]],
    rng: np.random.Generator,
    epsilon: float,
    learning_rate: float,
    discount: float,
) -> float:
    """One episode, learning on the way unless `learning_rate` is 0; its return."""
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    state = state_index(observation)
    episode_return = 0.0
    terminated = truncated = False
    while not (terminated or truncated):
        explore = epsilon > 0.0 and rng.random() < epsilon
        action = int(rng.integers(N_ACTIONS)) if explore else greedy_action(table[state])
        observation, reward, terminated, truncated, _ = env.step(action)
        next_state = state_index(observation)
        if learning_rate > 0.0:
            future = 0.0 if terminated else max(table[next_state])
            td_error = float(reward) + discount * future - table[state][action]
            table[state][action] += learning_rate * td_error
        state = next_state
        episode_return += float(reward)
    return episode_return


def train_and_evaluate(seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One table trained from zero, then played greedily on seeds of its own."""
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    train_rng, eval_rng = (np.random.default_rng((seed, purpose)) for purpose in (0, 1))
    table = [[0.0] * N_ACTIONS for _ in range(BINS_PER_VARIABLE ** len(LIMITS))]
    started = time.perf_counter()
    env_steps = 0.0
    for episode in range(arguments.episodes):
        fraction = episode / max(1, arguments.episodes - 1)
        # Exploration falls linearly over the first half; the step size over the whole run.
        epsilon = max(arguments.epsilon_end, 1.0 - 2.0 * fraction)
        learning_rate = arguments.learning_rate * (1.0 - 0.9 * fraction)
        env_steps += play(env, table, train_rng, epsilon, learning_rate, arguments.discount)
    train_s = time.perf_counter() - started
    returns = [
        play(env, table, eval_rng, 0.0, 0.0, arguments.discount)
        for _ in range(arguments.eval_episodes)
    ]
    env.close()
    return {
        "seed": seed,
        "return_mean": statistics.fmean(returns),
        "return_std": statistics.pstdev(returns),
        "env_steps": int(env_steps),
        "train_s": round(train_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="tabular Q-learning on CartPole-v1, 4096x2 table")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--discount", type=float, default=0.99)
    parser.add_argument("--epsilon-end", type=float, default=0.01)
    arguments = parser.parse_args()
    runs = []
    print("seed  mean return  std     env steps  train s")
    for seed in range(1, arguments.seeds + 1):
        run = train_and_evaluate(seed, arguments)
        runs.append(run)
        print(
            f"{seed:4d}  {run['return_mean']:11.1f}  {run['return_std']:6.1f}  "
            f"{run['env_steps']:9d}  {run['train_s']:7.2f}",
            flush=True,
        )
    means = [run["return_mean"] for run in runs]
    solved = sum(mean >= 475.0 for mean in means)
    print(
        f"median {statistics.median(means):.1f}, from {min(means):.1f} to {max(means):.1f}, "
        f"{solved} of {len(runs)} seeds at 475 or more"
    )


if __name__ == "__main__":
    main()
