"""Which device the learner gets: torch's word in this process, Ray's placement in another."""

from __future__ import annotations

from qfleet.common.errors import ConfigError
from qfleet.settings.config import Config


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
