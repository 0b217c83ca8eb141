"""K updates as one compiled package: traced once, built by AOTInductor, called like the eager form.

The learner calls a package behind `update.BlockFunction`; `build_block.py` makes one in a process
of its own. What is traced is `update.run_block` itself, so a loss, an optimizer or a network gets
its compiled form by existing there. Hyperparameters are inputs: another value needs no new package.

Differs: from the eager form by rounding only (sums are taken in another order); each package is
compared with it on random batches before it is used.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from qfleet.common import networks
from qfleet.common.config import Config
from qfleet.common.config_auto import updates_per_call
from qfleet.common.networks import Tensors, load_factory
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.optimizers import Hyperparameters, OptimizerState
from qfleet.learner.update import (
    Batches,
    BlockResult,
    LearnerState,
    UpdateRule,
    copy_tensors,
    run_block,
)

FORMAT_VERSION = 1
"""Raised when inputs or outputs of a package change."""
MAX_UPDATES_PER_CALL = 16
"""Updates unrolled into one package; more cost compile time and gain nothing (measured)."""
FLOAT32_TOLERANCE = 1e-3
"""Largest relative distance from eager after one call in float32; rounding gives about 1e-6."""

_MODEL_NAME = "model"
_SOURCES = ("update", "losses", "optimizers", "compiled")


class PackageError(Exception):
    """A package cannot be built, loaded or trusted; the caller stays eager and says why."""


@dataclass(frozen=True)
class PackageSpec:
    """The run that a package is for; runs with equal `describe` share one."""

    config: Config
    environment: EnvironmentSpec
    dtype: torch.dtype = torch.float32

    @property
    def n_updates(self) -> int:
        """Updates per call of the package: the largest divisor of a block that is unrolled."""
        block = updates_per_call(self.config)
        return next(k for k in range(MAX_UPDATES_PER_CALL, 0, -1) if block % k == 0)

    def describe(self, state: LearnerState) -> dict[str, Any]:
        """Everything that the machine code depends on, able to be written as JSON."""
        learner = self.config.learner
        return {
            "format": FORMAT_VERSION,
            "sources_sha256": _sources_sha256(self.config),
            "network": self.config.network.model_dump(mode="json"),
            "tensors": {
                name: [str(t.dtype), list(t.shape)]
                for name, t in {**state.parameters, **state.buffers}.items()
            },
            "n_trained": len(state.parameters),
            "n_inputs": self.environment.n_inputs,
            "n_actions": self.environment.n_actions,
            "n_updates": self.n_updates,
            "batch_size": learner.batch_size,
            "loss": learner.loss,
            "optimizer": learner.optimizer,
            "double_q": learner.double_q,
            "target_network": learner.target_network,
            "polyak": learner.target_tau is not None,
            "clip": learner.max_grad_norm is not None,
            "dtype": str(self.dtype),
            "threads": learner.num_cpus,
            "torch": torch.__version__,
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu_identity(),
        }


def cpu_identity() -> str:
    """CPU model, vector instructions as torch sees them, and a digest of all its flags."""
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
    return f"{model} {torch.backends.cpu.get_cpu_capability()} {digest}"


def _sources_sha256(config: Config) -> str:
    """Digest of the code that is traced: ours and, where there is one, the network's factory."""
    folder = Path(__file__).parent
    files = [folder / f"{name}.py" for name in _SOURCES]
    files.append(Path(networks.__file__))
    if config.network.factory is not None:
        factory = load_factory(config.network.factory, "network.factory")
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


def random_batches(spec: PackageSpec, n_updates: int | None = None) -> Batches:
    """Batches of noise from a fixed seed, for tracing and for comparing."""
    rng = torch.Generator().manual_seed(0)
    extent = (n_updates or spec.n_updates, spec.config.learner.batch_size)
    inputs = (*extent, spec.environment.n_inputs)
    return Batches(
        torch.randn(inputs, generator=rng, dtype=spec.dtype),
        torch.randint(0, spec.environment.n_actions, extent, generator=rng),
        torch.randn(extent, generator=rng, dtype=spec.dtype),
        torch.full(extent, 0.99, dtype=spec.dtype),
        torch.randn(inputs, generator=rng, dtype=spec.dtype),
        torch.rand(extent, generator=rng, dtype=spec.dtype) + 0.5,
    )


