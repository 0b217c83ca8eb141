"""The whole texts of errors in a run directory: `errors/1.txt`, `errors/2.txt` and so on.

Messages and incidents repeat one line of an exception; whoever must mend it needs all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

ERRORS_DIRECTORY = "errors"
MAX_TEXTS = 20
"""An error that comes again and again must not fill the disk."""
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def write_error_text(run_dir: Path, text: str) -> Path | None:
    """Keep `text` under the next number; None when there are enough or the disk takes no more."""
    folder = run_dir / ERRORS_DIRECTORY
    try:
        folder.mkdir(exist_ok=True)
        number = len(list(folder.iterdir())) + 1
        if number > MAX_TEXTS:
            return None
        path = folder / f"{number}.txt"
        path.write_text(_ANSI_COLOUR.sub("", text).rstrip() + "\n")
    except OSError:
        return None
    return path
