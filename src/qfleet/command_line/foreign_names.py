"""Names that people bring from the course, Stable-Baselines3, rl-zoo3 and CleanRL.

They are refused, with our key and the value in our unit: silently taking them would change what
they mean. Called by config_loading.py for keys and by cli.py for commands; imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from qfleet.command_line import foreign_conversions as to
from qfleet.command_line.foreign_conversions import Answer, Convert, Scales, show

COMMANDS = {
    "enjoy": "play",
    "watch": "play",
    "record": "play",
    "record_video": "play",
    "evaluate": "eval",
    "test": "eval",
    "run": "train",
    "learn": "train",
    "benchmark": "bench",
    "presets": "config show",
    "plot": "status",
    "check": "doctor",
}


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return `; did you mean X or Y?`, or nothing when nothing is close."""
    found = closest(name, candidates)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def closest(name: str, candidates: Iterable[str], n: int = 2) -> list[str]:
    """Up to `n` candidates that look like `name` in any case, the most alike first."""
    by_lower: dict[str, str] = {}
    for candidate in candidates:
        by_lower.setdefault(candidate.lower(), candidate)
    lowered = name.lower()
    scores = {hit: difflib.SequenceMatcher(None, hit, lowered).ratio() for hit in by_lower}
    best = max(scores.values(), default=0.0)
    # A second guess is worth reading only when it is about as good as the first.
    hits = [hit for hit, score in scores.items() if score >= max(0.6, best - 0.05)]
    return [by_lower[hit] for hit in sorted(hits, key=lambda hit: -scores[hit])[:n]]


def convert(name: str, value: object, scales: Scales) -> tuple[Answer, str] | None:
    """Our keys and values for a foreign name, with a remark; None when we do not know the name."""
    converter = _NAMES.get(name)
    return None if converter is None else converter(value, scales)


def explain(name: str, value: object, scales: Scales, *, as_flags: bool) -> str | None:
    """Say what to write instead of a foreign name, or None when the name is not one we know.

    Args:
        name: With underscores, without a section.
        value: As given.
        scales: The rest of the configuration, for conversions of units.
        as_flags: Write `--key value` (command line) or `key: value` (file).
    """
    converted = convert(name, value, scales)
    if converted is None:
        return None
    answer, note = converted
    pattern = "--{} {}" if as_flags else "{}: {}"
    ours = (" " if as_flags else ", ").join(pattern.format(k, show(v)) for k, v in answer)
    if not ours:
        return note
    return f"use {ours} ({note})" if note else f"use {ours}"


def switch(bare: str) -> tuple[str, bool] | None:
    """`(name, value)` of a flag that stands alone in another program, else None.

    Args:
        bare: Without dashes, with underscores; `no_…` switches off.
    """
    name = bare.rsplit(".", 1)[-1]
    if name in SWITCHES:
        return name, True
    positive = name.removeprefix("no_")
    return (positive, False) if positive != name and positive in SWITCHES else None


def names() -> tuple[str, ...]:
    """All foreign names that are known."""
    return tuple(_NAMES)


_TRACK = "trackers are not available yet; metrics.jsonl and TensorBoard files are always written"
_VIDEO = "use `qfleet play RUN --video FILE.mp4` after the run"

SWITCHES = frozenset(
    {
        "capture_video",
        "cuda",
        "double_dqn",
        "dueling",
        "optimize_memory_usage",
        "prioritized_replay",
        "progress",
        "record_video",
        "save_model",
        "torch_deterministic",
        "track",
    }
)
"""Foreign names that stand without a value there."""

_NAMES: dict[str, Convert] = {
    "gamma": to.same("actors.discount"),
    "lr": to.same("learner.learning_rate"),
    "learning_rate": to.same("learner.learning_rate"),
    "batch_size": to.same("learner.batch_size"),
    "buffer_size": to.same("replay.capacity"),
    "memory_size": to.same("replay.capacity"),
    "replay_size": to.same("replay.capacity"),
    "learning_starts": to.same("replay.min_size_to_sample"),
    "n_envs": to.same("actors.envs_per_actor", "for each actor; actors.count multiplies it"),
    "num_envs": to.same("actors.envs_per_actor", "for each actor; actors.count multiplies it"),
    "n_actors": to.same("actors.count"),
    "num_actors": to.same("actors.count"),
    "num_workers": to.same("actors.count"),
    "steps_per_episode": to.updates_per_episode,
    "n_episodes": to.same("run.max_episodes"),
    "num_episodes": to.same("run.max_episodes"),
    "n_timesteps": to.same("run.max_env_steps"),
    "timesteps": to.same("run.max_env_steps"),
    "target_update_interval": to.env_steps_to_learner_steps(
        "learner.target_update_period_learner_steps"
    ),
    "target_network_frequency": to.env_steps_to_learner_steps(
        "learner.target_update_period_learner_steps"
    ),
    "eval_freq": to.env_steps_to_learner_steps("eval.period_learner_steps"),
    "n_eval_episodes": to.same("eval.episodes"),
    "eval_episodes": to.same("eval.episodes"),
    "train_freq": to.train_frequency,
    "train_frequency": to.train_frequency,
    "gradient_steps": to.train_frequency,
    "tau": to.tau,
    "exploration_fraction": to.exploration_fraction,
    "exploration_initial_eps": to.linear_epsilon("actors.epsilon_start"),
    "exploration_final_eps": to.linear_epsilon("actors.epsilon_end"),
    "start_e": to.linear_epsilon("actors.epsilon_start"),
    "end_e": to.linear_epsilon("actors.epsilon_end"),
    "eps": to.constant_epsilon,
    "epsilon": to.constant_epsilon,
    "policy_kwargs": to.layers,
    "net_arch": to.layers,
    "policy": to.fixed("network.kind", "mlp"),
    "prioritized_replay": to.prioritized,
    "prioritized_replay_alpha": to.same("replay.priority_exponent"),
    "prioritized_replay_beta0": to.same("replay.importance_sampling_exponent"),
    "prioritized_replay_beta_iters": to.same("replay.importance_sampling_end_learner_steps"),
    "double_dqn": to.double_q,
    "dueling": to.same("network.dueling"),
    "n_frames": to.same("env.frame_stack", "with env.observation pixels"),
    "frame_stack": to.same("env.frame_stack", "with env.observation pixels"),
    "torch_deterministic": to.fixed(
        "run.schedule", "lockstep", "same seed, same bits; --runtime local does it without Ray"
    ),
    "cuda": to.cuda,
    "capture_video": to.not_here(_VIDEO),
    "record_video": to.not_here(_VIDEO),
    "track": to.not_here(_TRACK),
    "wandb_project_name": to.not_here(_TRACK),
    "wandb_entity": to.not_here(_TRACK),
    "tensorboard_log": to.not_here("TensorBoard files are always written to the run directory"),
    "exp_name": to.same("run.dir", "the whole path of the run directory"),
    "log_folder": to.same("run.dir", "the whole path of the run directory"),
    "verbose": to.fixed("metrics.console", "plain"),
    "algo": to.not_here("there is one algorithm, deep Q-learning: leave it out"),
    "save_model": to.not_here(
        "checkpoints and the best parameters are always written: leave it out"
    ),
    "optimize_memory_usage": to.not_here("leave it out"),
    "progress": to.not_here("progress is always shown: leave it out"),
}
