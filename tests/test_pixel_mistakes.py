"""What cannot be seen, drawn or held: exit 2 with the remedy, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.command_line import cli

MODULE = """
import gymnasium
from gymnasium import spaces

class Told(gymnasium.Env):
    metadata = {"render_modes": ["ansi"]}
    observation_space = spaces.Sequence(spaces.Discrete(3))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (1, 2), {}

    def step(self, action):
        return (1, 2), 0.0, False, False, {}

class Blind(Told):
    observation_space = spaces.Box(0, 1, (3,))

def told(render_mode=None):
    return Told()

def blind(render_mode=None):
    return Blind()
"""
CASES = {
    "neither flat nor image": (
        ["generic", "--env.factory", "mistaken:told"],
        ("Sequence", "env.factory"),
    ),
    "frames too small for the network": (
        ["cartpole-pixels", "--network.kind", "nature"],
        ("env.frame_rows = [16, 34]", "takes frames of at least 36 pixels"),
    ),
    "rows outside the frame": (
        ["cartpole-pixels", "--env.frame_rows", "16,43"],
        ("must be first,end with 0 ≤ first < end ≤ 42",),
    ),
    "frames larger than the picture": (
        ["generic-pixels", "--env", "CartPole-v1", "--env.frame_size", "401"],
        ("400 × 600 pixels cannot be enlarged to 401", "env.frame_size"),
    ),
    "no such renderer": (
        ["cartpole-pixels", "--env.renderer", "quick"],
        ("env.renderer = quick", "fast", "gymnasium"),
    ),
    "no renderer for this environment": (
        ["cartpole-pixels", "--env", "Acrobot-v1"],
        ("Acrobot-v1 has no fast renderer", "set env.renderer gymnasium"),
    ),
    "cannot render": (
        ["generic-pixels", "--env.factory", "mistaken:blind"],
        ("cannot be rendered as rgb_array", "set env.observation state"),
    ),
    "memory": (
        ["cartpole-pixels", "--replay.capacity", "1e9"],
        ("replay.capacity", "GiB", "set it to at most"),
    ),
}


@pytest.mark.parametrize(("arguments", "words"), CASES.values(), ids=list(CASES))
def test_mistakes_with_pictures_end_before_anything_starts(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mistaken.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    code = cli.main(["train", *arguments])

    told = capsys.readouterr().err
    assert code == 2, told
    for word in words:
        assert word in told
    assert not (tmp_path / "runs").exists()
