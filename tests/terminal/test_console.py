"""What each console prints, and when."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest

from qfleet.terminal.console import (
    EpisodeLine,
    JsonConsole,
    PlainConsole,
    RichConsole,
    RunStatus,
    SilentConsole,
    duration,
    make_console,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


STATUS = RunStatus(
    elapsed_s=10.0,
    actors_alive=3,
    actors_wanted=4,
    env_steps=123456,
    env_steps_per_s=48231.4,
    learner_steps=2000,
    learner_steps_per_s=200.0,
    replay_size=30000,
    replay_capacity=50000,
    samples_per_insert=16.02,
    epsilon_min=0.0012,
    epsilon_max=0.4,
    rollout_return_mean=212.34,
    eval_return_mean=None,
    limited_by="limiter",
    budget_fraction=0.25,
    eta_s=30.0,
)
EPISODE = EpisodeLine(7, 23.0, 23, 0.9, 160, 1000, 0.01234)


def status_at(elapsed_s: float) -> RunStatus:
    return dataclasses.replace(STATUS, elapsed_s=elapsed_s)


@pytest.mark.parametrize(
    ("kind", "stream", "expected"),
    [
        ("auto", Terminal(), RichConsole),
        ("auto", io.StringIO(), PlainConsole),
        ("rich", io.StringIO(), RichConsole),
        ("plain", Terminal(), PlainConsole),
        ("json", Terminal(), JsonConsole),
        ("none", Terminal(), SilentConsole),
    ],
)
def test_make_console_chooses_by_kind_and_terminal(
    kind: str, stream: io.StringIO, expected: type
) -> None:
    assert type(make_console(kind, stream)) is expected


def test_plain_status_line_is_key_value_pairs() -> None:
    stream = io.StringIO()

    make_console("plain", stream).update(STATUS)

    assert stream.getvalue() == (
        "elapsed_s=10.0 actors=3/4 env_steps=123456 env_steps_per_s=48231 learner_steps=2000 "
        "learner_steps_per_s=200 replay=30000/50000 samples_per_insert=16.02 "
        "epsilon=0.001..0.400 rollout_return=212.3 eval_return=- limited_by=limiter "
        "budget=25% eta_s=30\n"
    )


def test_plain_prints_every_two_seconds_of_elapsed_time() -> None:
    stream = io.StringIO()
    console = make_console("plain", stream)

    for tenths in range(0, 65):
        console.update(status_at(tenths / 10))

    times = [line.split()[0] for line in stream.getvalue().splitlines()]
    assert times == ["elapsed_s=0.0", "elapsed_s=2.0", "elapsed_s=4.0", "elapsed_s=6.0"]


def test_plain_prints_header_episodes_messages_and_block_at_once() -> None:
    stream = io.StringIO()
    console = make_console("plain", stream)

    console.start(["one", "two"])
    console.episode_line(EPISODE)
    console.message("[bold]as it is[/bold]")
    console.finish("Solved\n  x")

    assert stream.getvalue() == (
        "one\ntwo\n"
        "episode    7  return     23.0  length    23  ε 0.900  env steps 160  "
        "updates 1,000  loss 0.01234\n"
        "[bold]as it is[/bold]\n"
        "\nSolved\n  x\n"
    )


def test_json_prints_one_object_a_line_with_every_field() -> None:
    stream = io.StringIO()
    console = make_console("json", stream)

    console.start(["one"])
    console.update(dataclasses.replace(STATUS, eval_return_mean=float("nan")))
    console.episode_line(EPISODE)
    console.message("text")
    console.finish("Solved\nx")

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["start", "status", "episode", "message", "finish"]
    assert lines[0]["lines"] == ["one"]
    assert set(lines[1]) == {f.name for f in dataclasses.fields(RunStatus)} | {"event"}
    assert (lines[1]["eta_s"], lines[1]["eval_return_mean"]) == (30.0, None)
    assert lines[2] == {"event": "episode", **dataclasses.asdict(EPISODE)}
    assert (lines[3]["text"], lines[4]["text"]) == ("text", "Solved\nx")


def test_rich_table_shows_every_figure_and_leaves_the_terminal_usable() -> None:
    stream = Terminal()
    console = make_console("rich", stream)

    console.start(["[not markup]"])
    console.update(STATUS)
    console.message("remark")
    console.finish("Solved")

    text = stream.getvalue()
    for figure in (
        *("3 of 4", "123,456", "48,231", "2,000", "200", "30,000 (60%)", "16.0", "212.3"),
        *("0.001 … 0.400", "limiter", "10 s", "25%, 30 s", "[not markup]", "remark"),
    ):
        assert figure in text
    assert text.index("remark") < text.rindex("123,456") < text.rindex("Solved")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back


def test_rich_redraws_at_most_five_times_a_second() -> None:
    stream = Terminal()
    console = make_console("rich", stream)

    for hundredths in range(0, 100):
        console.update(status_at(10 + hundredths / 100))
    drawn = stream.getvalue().count("actors alive")
    console.finish("")

    assert 5 <= drawn <= 7


def test_rich_finish_before_any_status_prints_the_block_only() -> None:
    stream = Terminal()
    console = make_console("rich", stream)

    console.finish("Failed")

    assert stream.getvalue() == "\nFailed\n"


def test_none_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()
    console = make_console("none", stream)

    console.start(["x"])
    console.update(STATUS)
    console.episode_line(EPISODE)
    console.message("x")
    console.finish("x")

    assert stream.getvalue() == ""
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (float("inf"), "-"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 m 00 s"),
        (185, "3 m 05 s"),
        (7620, "2 h 07 m"),
    ],
)
def test_duration_reads_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
