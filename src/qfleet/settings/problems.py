"""What a user reads when a setting cannot be used; made by whoever checks settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that cannot be used; `str()` is the line that the user reads."""

    key: str
    value: object
    requirement: str
    remedy: str = ""
    origin: str = ""
    """Where the value came from (`run.yaml:3`, `--learner.batch_size`); the door fills it in."""

    def __str__(self) -> str:
        origin = f" ({self.origin})" if self.origin else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        value = "" if self.value == "" else f" = {show_value(self.value)}"
        return f"{self.key}{value}{origin}: {self.requirement}{remedy}"


def show_value(value: object) -> str:
    """Write a value as YAML would, short enough for one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
