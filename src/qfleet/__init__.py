"""qfleet: distributed deep Q-learning, one command on a laptop, the same on a Ray cluster.

    import qfleet
    result = qfleet.train(qfleet.Config.preset("cartpole"))
    policy = qfleet.load_policy(result.run_dir)

Names are loaded on first use, so that `import qfleet` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qfleet.api import Policy, evaluate, load_policy, make_env
    from qfleet.common.errors import (
        CheckpointError,
        ConfigError,
        NonFiniteError,
        QfleetError,
        ResourcesError,
        RoleLostError,
    )
    from qfleet.replay_dataset import ReplayDataset
    from qfleet.settings.config_loading import Config
    from qfleet.training import RunResult, train

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "NonFiniteError",
    "Policy",
    "QfleetError",
    "ReplayDataset",
    "ResourcesError",
    "RoleLostError",
    "RunResult",
    "evaluate",
    "load_policy",
    "make_env",
    "train",
]

_HOMES = {
    "CheckpointError": "qfleet.common.errors",
    "Config": "qfleet.settings.config_loading",
    "ConfigError": "qfleet.common.errors",
    "NonFiniteError": "qfleet.common.errors",
    "Policy": "qfleet.api",
    "QfleetError": "qfleet.common.errors",
    "ReplayDataset": "qfleet.replay_dataset",
    "ResourcesError": "qfleet.common.errors",
    "RoleLostError": "qfleet.common.errors",
    "RunResult": "qfleet.training",
    "evaluate": "qfleet.api",
    "load_policy": "qfleet.api",
    "make_env": "qfleet.api",
    "train": "qfleet.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qfleet' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
