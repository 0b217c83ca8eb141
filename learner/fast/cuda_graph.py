"""The K-update block as one CUDA graph: recorded once over tensors that stay where they are.

`backends.py` has one made at the start of a run on a GPU; `TorchBackend` calls it as it calls the
eager form. What is recorded is `flat_block`, the function that the compiled package is traced from,
so the graph launches the very kernels of the eager form, without Python between them. Everything
but `capture_graph` itself runs on any device.

Source: PyTorch's notes on CUDA graphs (whole-network capture, constraints).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qfleet.common.types import EnvironmentSpec
from qfleet.learner.backend import FLOAT32_TOLERANCE, N_MEASURED
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.fast.flat_block import StateTaker, flat_block, flat_state, random_batches
from qfleet.learner.fast.package_proof import relative_distance
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.torch_backend import TorchBackend
from qfleet.learner.update import Batches, BlockResult, LearnerState, UpdateRule, eager_block

SPREAD_FACTOR = 10.0
"""How many times the distance between two eager calls a replay may be away from one of them."""
WARM_UP_CALLS = 3
"""Calls before the recording, in which libraries set up what they may not set up within it."""


class CaptureError(Exception):
    """A block cannot be recorded or its replay not trusted; the caller stays eager or ends."""


StaticFunction = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""From tensors to new tensors, without a look at their values on the host."""
Replay = Callable[[], Sequence[Tensor]]
"""Computes from the inputs' present values; the results lie in the same tensors each time."""
Capture = Callable[[StaticFunction, Sequence[Tensor]], Replay]


def capture_graph(function: StaticFunction, inputs: Sequence[Tensor]) -> Replay:
    """Record `function(inputs)` as a CUDA graph on the inputs' device.

    Raises:
        RuntimeError: when something in it waits for the GPU, copies from pageable memory or needs
            more memory than there is.
    """
    with torch.cuda.device(inputs[0].device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it so
        stream.wait_stream(torch.cuda.current_stream())
        # 1. One stream for both: cuBLAS and autograd set up what they need per thread and stream.
        # 2. This outer context brings the old stream back when the recording fails: the inner
        #    one leaves the recording's stream as the current one then.
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                function(inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                results = function(inputs)

    def replay() -> Sequence[Tensor]:
        graph.replay()
        return results

    return replay


class StaticBlock:
    """`update.BlockFunction` over static tensors: copy in, replay, copy out.

    Invariants: neither the caller's tensors nor results handed out earlier are ever written, so a
    block that diverged can be forgotten. One block is one copy in per dtype, one replay, one copy
    out per dtype and one transfer to the host. Owned by one thread.
    """

    def __init__(
        self,
        rule: UpdateRule,
        state: LearnerState,
        batches: Batches,
        hyper: Hyperparameters,
        capture: Capture = capture_graph,
    ) -> None:
        """Record the block for inputs like these; their values do not matter."""
        self._polyak = rule.polyak
        self._eager = eager_block(rule)
        self._layout = _layout(batches)
        block = flat_block(rule, state)
        # Zeros, so that a value that sneaks in while recording shows in the first comparison.
        self._inputs = [
            torch.zeros_like(t) for t in (*flat_state(state), *batches.tensors(), *hyper)
        ]

        def packed(inputs: Sequence[Tensor]) -> list[Tensor]:
            results = block(*inputs)
            errors, *scalars = results[-N_MEASURED:]
            # One tensor [K, B + 3]: what was measured goes to the host in one transfer.
            measured = torch.cat([errors, torch.stack(scalars, dim=1)], dim=1)
            return [*results[:-N_MEASURED], measured]

        self._replay = capture(packed, self._inputs)

    def __call__(
        self, state: LearnerState, batches: Batches, hyper: Hyperparameters
    ) -> BlockResult:
        """See `update.run_block`; the measured tensors are on the host, the state is not.

        Batches of another layout than the recording's are computed eagerly.
        """
        if _layout(batches) != self._layout:
            return self._eager(state, batches, hyper)
        _copy(self._inputs, [*flat_state(state), *batches.tensors(), *hyper])
        *new, measured = self._replay()
        results = [torch.empty_like(tensor) for tensor in new]
        _copy(results, new)
        on_host = measured.to("cpu", copy=True)  # waits for the replay
        errors, losses, q_means, norms = (
            on_host[:, : -(N_MEASURED - 1)],
            *(on_host[:, -n] for n in range(N_MEASURED - 1, 0, -1)),
        )
        new_state = StateTaker(results).state(state, target=self._polyak)
        return BlockResult(new_state, errors, losses, q_means, norms)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensor by tensor, those of one dtype in one launch."""
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        pair = by_dtype.setdefault(target.dtype, ([], []))
        pair[0].append(target)
        pair[1].append(source)
    for same_dtype in by_dtype.values():
        torch._foreach_copy_(*same_dtype)


def _layout(batches: Batches) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in batches.tensors()]


def graph_backend(
    plan: LearnerPlan, spec: EnvironmentSpec, device: str, capture: Capture = capture_graph
) -> TorchBackend:
    """A learner at its start on `device` whose blocks are one CUDA graph.

    Raises:
        CaptureError: see `record_block`.
    """
    rule, state, hyper = initial_block_inputs(plan, spec, device)
    noise = random_batches(plan, spec, plan.updates_per_call)
    batches = Batches(*(tensor.to(device) for tensor in noise.tensors()))
    block = record_block(rule, state, batches, hyper, capture)
    return TorchBackend(block, "cuda graph", state, hyper)


def record_block(
    rule: UpdateRule,
    state: LearnerState,
    batches: Batches,
    hyper: Hyperparameters,
    capture: Capture = capture_graph,
) -> StaticBlock:
    """The block as a CUDA graph, compared with the eager form on `batches`.

    It must be as near as rounding leaves it, or as near as the eager form is to itself: Adam makes
    whole steps of the last bits of a gradient, and some kernels add up in any order.

    Raises:
        CaptureError: when it cannot be recorded or gives other results, with the cause.
    """
    eager, inputs = eager_block(rule), (state, batches, hyper)
    try:
        block = StaticBlock(rule, *inputs, capture)
        expected = eager(*inputs)
        distance = distance_between(expected, block(*inputs))
        allowed = FLOAT32_TOLERANCE
        if distance > allowed:
            allowed = SPREAD_FACTOR * distance_between(expected, eager(*inputs))
    except Exception as error:
        # Whatever a network does that a GPU cannot record, a run can go on without the graph.
        raise CaptureError(_first_cause(error)) from error
    if distance > allowed or not math.isfinite(distance):
        raise CaptureError(f"its replay differs from eager PyTorch by {distance:.1e}")
    return block


def distance_between(expected: BlockResult, got: BlockResult) -> float:
    """Largest relative distance of anything that two calls returned."""
    arrays = (
        [tensor.cpu().numpy() for tensor in (*flat_state(result.state), *result[1:])]
        for result in (expected, got)
    )
    return max(relative_distance(a, b) for a, b in zip(*arrays, strict=True))


def _first_cause(error: BaseException) -> str:
    """The first line of the error that came first: ending a broken recording raises another."""
    while (earlier := error.__cause__ or _context(error)) is not None:
        error = earlier
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _context(error: BaseException) -> BaseException | None:
    return None if error.__suppress_context__ else error.__context__