def _flat_state(state: LearnerState) -> list[Tensor]:
    groups = (state.parameters, state.buffers, state.target_parameters, state.target_buffers)
    optimizer = state.optimizer
    tensors = [tensor for group in groups for tensor in group.values()]
    return [*tensors, *optimizer.first, *optimizer.second, optimizer.step]


class _Taker:
    """Hands out a flat list's tensors group by group, in the order of `_flat_state`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._rest = iter(tensors)

    def named(self, like: Tensors) -> Tensors:
        return {name: next(self._rest) for name in like}

    def listed(self, n: int) -> list[Tensor]:
        return [next(self._rest) for _ in range(n)]

    def state(self, like: LearnerState, *, target: bool) -> LearnerState:
        """A state with `like`'s names; without `target` its target networks are `like`'s own."""
        return LearnerState(
            self.named(like.parameters),
            self.named(like.buffers),
            self.named(like.target_parameters) if target else like.target_parameters,
            self.named(like.target_buffers) if target else like.target_buffers,
            OptimizerState(
                self.listed(len(like.optimizer.first)),
                self.listed(len(like.optimizer.second)),
                next(self._rest),
            ),
        )


def _flat_block(rule: UpdateRule, like: LearnerState) -> Callable[..., tuple[Tensor, ...]]:
    """`run_block` from flat tensors to flat tensors; a constant target is not handed back."""
    n_batches, n_hyper = len(Batches._fields), len(Hyperparameters._fields)

    def block(*flat: Tensor) -> tuple[Tensor, ...]:
        taker = _Taker(flat)
        state = taker.state(like, target=True)
        batches = Batches(*taker.listed(n_batches))
        hyper = Hyperparameters(*taker.listed(n_hyper))
        # The eager form updates running statistics in place: here they are inputs and results.
        state = state._replace(buffers=copy_tensors(state.buffers))
        new, *measured = run_block(rule, state, batches, hyper)
        if not rule.polyak:
            new = new._replace(target_parameters={}, target_buffers={})
        return (*_flat_state(new), *measured)

    return block


def _norms(tensors: list[Tensor], order: float = 2, dtype: None = None) -> list[Tensor]:
    """`_foreach_norm` one by one: Inductor fuses these, and has no fast call for the other."""
    del dtype
    return [torch.linalg.vector_norm(tensor, order) for tensor in tensors]


def _fuse_global_norm(graph: torch.fx.Graph) -> None:
    """√Σ‖g‖² in the place of the norm of a stack of norms: no small tensors in between."""
    aten = torch.ops.aten

    def is_norm(node: torch.fx.Node) -> bool:
        euclidean = node.args[1:] in ((), (2,)) and not node.kwargs
        return node.target is aten.linalg_vector_norm.default and euclidean

    for node in graph.find_nodes(op="call_function", target=aten.linalg_vector_norm.default):
        stack = node.args[0]
        if stack.target is not aten.stack.default or not all(map(is_norm, [node, *stack.args[0]])):
            continue
        with graph.inserting_before(node):
            squares = [
                graph.call_function(aten.mul.Tensor, (norm.args[0], norm.args[0]))
                for norm in stack.args[0]
            ]
            sums = [graph.call_function(aten.sum.default, (square,)) for square in squares]
            total = sums[0]
            for other in sums[1:]:
                total = graph.call_function(aten.add.Tensor, (total, other))
            node.replace_all_uses_with(graph.call_function(aten.sqrt.default, (total,)))
    graph.eliminate_dead_code()


def trace_block(
    spec: PackageSpec, rule: UpdateRule, state: LearnerState, hyper: Hyperparameters
) -> tuple[torch.fx.GraphModule, tuple[Tensor, ...]]:
    """`run_block` with its gradients as one graph of tensor operations, and inputs to call it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    flat = (*_flat_state(state), *random_batches(spec), *hyper)
    decompositions = {torch.ops.aten._foreach_norm.Scalar: _norms}
    module = make_fx(_flat_block(rule, state), decomposition_table=decompositions)(*flat)
    _fuse_global_norm(module.graph)
    module.recompile()
    return module, flat


