"""Why chunks were refused, in bounded space; kept by the shell of a replay shard."""

from __future__ import annotations

MAX_REASONS = 16
MAX_REASON_CHARACTERS = 200
OTHER = "other reasons"


class Rejections:
    """How often each reason was given; beyond `MAX_REASONS` they are counted together."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, reason: str) -> None:
        """Count one refused chunk."""
        reason = reason[:MAX_REASON_CHARACTERS]
        if reason not in self._counts and len(self._counts) >= MAX_REASONS:
            reason = OTHER
        self._counts[reason] = self._counts.get(reason, 0) + 1

    def counts(self) -> dict[str, int]:
        """By reason."""
        return dict(self._counts)
