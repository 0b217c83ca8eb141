"""K updates as one compiled package: traced once, built by AOTInductor, called like the eager form.

`build_block.py` makes a package in a process of its own. Where torch is imported anyway it is
called as a `CompiledBlock`, an `update.BlockFunction`; elsewhere by `package_backend.py`. What is
traced is `update.run_block` itself, so a loss, an optimizer or a network gets its compiled form by
existing there. Hyperparameters are inputs: another value needs no new package.

Differs: from the eager form by rounding only (sums are taken in another order); each package is
compared with it on random batches before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from qfleet.common.types import Array
from qfleet.learner.backend import LearnerPath
from qfleet.learner.fast.fast_block import random_batches
from qfleet.learner.fast.flat_block import N_MEASURED, StateTaker, flat_block, flat_state
from qfleet.learner.fast.package_spec import PackageError, PackageSpec
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.update import Batches, BlockResult, LearnerState, UpdateRule

_MODEL_NAME = "model"


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


def _flat_inputs(
    spec: PackageSpec, state: LearnerState, hyper: Hyperparameters
) -> tuple[Tensor, ...]:
    """A call's inputs: `state`, batches of noise and the rates."""
    dtype = getattr(torch, spec.dtype)
    batches = random_batches(spec.plan, spec.environment, spec.n_updates, dtype)
    return (*flat_state(state), *batches, *hyper)


def eager_proof(
    spec: PackageSpec, rule: UpdateRule, state: LearnerState, hyper: Hyperparameters
) -> tuple[list[Array], list[Array]]:
    """Inputs of a package's call and what the eager form makes of them, in a package's order."""
    inputs = _flat_inputs(spec, state, hyper)
    results = flat_block(rule, state)(*inputs)
    arrays = [[t.detach().numpy().copy() for t in tensors] for tensors in (inputs, results)]
    return arrays[0], arrays[1]


def trace_block(
    spec: PackageSpec, rule: UpdateRule, state: LearnerState, hyper: Hyperparameters
) -> tuple[torch.fx.GraphModule, tuple[Tensor, ...]]:
    """`run_block` with its gradients as one graph of tensor operations, and inputs to call it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    flat = _flat_inputs(spec, state, hyper)
    decompositions = {torch.ops.aten._foreach_norm.Scalar: _norms}
    module = make_fx(flat_block(rule, state), decomposition_table=decompositions)(*flat)
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

    options = {"cpp.threads": spec.plan.num_cpus}
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
    """`FastBlock` over a flat one: a loaded package, or in tests the graph that was traced.

    Invariants: inputs are never written; a block of m·n_updates updates is m calls.
    """

    path: LearnerPath = "compiled"

    def __init__(self, run: FlatBlock, spec: PackageSpec) -> None:
        self._run = run
        self._n_updates = spec.n_updates
        self._batch_size = spec.plan.batch_size
        self._polyak = spec.plan.target_tau is not None

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
        n = self._n_updates
        if not self.fits(batches):
            raise ValueError(
                f"the package runs {n} updates of batch {self._batch_size} per call, got "
                f"{list(batches.actions.shape)}"
            )
        parts = []
        for part in zip(*(torch.split(column, n) for column in batches), strict=True):
            results = self._run([*flat_state(state), *part, *hyper])
            state = StateTaker(results).state(state, target=self._polyak)
            parts.append(results[-N_MEASURED:])
        errors, losses, q_means, norms = (torch.cat(column) for column in zip(*parts, strict=True))
        return BlockResult(state, errors, losses, q_means, norms)
