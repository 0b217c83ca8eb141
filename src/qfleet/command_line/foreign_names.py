"""Names that people bring from the course, Stable-Baselines3, rl-zoo3 and CleanRL.

They are refused, with our key and the value in our unit: silently taking them would change what
they mean. Called by config_loading.py for keys and by cli.py for commands; imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Scales:
    """What conversions need to know of the rest of the configuration."""

    batch_size: float = 64
    samples_per_insert: float | None = 16.0
    max_env_steps: float | None = None
    others: Mapping[str, object] | None = None
    """Foreign names given beside this one, with their values."""

    def other(self, name: str, default: float) -> float:
        """Return a number given under another foreign name, else `default`."""
        number = _number((self.others or {}).get(name))
        return default if number is None else number


Answer = list[tuple[str, object]]
"""Our keys with the values that mean the same; an empty value means: take the value as it is."""
Convert = Callable[[object, Scales], tuple[Answer, str]]


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


def explain(name: str, value: object, scales: Scales, *, as_flags: bool) -> str | None:
    """Say what to write instead of a foreign name, or None when the name is not one we know.

    Args:
        name: With underscores, without a section.
        value: As given.
        scales: The rest of the configuration, for conversions of units.
        as_flags: Write `--key value` (command line) or `key: value` (file).
    """
    converter = _NAMES.get(name)
    if converter is None:
        return None
    answer, note = converter(value, scales)
    pattern = "--{} {}" if as_flags else "{}: {}"
    ours = (" " if as_flags else ", ").join(pattern.format(k, _show(v)) for k, v in answer)
    if not ours:
        return note
    return f"use {ours} ({note})" if note else f"use {ours}"


def names() -> tuple[str, ...]:
    """All foreign names that are known."""
    return tuple(_NAMES)


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(str(value).replace("_", ""))
    except ValueError:
        return None


def _show(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_show(part) for part in value) + "]"
    return str(value)


def _same(key: str, note: str = "") -> Convert:
    """The same quantity in the same unit under another name."""
    return lambda value, scales: ([(key, value)], note)


def _not_here(note: str) -> Convert:
    return lambda value, scales: ([], note)


def _fixed(key: str, value: object, note: str = "") -> Convert:
    return lambda given, scales: ([(key, value)], note)


def _env_steps_to_learner_steps(key: str) -> Convert:
    """Env steps to updates: each env step brings samples_per_insert / batch_size updates."""

    def convert(value: object, scales: Scales) -> tuple[Answer, str]:
        steps = _number(value)
        if steps is None or scales.samples_per_insert is None:
            return [(key, "LEARNER_STEPS")], "it counts env steps there and learner steps here"
        ratio = scales.samples_per_insert / scales.batch_size
        return [(key, max(1, round(steps * ratio)))], (
            f"{_show(steps)} env steps there; here learner steps = env steps x samples_per_insert "
            f"{scales.samples_per_insert:g} / batch_size {scales.batch_size:g}"
        )

    return convert


def _train_frequency(value: object, scales: Scales) -> tuple[Answer, str]:
    """`train_freq` env steps, then `gradient_steps` updates, as samples per insert."""
    every = scales.other("train_freq", scales.other("train_frequency", 4.0))
    updates = scales.other("gradient_steps", 1.0)
    envs = scales.other("n_envs", scales.other("num_envs", 1.0))
    if every <= 0 or updates <= 0 or envs <= 0:
        return [], "use --replay.samples_per_insert: draws per transition on average"
    ratio = updates * scales.batch_size / (every * envs)
    return [("replay.samples_per_insert", float(f"{ratio:.4g}"))], (
        f"{_show(updates)} update(s) of {_show(scales.batch_size)} every {_show(every * envs)} "
        "env steps"
    )


def _exploration_fraction(value: object, scales: Scales) -> tuple[Answer, str]:
    fraction = _number(value)
    total = scales.other("n_timesteps", scales.max_env_steps or 0.0)
    steps: object = "ENV_STEPS"
    if fraction is not None and total > 0:
        steps = max(1, round(fraction * total))
    return [
        ("actors.epsilon_schedule", "linear"),
        ("actors.epsilon_decay_env_steps", steps),
    ], "a fraction of the run there, env steps here"


def _tau(value: object, scales: Scales) -> tuple[Answer, str]:
    if _number(value) == 1.0:
        return [("learner.target_tau", None)], (
            "1 means hard syncs there: learner.target_update_period_learner_steps says when"
        )
    return [("learner.target_tau", value)], "applied after every update"


def _cuda(value: object, scales: Scales) -> tuple[Answer, str]:
    off = str(value).lower() in ("false", "0", "none")
    return [("learner.device", "cpu" if off else "cuda")], "left out, a GPU is used if there is one"


def _layers(value: object, scales: Scales) -> tuple[Answer, str]:
    sizes = value.get("net_arch") if isinstance(value, dict) else value
    if isinstance(sizes, str) and "[" in sizes:  # "dict(net_arch=[256, 256])", as rl-zoo3 writes it
        sizes = sizes[sizes.index("[") : sizes.rindex("]") + 1].replace(" ", "")
    return [("network.hidden_sizes", sizes or "[128,64]")], ""


def _prioritized(value: object, scales: Scales) -> tuple[Answer, str]:
    on = str(value).lower() not in ("false", "0", "none")
    return [("replay.sampling", "prioritized" if on else "uniform")], ""


def _constant_epsilon(value: object, scales: Scales) -> tuple[Answer, str]:
    return [("actors.epsilon_schedule", "constant"), ("actors.epsilon_end", value)], ""


_PIXELS = "pixel observations are not available yet"
_TRACK = "trackers are not available yet; metrics.jsonl and TensorBoard files are always written"
_VIDEO = "use `qfleet play RUN --video FILE.mp4` after the run"

_NAMES: dict[str, Convert] = {
    "gamma": _same("actors.discount"),
    "lr": _same("learner.learning_rate"),
    "learning_rate": _same("learner.learning_rate"),
    "batch_size": _same("learner.batch_size"),
    "buffer_size": _same("replay.capacity"),
    "memory_size": _same("replay.capacity"),
    "replay_size": _same("replay.capacity"),
    "learning_starts": _same("replay.min_size_to_sample"),
    "n_envs": _same("actors.envs_per_actor", "for each actor; actors.count multiplies it"),
    "num_envs": _same("actors.envs_per_actor", "for each actor; actors.count multiplies it"),
    "n_actors": _same("actors.count"),
    "num_actors": _same("actors.count"),
    "num_workers": _same("actors.count"),
    "steps_per_episode": _same("learner.updates_per_episode", "updates after each episode"),
    "n_episodes": _same("run.max_episodes"),
    "num_episodes": _same("run.max_episodes"),
    "n_timesteps": _same("run.max_env_steps"),
    "timesteps": _same("run.max_env_steps"),
    "target_update_interval": _env_steps_to_learner_steps(
        "learner.target_update_period_learner_steps"
    ),
    "target_network_frequency": _env_steps_to_learner_steps(
        "learner.target_update_period_learner_steps"
    ),
    "eval_freq": _env_steps_to_learner_steps("eval.period_learner_steps"),
    "n_eval_episodes": _same("eval.episodes"),
    "eval_episodes": _same("eval.episodes"),
    "train_freq": _train_frequency,
    "train_frequency": _train_frequency,
    "gradient_steps": _train_frequency,
    "tau": _tau,
    "exploration_fraction": _exploration_fraction,
    "exploration_initial_eps": _same("actors.epsilon_start", "with epsilon_schedule linear"),
    "exploration_final_eps": _same("actors.epsilon_end", "with epsilon_schedule linear"),
    "start_e": _same("actors.epsilon_start", "with epsilon_schedule linear"),
    "end_e": _same("actors.epsilon_end", "with epsilon_schedule linear"),
    "eps": _constant_epsilon,
    "epsilon": _constant_epsilon,
    "policy_kwargs": _layers,
    "net_arch": _layers,
    "policy": _fixed("network.kind", "mlp"),
    "prioritized_replay": _prioritized,
    "prioritized_replay_alpha": _same("replay.priority_exponent"),
    "prioritized_replay_beta0": _same("replay.importance_sampling_exponent"),
    "dueling": _not_here("dueling networks are not available yet"),
    "n_frames": _not_here(_PIXELS),
    "frame_stack": _not_here(_PIXELS),
    "torch_deterministic": _fixed(
        "run.schedule", "lockstep", "same seed, same bits; --runtime local does it without Ray"
    ),
    "cuda": _cuda,
    "capture_video": _not_here(_VIDEO),
    "record_video": _not_here(_VIDEO),
    "track": _not_here(_TRACK),
    "wandb_project_name": _not_here(_TRACK),
    "wandb_entity": _not_here(_TRACK),
    "tensorboard_log": _not_here("TensorBoard files are always written to the run directory"),
    "exp_name": _same("run.dir", "the whole path of the run directory"),
    "log_folder": _same("run.dir", "the whole path of the run directory"),
    "verbose": _fixed("metrics.console", "plain"),
    "algo": _not_here("there is one algorithm, deep Q-learning: leave it out"),
    "save_model": _not_here("checkpoints and the best parameters are always written: leave it out"),
    "optimize_memory_usage": _not_here("leave it out"),
}
