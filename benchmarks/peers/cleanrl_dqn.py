"""A single-file DQN on CartPole-v1 with CleanRL's `dqn` settings, until solved.

Written from CleanRL's published settings (network, optimizer, periods, exploration), not copied
from its code: CleanRL is a set of scripts and no package that could be installed. Where the
settings are silent it does what CleanRL documents: one environment, replay without terminal
bootstrapping, truncated episodes bootstrap from their final observation. Prints one JSON line.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from criterion import Criterion, parse_arguments, print_result
from torch import nn
from torch.nn import functional

SETTINGS_ENV_STEPS = 500_000
LEARNING_RATE = 2.5e-4
MEMORY_TRANSITIONS = 10_000
BATCH_SIZE = 128
DISCOUNT = 0.99
LEARNING_STARTS_ENV_STEPS = 10_000
TRAIN_PERIOD_ENV_STEPS = 10
TARGET_PERIOD_ENV_STEPS = 500
EPSILON_START, EPSILON_END = 1.0, 0.05
EXPLORATION_ENV_STEPS = SETTINGS_ENV_STEPS // 2


class Memory:
    """A first-in, first-out ring of transitions, drawn uniformly with replacement."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._observations = np.zeros((MEMORY_TRANSITIONS, 4), np.float32)
        self._next_observations = np.zeros((MEMORY_TRANSITIONS, 4), np.float32)
        self._actions = np.zeros(MEMORY_TRANSITIONS, np.int64)
        self._rewards = np.zeros(MEMORY_TRANSITIONS, np.float32)
        self._terminated = np.zeros(MEMORY_TRANSITIONS, np.float32)
        self._inserted = 0

    def add(self, observation, action, reward, next_observation, terminated) -> None:
        """Store one transition over the oldest."""
        slot = self._inserted % MEMORY_TRANSITIONS
        self._observations[slot] = observation
        self._next_observations[slot] = next_observation
        self._actions[slot] = action
        self._rewards[slot] = reward
        self._terminated[slot] = terminated
        self._inserted += 1

    def sample(self) -> tuple[torch.Tensor, ...]:
        """One batch: observations, actions, rewards, next observations, terminated."""
        rows = self._rng.integers(min(self._inserted, MEMORY_TRANSITIONS), size=BATCH_SIZE)
        columns = (
            self._observations,
            self._actions,
            self._rewards,
            self._next_observations,
            self._terminated,
        )
        return tuple(torch.from_numpy(column[rows]) for column in columns)


def make_network() -> nn.Sequential:
    """4 -> 120 -> 84 -> 2 with ReLU."""
    return nn.Sequential(
        nn.Linear(4, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2)
    )


def update(
    online: nn.Module, target: nn.Module, optimizer: torch.optim.Optimizer, memory: Memory
) -> None:
    """One gradient step on the mean squared TD error."""
    observations, actions, rewards, next_observations, terminated = memory.sample()
    with torch.no_grad():
        future = target(next_observations).max(dim=1).values  # [B, A] -> [B]
        targets = rewards + DISCOUNT * (1.0 - terminated) * future
    predictions = online(observations).gather(1, actions[:, None]).squeeze(1)  # [B, A] -> [B]
    loss = functional.mse_loss(predictions, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    # One update in 10 env steps: 5,000 env steps are qfleet's 500 updates between evaluations.
    arguments = parse_arguments("DQN with CleanRL's settings on CartPole-v1", 5_000)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(arguments.seed)
    torch.manual_seed(arguments.seed)
    env = gymnasium.make("CartPole-v1")
    online, target = make_network(), make_network()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=LEARNING_RATE)
    memory = Memory(rng)
    criterion = Criterion(arguments.seed)
    learner_steps = 0

    @torch.no_grad()
    def greedy_actions(observations: np.ndarray) -> np.ndarray:
        return online(torch.from_numpy(observations)).argmax(dim=1).numpy()

    observation, _ = env.reset(seed=arguments.seed)
    env_step = 0
    for env_step in range(1, arguments.max_env_steps + 1):
        fraction = min(1.0, env_step / EXPLORATION_ENV_STEPS)
        epsilon = EPSILON_START + fraction * (EPSILON_END - EPSILON_START)
        explore = rng.random() < epsilon
        action = int(rng.integers(2)) if explore else int(greedy_actions(observation[None])[0])
        next_observation, reward, terminated, truncated, _ = env.step(action)
        memory.add(observation, action, reward, next_observation, terminated)
        observation = env.reset()[0] if terminated or truncated else next_observation
        if env_step > LEARNING_STARTS_ENV_STEPS and env_step % TRAIN_PERIOD_ENV_STEPS == 0:
            update(online, target, optimizer, memory)
            learner_steps += 1
        if env_step > LEARNING_STARTS_ENV_STEPS and env_step % TARGET_PERIOD_ENV_STEPS == 0:
            target.load_state_dict(online.state_dict())
        due = learner_steps and env_step % arguments.eval_period_env_steps == 0
        if due and criterion.is_solved(greedy_actions):
            break
    print_result(
        "cleanrl",
        arguments,
        criterion,
        env_steps=env_step,
        learner_steps=learner_steps,
        versions={"torch": torch.__version__, "gymnasium": gymnasium.__version__},
    )


if __name__ == "__main__":
    main()
