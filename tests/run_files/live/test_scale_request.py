"""How many actors somebody wants: written, taken once, withdrawn; rubbish asks for nothing."""

from __future__ import annotations

import pytest

from qfleet.run_files.live.scale_request import (
    is_scale_request_open,
    take_scale_request,
    withdraw_scale_request,
    write_scale_request,
)


def test_request_is_taken_once_and_the_newest_counts(tmp_path):
    assert take_scale_request(tmp_path) is None
    write_scale_request(tmp_path, 4)
    write_scale_request(tmp_path, 8)
    assert is_scale_request_open(tmp_path)
    assert take_scale_request(tmp_path) == 8
    assert take_scale_request(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_request_that_is_withdrawn_is_taken_by_nobody(tmp_path):
    write_scale_request(tmp_path, 4)
    withdraw_scale_request(tmp_path)
    withdraw_scale_request(tmp_path)
    assert take_scale_request(tmp_path) is None


@pytest.mark.parametrize("text", ["", "4", "{}", '{"actors": "4"}', '{"actors": true}', "[4]"])
def test_file_that_says_nothing_of_the_kind_is_removed(tmp_path, text):
    (tmp_path / "scale.json").write_text(text)
    assert take_scale_request(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