def build_package(
    path: Path,
    spec: PackageSpec,
    rule: UpdateRule,
    state: LearnerState,
    hyper: Hyperparameters,
) -> None:
    """Trace, export and compile one package to `path`; half a minute to a minute of one core.

    Raises:
        PackageError: when the network or the machine does not allow it, with the cause.
    """
    import torch._inductor

    options = {"cpp.threads": spec.config.learner.num_cpus}
    try:
        graph, flat = trace_block(spec, rule, state, hyper)
        exported = torch.export.export(graph, flat, strict=False)
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(path), inductor_configs=options
        )
    except Exception as error:
        # Whatever the compiler stumbles over, a run can go on without it.
        lines = str(error).strip().splitlines() or [""]
        raise PackageError(f"{type(error).__name__}: {lines[0][:300]}") from error


FlatBlock = Callable[[list[Tensor]], Sequence[Tensor]]


def load_flat_block(path: Path) -> FlatBlock:
    """A package's one function; takes milliseconds and imports nothing.

    Raises:
        PackageError: when torch refuses the file.
    """
    try:
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), _MODEL_NAME, True, 1, -1)
    except RuntimeError as error:
        raise PackageError(f"cannot load {path.name}: {str(error).splitlines()[0]}") from error
    return cast("FlatBlock", loader.run)


class CompiledBlock:
    """`BlockFunction` over a flat one: a loaded package, or in tests the graph that was traced.

    Invariants: inputs are never written; a block of m·n_updates updates is m calls.
    """

    def __init__(self, run: FlatBlock, spec: PackageSpec) -> None:
        self._run = run
        self._n_updates = spec.n_updates
        self._batch_size = spec.config.learner.batch_size
        self._polyak = spec.config.learner.target_tau is not None

    def fits(self, batches: Batches) -> bool:
        """Whether the package computes blocks of this shape."""
        n_updates, batch_size = batches.actions.shape
        return n_updates % self._n_updates == 0 and batch_size == self._batch_size

    def __call__(
        self, state: LearnerState, batches: Batches, hyper: Hyperparameters
    ) -> BlockResult:
        """See `update.run_block`.

        Raises:
            ValueError: when the batches do not fit: the machine code checks no shapes.
        """
        n_total, n = batches.actions.shape[0], self._n_updates
        if not self.fits(batches):
            raise ValueError(
                f"the package runs {n} updates of batch {self._batch_size} per call, got "
                f"{list(batches.actions.shape)}"
            )
        parts = []
        for start in range(0, n_total, n):
            part = [column[start : start + n] for column in batches]
            results = self._run([*_flat_state(state), *part, *hyper])
            state = _Taker(results).state(state, target=self._polyak)
            parts.append(results[-4:])
        errors, losses, q_means, norms = (torch.cat(column) for column in zip(*parts, strict=True))
        return BlockResult(state, errors, losses, q_means, norms)


def distance_from_eager(
    block: CompiledBlock,
    spec: PackageSpec,
    rule: UpdateRule,
    state: LearnerState,
    hyper: Hyperparameters,
) -> float:
    """Largest relative distance of anything a call returns from the eager form's, on noise."""
    batches = random_batches(spec)
    eager_state = state._replace(buffers=copy_tensors(state.buffers))
    expected = run_block(rule, eager_state, batches, hyper)
    got = block(state, batches, hyper)
    pairs = zip(
        [*_flat_state(expected.state), *expected[1:]],
        [*_flat_state(got.state), *got[1:]],
        strict=True,
    )
    return max(_relative_distance(a, b) for a, b in pairs)


def _relative_distance(expected: Tensor, got: Tensor) -> float:
    """Largest difference over the tensor's largest magnitude; infinite where one is not finite."""
    if expected.numel() == 0:
        return 0.0
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    a, b = expected.double(), got.double()
    scale = a.abs().max().clamp(min=1e-12)
    distance = float((a - b).abs().max() / scale)
    return distance if distance == distance else float("inf")


_said: set[str] = set()


def say_once(text: str) -> None:
    """One line on standard error, the first time only: the learner's path changed or could not."""
    if text not in _said:
        _said.add(text)
        print(f"qfleet: {text}", file=sys.stderr, flush=True)
