"""The losses of the DQN family, a file each, found by their name in the configuration.

A new one is a file here and its name in `common/config.py`; docs/extending.md shows one. A
distribution has its own loss, of the file that has its name; otherwise `learner.loss` decides.
"""

from __future__ import annotations

import importlib
from typing import cast

from qfleet.learner.losses.base import Loss
from qfleet.learner.plan import LearnerPlan


def loss_of(plan: LearnerPlan, n_actions: int) -> Loss:
    """The loss of a plan, whose file's `make(plan, n_actions)` makes it."""
    distribution = plan.network.distribution
    name = plan.loss if distribution == "none" else distribution
    return cast("Loss", importlib.import_module(f"{__name__}.{name}").make(plan, n_actions))
