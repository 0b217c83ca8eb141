"""What a run's updates will be computed by and where, and why; the summary names what they were.

Called by the composition root before the start, when the cache of packages is as the learner will
find it (on a cluster the learner's host has a cache of its own).
"""

from __future__ import annotations

from typing import NamedTuple

from qfleet.common.errors import ConfigError
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.fast.backends import has_fast_form
from qfleet.settings.config import Config
from qfleet.settings.plans import run_plans

EAGER, COMPILED, GRAPH = "eager", "compiled", "cuda graph"
_NO_PACKAGE = (
    "no compiled package fits these settings; `--learner.compile required` builds one first"
)


class PathAndReason(NamedTuple):
    """A learner's path, as `learner_path` names it, and why it is that one."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


UNKNOWN_PATH = PathAndReason(EAGER, "")
"""Before it was asked."""


def intended_path(config: Config, spec: EnvironmentSpec) -> PathAndReason:
    """The path that a learner of this configuration begins with."""
    learner, network = config.learner, config.network
    if learner.compile == "off":
        return PathAndReason(EAGER, "learner.compile off")
    if learner.device != "cpu" and learner.num_gpus != 0:
        return PathAndReason(GRAPH, "a GPU")
    if not network.is_compiled_on_cpu:
        return PathAndReason(EAGER, "convolutions are not compiled on a CPU")
    if learner.compile == "required":
        return PathAndReason(COMPILED, "learner.compile required")
    if has_fast_form(run_plans(config).learner, spec, "cpu"):
        return PathAndReason(COMPILED, "a package fits")
    return PathAndReason(EAGER, _NO_PACKAGE)


def reason_of(taken: str, intended: PathAndReason) -> str:
    """Why a run ended on the path `taken`."""
    if taken == intended.path:
        return intended.reason
    if taken == COMPILED:
        return "from the moment its package was built beside the run"
    return f"meant to be {intended.path}: a message above says why not"


def local_device(config: Config) -> str:
    """`auto` as torch sees it; a GPU that torch cannot use is an error, not a surprise."""
    wanted = config.learner.device
    if wanted == "cpu":
        return wanted
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            f"learner.device = {wanted}: torch {torch.__version__} sees no usable GPU; install a "
            "CUDA build of torch, or use --device cpu"
        )
    return wanted


def remote_device(config: Config) -> str:
    """The learner's device when another process owns it: Ray has placed it on a GPU, or not."""
    if config.learner.num_gpus == 0:
        return "cpu"
    return "cuda" if config.learner.device == "auto" else config.learner.device
