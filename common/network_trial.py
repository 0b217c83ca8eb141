"""A network of the user's own, tried on two observations before a run starts.

Called by the door once the environment is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qfleet.common.config import NetworkConfig
from qfleet.common.errors import ConfigError
from qfleet.common.forward import input_transform
from qfleet.common.networks import build_network
from qfleet.common.types import EnvironmentSpec
from qfleet.common.user_errors import is_from_signal, user_error


def try_factory(config: NetworkConfig, spec: EnvironmentSpec) -> None:
    """Build the network of `config.factory` and pass two observations through it.

    Raises:
        ConfigError: with what it raised or returned, when it is no network for `spec`.
    """
    key = f"network.factory={config.factory!r}"
    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(config, spec, seed=0)
            tried = input_transform(spec)(torch.zeros(2, *spec.observation_shape))
            tried[1] = 1.0
            answers = [network.train(mode)(tried.clone()) for mode in (True, False)]
            alone = network(tried[:1].clone())
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        if is_from_signal(error):
            raise
        raise ConfigError(
            f"{key} raised {user_error(error)} when it was tried on two observations "
            f"{_batch(spec)}; it is called as function(n_inputs={spec.n_inputs}, "
            f"n_actions={spec.n_actions}, **network.kwargs)"
        ) from error
    if next(network.parameters(), None) is None:
        raise ConfigError(f"{key} has no parameters: nothing could be learned")
    for answer in answers:
        fault = _fault_of(answer, [2, spec.n_actions])
        if fault is not None:
            raise ConfigError(
                f"{key} must map observations {_batch(spec)} to Q-values "
                f"[2, {spec.n_actions}], one for each action of {spec.env_id}; {fault}"
            )
    if _depends_on_other_rows(answers[-1], alone):
        raise ConfigError(
            f"{key} must answer an observation in eval mode whatever others are in its batch: one "
            "alone got other Q-values than beside another; normalize by running statistics"
        )


def _depends_on_other_rows(in_batch: object, alone: object) -> bool:
    if not isinstance(in_batch, Tensor) or not isinstance(alone, Tensor):
        return False
    return not torch.allclose(in_batch[:1], alone, rtol=1e-4, atol=1e-5)


def _batch(spec: EnvironmentSpec) -> list[int]:
    """What two observations look like to a network."""
    return [2, *(spec.observation_shape if spec.is_spatial else (spec.n_inputs,))]


def _fault_of(answer: object, wanted_shape: list[int]) -> str | None:
    if not isinstance(answer, Tensor):
        return f"it returned a {type(answer).__name__}"
    if list(answer.shape) != wanted_shape:
        return f"it returned {list(answer.shape)}"
    if not answer.is_floating_point() or not answer.requires_grad:
        return f"it returned {answer.dtype} values from which no gradient flows back"
    if answer.dtype != torch.float32:
        return f"it returned {answer.dtype} values, not float32"
    if not torch.isfinite(answer).all():
        return f"it returned values that are not finite: {answer.tolist()}"
    return None
