"""Plans as text: how a role's process gets its numbers.

A plan is a frozen pydantic dataclass without defaults: what the driver did not say, or says and the
role does not know, is an error in the role's constructor instead of a surprise later.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from qfleet.common.errors import ConfigError

PLAN_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Of every plan: `"auto"` where a number belongs is refused, and so are unknown fields."""

PlanT = TypeVar("PlanT")


def plan_to_json(plan: Any) -> str:
    """The plan as one JSON object."""
    return TypeAdapter(type(plan)).dump_json(plan).decode()


def plan_from_json(kind: type[PlanT], text: str) -> PlanT:
    """The inverse of `plan_to_json`.

    Raises:
        ConfigError: when a field is missing, unknown or of another type; it names each one.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'text'}: {one['msg']}" for one in error.errors()
        ]
        raise ConfigError(
            f"not a {kind.__name__}, driver and role are of different versions: "
            + "; ".join(problems)
        ) from error
