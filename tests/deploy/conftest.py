"""A cluster of hosts for the tests that need one (root, `make hosts-test`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hosts import Host
from page_cluster import page_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """head, host2 and host3, with one token that the page's lines make."""
    with page_cluster(tmp_path_factory.mktemp("hosts")) as made:
        yield made
