"""What every test needs, in this process and in those that it starts."""

from __future__ import annotations

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="qfleet-test-cache-")
# Compiled packages of this machine's user must not decide which bits a test computes.
os.environ["QFLEET_CACHE"] = _CACHE.name
