import json

import pytest

from qfleet.common.user_errors import is_from_signal, user_error


def _raised(function):
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # each test names its own
        function()
    return caught.value


def _broken():
    return {}["price_table"]


def test_user_error_names_kind_words_file_and_line():
    line = _broken.__code__.co_firstlineno + 1

    words = user_error(_raised(_broken))

    assert words == f"KeyError: 'price_table' ({__file__}, line {line}, in _broken)"


def test_user_error_inside_a_library_names_the_users_line():
    def load():
        return json.loads("{")

    words = user_error(_raised(load))

    assert words.startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert words.endswith(f"({__file__}, line {load.__code__.co_firstlineno + 1}, in load)")


def test_user_error_keeps_the_first_line_of_long_words():
    def wordy():
        raise ValueError("first" + "x" * 1000 + "\nsecond")

    words = user_error(_raised(wordy))

    assert "second" not in words
    assert words.startswith("ValueError: firstxxx")
    assert len(words) < 800


def test_user_error_without_words_or_traceback_is_its_kind():
    assert user_error(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize("module", ["qfleet.run.stop_signals", "ray._private.worker"])
def test_exit_by_a_signals_handler_is_told_from_the_users(module):
    handler = {"__name__": module}
    exec("def note():\n    raise SystemExit(143)", handler)

    def leave():
        raise SystemExit(3)

    assert is_from_signal(_raised(handler["note"]))
    assert not is_from_signal(_raised(leave))
    assert not is_from_signal(_raised(_broken))
