"""Whether arrays are what they should be: refused by name before anything uses them.

Called by the actor's core for every snapshot that comes, and where columns of transitions are made
or stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qfleet.common.errors import InvariantError, NonFiniteError
from qfleet.common.types import Array, ColumnSpec


def check_arrays(arrays: Mapping[str, Array], like: Mapping[str, Array] | None, who: str) -> None:
    """Refuse arrays of other names, dtypes or shapes than `like`, and values that are not finite.

    Args:
        arrays: A snapshot's, by PyTorch module names.
        like: Arrays of the same network; None when none are known yet.
        who: Who refuses what, for the message.

    Raises:
        InvariantError: naming the arrays that differ.
        NonFiniteError: naming the arrays that hold NaN or infinity.
    """
    wanted = arrays if like is None else like
    differing = [
        f"{name} is {_form(arrays.get(name))}, must be {_form(wanted.get(name))}"
        for name in sorted(arrays.keys() | wanted.keys())
        if _form(arrays.get(name)) != _form(wanted.get(name))
    ]
    differing += [
        f"{name} is {array.dtype}, must be float32"
        for name, array in arrays.items()
        if like is None and array.dtype.kind == "f" and array.dtype != np.float32
    ]
    if differing:
        raise InvariantError(f"{who}: {'; '.join(differing)}")
    infinite = [n for n, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
    if infinite:
        raise NonFiniteError(
            f"{who}: NaN or infinity in {', '.join(infinite)}; try a smaller learner.learning_rate"
        )


def _form(array: Array | None) -> str:
    return "missing" if array is None else f"{array.dtype}{list(array.shape)}"


def check_columns(columns: Mapping[str, Array], specs: tuple[ColumnSpec, ...], rows: int) -> None:
    """Raise `InvariantError` unless `columns` holds exactly `specs`, each with `rows` rows."""
    if list(columns) != [spec.name for spec in specs]:
        raise InvariantError(f"columns {list(columns)} are not {[spec.name for spec in specs]}")
    for spec in specs:
        array = columns[spec.name]
        if array.dtype != np.dtype(spec.dtype) or array.shape != (rows, *spec.shape):
            raise InvariantError(
                f"column {spec.name} is {array.dtype}{list(array.shape)}, "
                f"must be {spec.dtype}{[rows, *spec.shape]}"
            )
