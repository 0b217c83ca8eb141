"""Every trap of tests/mutations.yaml can still be put back, and docs/correctness.md lists it.

`make mutations` runs them; that takes minutes and is no part of the suite.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def mutations(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module("mutations")
    sys.modules.pop("mutations")


def test_every_trap_still_applies_and_its_test_is_there(mutations: ModuleType) -> None:
    every = mutations.mutations()

    for each in every:
        compile(each.mutated(), each.file, "exec")
        file, _, name = each.test.partition("::")
        assert re.search(rf"^def {name}\(", (HERE.parent / file).read_text(), re.MULTILINE), each
    assert len(every) == len({each.trap for each in every}) > 40


def test_page_lists_every_trap_with_its_test(mutations: ModuleType) -> None:
    rows = [line for line in mutations.PAGE.read_text().splitlines() if line.startswith("| ")]

    assert [row.rpartition(" | ")[0] for row in rows[1:]] == [
        mutations.row(each, [each.test]).rpartition(" | ")[0] for each in mutations.mutations()
    ]


def test_text_that_is_gone_is_named_with_its_file(mutations: ModuleType) -> None:
    gone = mutations.Mutation("a trap", "actors/n_step.py", "not there", "", "")

    with pytest.raises(ValueError, match=r"'a trap' wants .* once in actors/n_step.py, where it"):
        gone.mutated()


CAUGHT = """
import json, mutations
(ladder,) = [each for each in mutations.mutations() if "ladder" in each.trap]
tests = [ladder.test, "tests/common/test_schedules.py::test_linear_ends_exactly_at_its_end"]
print(json.dumps([mutations.failures(each, tests) for each in (None, ladder)]))
"""


def test_trap_fails_its_own_test_and_not_one_of_another_matter(mutations: ModuleType) -> None:
    """The ladder of one actor, for real, in a process that has imported nothing of ours."""
    (ladder,) = [each for each in mutations.mutations() if "ladder" in each.trap]

    done = subprocess.run(
        [sys.executable, "-c", CAUGHT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
    )

    assert json.loads(done.stdout) == [[], [ladder.test]]
    assert mutations.row(ladder, ["another", ladder.test]).endswith(" | 1 |")
