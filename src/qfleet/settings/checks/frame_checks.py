"""Rules about what is observed, and which network takes it.

Called by `config_checks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qfleet.common.config import EnvConfig
from qfleet.common.convolutions import OBSERVATION_OF_KIND, smallest_frame_px
from qfleet.settings.config import Config
from qfleet.settings.problems import Problem


def _check_precision(config: Config) -> Iterator[Problem]:
    if config.learner.precision == "bfloat16" and config.env.observation != "pixels":
        yield Problem(
            "learner.precision",
            "bfloat16",
            f"is for frames, and env.observation is {config.env.observation}",
            "set it to auto or float32",
        )


def _check_compression(config: Config) -> Iterator[Problem]:
    if config.replay.compression != "none" and config.env.observation != "pixels":
        yield Problem(
            "replay.compression",
            config.replay.compression,
            f"is for frames, and env.observation is {config.env.observation}",
            "set it to none",
        )


def _check_observation(config: Config) -> Iterator[Problem]:
    """Each network takes one kind of observation."""
    env, network = config.env, config.network
    if network.factory is not None:
        return
    takes = OBSERVATION_OF_KIND[network.kind]
    if takes != env.observation:
        kinds = [kind for kind, its in OBSERVATION_OF_KIND.items() if its == env.observation]
        yield Problem(
            "network.kind",
            network.kind,
            f"takes {takes} (env.observation), which is {env.observation}",
            f"set it to {' or '.join(kinds)}, set network.factory, or env.observation {takes}",
        )
    elif (
        takes == "pixels"
        and _has_rows(env)
        and min(env.frame_shape) < smallest_frame_px(network.kind)
    ):
        is_low = env.frame_shape[0] < env.frame_size
        yield Problem(
            "env.frame_rows" if is_low else "env.frame_size",
            env.frame_rows if is_low else env.frame_size,
            f"network.kind {network.kind} takes frames of at least "
            f"{smallest_frame_px(network.kind)} pixels",
            "raise it, or set network.factory",
        )


def _has_rows(env: EnvConfig) -> bool:
    """Whether something is left of a frame."""
    first, end = env.frame_rows or (0, env.frame_size)
    return 0 <= first < end <= env.frame_size


def _check_frame_rows(config: Config) -> Iterator[Problem]:
    env = config.env
    if not _has_rows(env):
        yield Problem(
            "env.frame_rows",
            env.frame_rows,
            f"must be first,end with 0 ≤ first < end ≤ {env.frame_size} (env.frame_size)",
            "set it to null for whole frames",
        )


FRAME_RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _check_observation,
    _check_precision,
    _check_compression,
    _check_frame_rows,
)
