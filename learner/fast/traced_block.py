"""K updates as one compiled package: traced once, built by AOTInductor.

Called by `build_block.py` in a process of its own; `package_backend.py` calls what it makes. What
is traced is `update.run_block` itself, so a loss, an optimizer or a network gets its compiled form
by existing there. Hyperparameters are inputs: another value needs no new package.

Differs: from the eager form by rounding only (sums are taken in another order); each package is
compared with it on random batches before it is used.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qfleet.learner.fast.flat_block import flat_block, flat_state, random_batches
from qfleet.learner.fast.package_proof import write_proof
from qfleet.learner.fast.package_spec import PackageError, PackageSpec
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.update import LearnerState, UpdateRule


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

    batches = random_batches(spec.plan, spec.environment, spec.n_updates, spec.dtype)
    flat = (*flat_state(state), *batches.tensors(), *hyper)
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
    """One package at `path`, its proof beside it; half a minute to a minute of one core.

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
    results = flat_block(rule, state)(*flat)
    write_proof(path, *([t.detach().numpy() for t in part] for part in (flat, results)))
