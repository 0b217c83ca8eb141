"""The proof beside a package: inputs of one call, and what the eager form makes of them.

Written where a package is built, which has torch; read where one is about to be used, which need
not have it. No package is used before its results have been compared with these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from qfleet.common.types import Array
from qfleet.learner.fast.libtorch import BlockLibrary, Libtorch
from qfleet.learner.fast.package_spec import PROOF_SUFFIX, PackageError


def write_proof(package: Path, inputs: Iterable[Array], results: Iterable[Array]) -> None:
    """The file beside `package`, with both in the order of its call."""
    from safetensors.numpy import save_file

    arrays = {f"input/{i:04}": np.asarray(array, order="C") for i, array in enumerate(inputs)}
    arrays |= {f"result/{i:04}": np.asarray(array, order="C") for i, array in enumerate(results)}
    save_file(arrays, package.with_suffix(PROOF_SUFFIX))


def distance_from_proof(torch: Libtorch, library: BlockLibrary, package: Path) -> float:
    """Largest relative distance of a package's results from those that the eager form gave.

    Raises:
        PackageError: when there is no proof, it is for other inputs, or the call fails.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(package.with_suffix(PROOF_SUFFIX))
    except (OSError, SafetensorError) as error:
        raise PackageError(f"it has no readable proof: {error}") from error
    inputs, expected = (
        [arrays[name] for name in sorted(arrays) if name.startswith(kind)]
        for kind in ("input/", "result/")
    )
    if (len(inputs), len(expected)) != (library.n_inputs, library.n_outputs):
        raise PackageError(f"its proof has {len(inputs)} inputs and {len(expected)} results")
    results = library.run([torch.copy(array) for array in inputs])
    got = [torch.array(tensor) for tensor in results]
    torch.release(results)
    return max(relative_distance(a, b) for a, b in zip(expected, got, strict=True))


def relative_distance(expected: Array, got: Array) -> float:
    """Largest difference over the array's largest magnitude; infinite where one is not finite."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return math.inf
    if not expected.size:
        return 0.0
    a, b = expected.astype(np.float64), got.astype(np.float64)
    distance = float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-12)
    return distance if math.isfinite(distance) else math.inf
