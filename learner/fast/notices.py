"""What a learner says on standard error: that its path changed, or why it could not.

Called wherever a compiled block or a CUDA graph is chosen, refused or built.
"""

from __future__ import annotations

import sys

_said: set[str] = set()


def say_once(text: str) -> None:
    """One line on standard error, the first time only."""
    if text not in _said:
        _said.add(text)
        print(f"qfleet: {text}", file=sys.stderr, flush=True)
