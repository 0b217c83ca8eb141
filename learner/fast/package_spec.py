"""What a compiled package is for, and the name under which the cache holds it.

Called by whoever builds or loads one. No torch here: a package is found and used without it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import qfleet.common
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.plan import LearnerPlan

FORMAT_VERSION = 3
"""Raised when inputs, outputs or proof of a package change."""
MAX_UPDATES_PER_CALL = 16
"""Updates unrolled into one package; more cost compile time and gain nothing (measured)."""
PROOF_SUFFIX = ".proof"
"""Of the file beside a package with inputs and what the eager form makes of them."""

_SOURCES = (
    *("block_inputs.py", "update.py", "optimizers.py"),
    *("fast/flat_block.py", "fast/traced_block.py"),
)


_COMMON_SOURCES = ("forward.py", "layers.py", "network_plan.py", "networks.py", "td.py")


class PackageError(Exception):
    """A package cannot be built, loaded or trusted; the caller does without it and says why."""


@dataclass(frozen=True)
class PackageSpec:
    """The run that a package is for; runs with equal `describe` share one."""

    plan: LearnerPlan
    environment: EnvironmentSpec
    dtype: str = "float32"

    @property
    def n_updates(self) -> int:
        """Updates per call of the package: the largest divisor of a block that is unrolled."""
        block = self.plan.updates_per_call
        return next(k for k in range(MAX_UPDATES_PER_CALL, 0, -1) if block % k == 0)

    @property
    def observation_dtype(self) -> np.dtype:
        """Of what is stored."""
        return np.dtype(self.environment.observation_dtype)

    def describe(self, parameters: Mapping[str, Any], buffers: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the machine code depends on, able to be written as JSON.

        Args:
            parameters: The network's, trained; arrays or tensors, only dtype and shape are read.
            buffers: What a training forward updates in place.
        """
        plan = self.plan
        return {
            "format": FORMAT_VERSION,
            "sources_sha256": _sources_sha256(plan),
            "network": plan.network.model_dump(mode="json"),
            "tensors": {
                name: [str(t.dtype).removeprefix("torch."), list(t.shape)]
                for name, t in {**parameters, **buffers}.items()
            },
            "n_trained": len(parameters),
            "observation": [str(self.observation_dtype), *self.environment.observation_shape],
            "n_actions": self.environment.n_actions,
            "n_updates": self.n_updates,
            "batch_size": plan.batch_size,
            "loss": plan.loss,
            "optimizer": plan.optimizer,
            "double_q": plan.double_q,
            "munchausen": plan.munchausen,
            "target_network": plan.target_network,
            "polyak": plan.target_tau is not None,
            "clip": plan.max_grad_norm is not None,
            "dtype": self.dtype,
            "threads": plan.num_cpus,
            "torch": importlib.metadata.version("torch"),
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu_identity(),
        }


def cpu_identity() -> str:
    """CPU model, a limit on vector instructions where one is set, and a digest of all flags."""
    model, flags = platform.processor(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = " ".join(sorted(value.split()))
                break
    except OSError:
        pass
    digest = hashlib.sha256(flags.encode()).hexdigest()[:12]
    # torch compiles for the instructions that this variable allows.
    return f"{model} {os.environ.get('ATEN_CPU_CAPABILITY', 'default')} {digest}"


def _sources_sha256(plan: LearnerPlan) -> str:
    """Digest of the code that is traced: ours and, where there is one, the network's factory."""
    room = Path(__file__).parent.parent
    files = [room / name for name in _SOURCES]
    files += sorted((room / "losses").glob("*.py"))
    common = Path(qfleet.common.__file__)
    files += [common.with_name(name) for name in _COMMON_SOURCES]
    if plan.network.factory is not None:
        from qfleet.common.networks import load_factory

        factory = load_factory(plan.network.factory, "network.factory")
        source = inspect.getsourcefile(factory)
        files.extend([Path(source)] if source else [])
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def missing_compiler() -> str | None:
    """Why nothing can be compiled here; None when a C++ compiler is found."""
    wanted = os.environ.get("CXX", "g++")
    if shutil.which(wanted) is not None:
        return None
    return f"no C++ compiler: `{wanted}` is not on the PATH"
