"""Stands between an environment as its author wrote it and qfleet, and checks every answer.

`make_env` puts it around each environment, so the probe before a run, the actors of both runtimes,
the evaluator and the player all say the same words: which environment, where, at which step, what
it returned or raised, and what to do about it.

Observations become flat float32 here and actions what Gymnasium's own sampling gives: the checks
need little more than the conversion, which has to look at every value anyway.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from qfleet.common.errors import EnvironmentFailedError
from qfleet.common.observation_form import FrameForm, ObservationForm, PlaneForm
from qfleet.common.types import Array
from qfleet.common.user_errors import is_from_signal, user_error

Environment = gymnasium.Env[Any, Any]

PROBE_SEED = 1
PROBE_STEPS = 8
_TRY_ALONE = "gymnasium.utils.env_checker.check_env(env) tries an environment alone"
_FLAGS = frozenset({bool, np.bool_})
_NUMBERS = (int, float, np.integer, np.floating, np.bool_)
_NUMBER_KINDS = frozenset("biuf")
_QUOTE_LENGTH = 120


class CheckedEnvironment(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Observations in their form, actions 0…A−1, and an error of its own for every wrong answer.

    A step's number counts from the last reset in this process.
    """

    def __init__(
        self,
        env: Environment,
        name: str,
        observation_form: ObservationForm | FrameForm | PlaneForm,
        *,
        place: str = "",
        keeps_info: bool = True,
    ) -> None:
        super().__init__(env)
        action_space = env.action_space
        assert isinstance(action_space, spaces.Discrete), "make_env lets only discrete ones pass"
        self._form, self._name, self._place = observation_form, name, place
        self._keeps_info = keeps_info
        self._flatten = observation_form.flatten
        self._as_sampled: Callable[[Any], Any] = action_space.dtype.type
        self._first_action = int(action_space.start)
        self.observation_space = observation_form.space
        self.action_space = spaces.Discrete(int(action_space.n))
        self._episodes = 0
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode.

        Raises:
            EnvironmentFailedError: when it raises, or returns something else than it must.
        """
        self._episodes += 1
        self._steps = 0
        try:
            answer = self.env.reset(seed=seed, options=options)
        except (Exception, SystemExit) as error:
            if is_from_signal(error):
                raise
            raise self._raised("reset", error) from error
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise self._failed(
                f"reset returned {_counted(answer)}", "it must return (observation, info)"
            )
        observation, info = answer
        try:
            flat = self._flatten(observation)
        except Exception as error:
            raise self._not_of_the_space("reset", observation, error) from error
        return flat, self._checked_info("reset", info)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Play action 0…A−1.

        Raises:
            EnvironmentFailedError: when it raises, or returns something else than it must.
        """
        self._steps += 1
        try:
            answer = self.env.step(self._as_sampled(action + self._first_action))
        except (Exception, SystemExit) as error:
            if is_from_signal(error):
                raise
            raise self._raised("step", error) from error
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise self._failed(
                f"step returned {_counted(answer)}",
                "it must return (observation, reward, terminated, truncated, info)",
            )
        observation, reward, terminated, truncated, info = answer
        try:
            flat = self._flatten(observation)
        except Exception as error:
            raise self._not_of_the_space("step", observation, error) from error
        if type(reward) is not float or not math.isfinite(reward):
            reward = self._checked_reward(reward)
        if type(terminated) is not bool:
            terminated = self._checked_flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = self._checked_flag("truncated", truncated)
        return flat, reward, terminated, truncated, self._checked_info("step", info)

    def close(self) -> None:
        """Close it; an environment that cannot be closed is no reason to end a run otherwise."""
        try:
            self.env.close()
        except (Exception, SystemExit) as error:
            warnings.warn(f"{self._name}: close raised {user_error(error)}", stacklevel=2)

    def _not_of_the_space(
        self, call: str, observation: Any, error: Exception
    ) -> EnvironmentFailedError:
        return self._failed(
            f"{call} returned the observation {_quoted(observation)}: {_reason(error)}",
            f"every observation must be finite and of its space {self._form}",
        )

    def _checked_reward(self, reward: Any) -> float:
        is_number = isinstance(reward, _NUMBERS) or (
            getattr(reward, "shape", None) == ()
            and getattr(getattr(reward, "dtype", None), "kind", "") in _NUMBER_KINDS
        )
        if not is_number:
            raise self._failed(
                f"step returned the reward {_quoted(reward)}",
                "a reward must be one number: return float(reward)",
            )
        number = float(reward)
        if not math.isfinite(number):
            raise self._failed(f"step returned the reward {number}", "a reward must be finite")
        return number

    def _checked_flag(self, name: str, flag: Any) -> bool:
        if type(flag) in _FLAGS:
            return bool(flag)
        if isinstance(flag, int | np.integer) and flag in (0, 1):
            return bool(flag)
        if getattr(flag, "shape", None) == () and str(getattr(flag, "dtype", "")) == "bool":
            return bool(flag)
        raise self._failed(
            f"step returned {name} = {_quoted(flag)}", f"{name} must be True or False"
        )

    def _checked_info(self, call: str, info: Any) -> dict[str, Any]:
        if not isinstance(info, dict):
            raise self._failed(f"{call} returned info = {_quoted(info)}", "info must be a dict")
        # A vector environment builds arrays of what stands in it, and may fail at that.
        return info if self._keeps_info else {}

    def _raised(self, call: str, error: BaseException) -> EnvironmentFailedError:
        """The error to raise for one that came out of the environment."""
        if isinstance(error, SystemExit):
            return self._failed(
                f"{call} called sys.exit({error.code!r})",
                "an environment must not end its process: let it raise an error",
            )
        takes_no_seed = isinstance(error, TypeError) and "unexpected keyword" in str(error)
        remedy = (
            "define it as reset(self, *, seed=None, options=None)"
            if call == "reset" and takes_no_seed
            else f"the error is the environment's own; {_TRY_ALONE}"
        )
        return self._failed(f"{call} raised {user_error(error)}", remedy)

    def _failed(self, what: str, remedy: str) -> EnvironmentFailedError:
        where = f" in {self._place}" if self._place else ""
        step = f"step {self._steps}" if self._steps else "the reset"
        when = f"{step} of episode {self._episodes}"
        return EnvironmentFailedError(f"{self._name} failed{where} at {when}: {what}; {remedy}")


def probe(env: Environment) -> None:
    """Two resets with a seed and a few random steps.

    Raises:
        EnvironmentFailedError: what is wrong with it.
    """
    assert isinstance(env.action_space, spaces.Discrete), "CheckedEnvironment's own"
    rng = np.random.default_rng(PROBE_SEED)
    env.reset(seed=PROBE_SEED)
    env.reset(seed=PROBE_SEED)
    for action in rng.integers(env.action_space.n, size=PROBE_STEPS):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()


def _counted(answer: Any) -> str:
    if isinstance(answer, tuple):
        return f"{len(answer)} values"
    return f"{_quoted(answer)} instead of a tuple"


def _quoted(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _QUOTE_LENGTH else text[:_QUOTE_LENGTH] + " …"


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
