"""What another program's setting is in ours: key, value in our unit, and a remark.

Called by the table in foreign_names.py. A conversion knows what else stands in the same command,
because their units depend on one another: how many updates an env step brings, how long a run is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Answer = list[tuple[str, object]]
"""Our keys with the values that mean the same."""


@dataclass(frozen=True, slots=True)
class Scales:
    """What conversions need to know of the rest of the configuration."""

    batch_size: float = 64
    samples_per_insert: float | None = 16.0
    max_env_steps: float | None = None
    others: Mapping[str, object] | None = None
    """Foreign names given in the same command or file, with their values."""

    def other(self, *names: str) -> float | None:
        """The number given under the first of these foreign names that has one."""
        numbers = (number_in((self.others or {}).get(name)) for name in names)
        return next((number for number in numbers if number is not None), None)

    @property
    def total_env_steps(self) -> float | None:
        """Env steps of the whole run."""
        return self.other("n_timesteps", "timesteps") or self.max_env_steps

    @property
    def has_schedule(self) -> bool:
        """Whether the command says itself how often there is an update."""
        given = (self.other("train_freq", "train_frequency"), self.other("gradient_steps"))
        return any(number is not None for number in given)

    def schedule(self) -> tuple[float, float] | None:
        """`(updates, env steps)`: so many updates after so many env steps; None if unreadable.

        Defaults are Stable-Baselines3's, whose `train_freq` counts steps of all environments at
        once; -1 gradient steps are as many as there were env steps.
        """
        every = self.other("train_freq", "train_frequency")
        updates = self.other("gradient_steps")
        env_steps = (4.0 if every is None else every) * (self.other("n_envs", "num_envs") or 1.0)
        updates = 1.0 if updates is None else env_steps if updates == -1 else updates
        return (updates, env_steps) if env_steps > 0 and updates > 0 else None


Convert = Callable[[object, Scales], tuple[Answer, str]]


def number_in(value: object) -> float | None:
    """A number as it may be typed (`1e6`, `1_000_000`, `2M`), None for anything else."""
    if isinstance(value, bool):
        return None
    text = str(value).replace("_", "").strip()
    factor = {"k": 1e3, "m": 1e6, "g": 1e9}.get(text[-1:].lower())
    try:
        return float(text) if factor is None else float(text[:-1]) * factor
    except ValueError:
        return None


def show(value: object) -> str:
    """A value as a flag or YAML takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(show(part) for part in value) + "]"
    return str(value)


def same(key: str, note: str = "") -> Convert:
    """The same quantity in the same unit under another name."""
    return lambda value, scales: ([(key, value)], note)


def not_here(note: str) -> Convert:
    """Something that is not set here; the remark says why, or what does it instead."""
    return lambda value, scales: ([], note)


def fixed(key: str, value: object, note: str = "") -> Convert:
    """A value of ours, whatever was given."""
    return lambda given, scales: ([(key, value)], note)


def env_steps_to_learner_steps(key: str) -> Convert:
    """Env steps to updates, by the schedule of the same command, else by the ratio in force."""

    def convert(value: object, scales: Scales) -> tuple[Answer, str]:
        steps = number_in(value)
        if scales.has_schedule:
            schedule = scales.schedule()
            updates, per = schedule or (0.0, 1.0)
            how = f"env steps x {show(updates)} update(s) / {show(per)} env steps"
        else:
            updates, per = scales.samples_per_insert or 0.0, scales.batch_size
            how = f"env steps x samples_per_insert {updates:g} / batch_size {per:g}"
        if steps is None or not updates:
            return [(key, "LEARNER_STEPS")], "it counts env steps there and learner steps here"
        note = f"{show(steps)} env steps there; here learner steps = {how}"
        return [(key, max(1, round(steps * updates / per)))], note

    return convert


def train_frequency(value: object, scales: Scales) -> tuple[Answer, str]:
    """`train_freq` env steps, then `gradient_steps` updates, as samples per insert."""
    schedule = scales.schedule()
    if schedule is None:
        return [], "use --replay.samples_per_insert: draws per transition on average"
    updates, env_steps = schedule
    ratio = updates * scales.batch_size / env_steps
    return [("replay.samples_per_insert", float(f"{ratio:.4g}"))], (
        f"{show(updates)} update(s) of {show(scales.batch_size)} every {show(env_steps)} env steps"
    )


def exploration_fraction(value: object, scales: Scales) -> tuple[Answer, str]:
    """The part of the run over which ε falls, as env steps."""
    fraction, total = number_in(value), scales.total_env_steps
    steps: object = "ENV_STEPS"
    if fraction is not None and total:
        steps = max(1, round(fraction * total))
    return [
        ("actors.epsilon_schedule", "linear"),
        ("actors.epsilon_decay_env_steps", steps),
    ], "a fraction of the run there, env steps here"


def linear_epsilon(key: str) -> Convert:
    """One end of an ε that falls linearly, as it always does there."""
    return lambda value, scales: ([("actors.epsilon_schedule", "linear"), (key, value)], "")


def constant_epsilon(value: object, scales: Scales) -> tuple[Answer, str]:
    """The course's ε, which never changes."""
    return [("actors.epsilon_schedule", "constant"), ("actors.epsilon_end", value)], ""


def updates_per_episode(value: object, scales: Scales) -> tuple[Answer, str]:
    """The course's schedule, with what it demands of the other keys."""
    return [
        ("learner.updates_per_episode", value),
        ("replay.samples_per_insert", None),
        ("actors.count", 1),
        ("actors.envs_per_actor", 1),
    ], "updates after each episode of one actor"


def tau(value: object, scales: Scales) -> tuple[Answer, str]:
    """Polyak averaging; 1 is a hard sync."""
    if number_in(value) == 1.0:
        return [("learner.target_tau", None)], (
            "1 means hard syncs there: learner.target_update_period_learner_steps says when"
        )
    return [("learner.target_tau", value)], "applied after every update"


def cuda(value: object, scales: Scales) -> tuple[Answer, str]:
    """A switch there that means: where there is a GPU."""
    return [("learner.device", "auto" if _is_on(value) else "cpu")], (
        "left out, a GPU is used if there is one"
    )


def layers(value: object, scales: Scales) -> tuple[Answer, str]:
    """Hidden sizes, also as `dict(net_arch=[256, 256])`, which is how rl-zoo3 writes them."""
    sizes = value.get("net_arch") if isinstance(value, dict) else value
    if isinstance(sizes, str) and "[" in sizes:
        sizes = sizes[sizes.index("[") : sizes.rindex("]") + 1].replace(" ", "")
    return [("network.hidden_sizes", sizes or "[128,64]")], ""


def prioritized(value: object, scales: Scales) -> tuple[Answer, str]:
    """A switch there."""
    return [("replay.sampling", "prioritized" if _is_on(value) else "uniform")], ""


def double_q(value: object, scales: Scales) -> tuple[Answer, str]:
    """A switch there, a key here."""
    return [("learner.double_q", _is_on(value))], ""


def _is_on(value: object) -> bool:
    return str(value).lower() not in ("false", "0", "none")
