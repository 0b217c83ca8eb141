"""Videos of every kind, opened again and looked into."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest

from qfleet.common.errors import ConfigError
from qfleet.common.types import Array
from qfleet.pictures import recording
from qfleet.pictures.recording import (
    CAPTION_HEIGHT_PIXELS,
    PlayRecording,
    add_caption,
    check_video_path,
    read_frames,
    record_play,
)


class Counter:
    """Episodes of `length` steps; the picture's brightness is 40 times the step."""

    def __init__(self, length: int = 4, shape: tuple[int, int] = (241, 321), fps: int = 10) -> None:
        self.metadata = {"render_fps": fps}
        self.length, self.shape = length, shape
        self.step_number = 0
        self.seeds: list[int | None] = []
        self.actions: list[int] = []

    def reset(self, seed: int | None = None) -> tuple[Array, dict[str, Any]]:
        self.seeds.append(seed)
        self.step_number = 0
        return np.array([0.0], dtype=np.float32), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.step_number += 1
        is_over = self.step_number == self.length
        is_first = len(self.seeds) == 1
        observation = np.array([self.step_number], dtype=np.float32)
        return observation, 1.5, is_over and is_first, is_over and not is_first, {}

    def render(self) -> Array | None:
        return np.full((*self.shape, 3), min(40 * self.step_number, 255), dtype=np.uint8)


def act(observation: Array) -> int:
    return int(observation[0]) % 3


def record(path: Path, env: Counter | None = None, **options: Any) -> PlayRecording:
    return record_play(act, env or Counter(), path, **({"episodes": 1} | options))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp", ".MP4"])
def test_record_writes_every_frame_in_every_format(tmp_path: Path, suffix: str) -> None:
    env = Counter()

    made = record(tmp_path / "new" / f"play{suffix}", env, episodes=2, seed=5)

    frames = read_frames(made.path)
    assert (made.path, made.returns) == (tmp_path / "new" / f"play{suffix}", (6.0, 6.0))
    assert made.frames == 10
    assert len(frames) == 10  # per episode the start and one after each of four steps
    brightness = [int(frame[:200].mean()) for frame in frames]
    np.testing.assert_allclose(brightness, [0, 40, 80, 120, 160] * 2, atol=6)
    assert env.seeds == [5, None]
    assert env.actions == [0, 1, 2, 0] * 2
    assert [p.name for p in made.path.parent.iterdir()] == [made.path.name]


def test_record_colours_are_not_swapped(tmp_path: Path) -> None:
    env = Counter()
    env.render = lambda: np.full((240, 320, 3), (200, 30, 60), dtype=np.uint8)  # type: ignore[method-assign]

    for suffix in (".mp4", ".webp"):
        colour = read_frames(record(tmp_path / f"x{suffix}", env).path)[0][:200].mean((0, 1))
        np.testing.assert_allclose(colour, (200, 30, 60), atol=12)


@pytest.mark.parametrize(("fps", "frames"), [(10, 10), (30, 10), (50, 6), (60, 6), (100, 4)])
def test_record_fast_environments_are_thinned_and_keep_the_last_frame(
    tmp_path: Path, fps: int, frames: int
) -> None:
    made = record(tmp_path / "x.webp", Counter(length=9, fps=fps))

    read = read_frames(made.path)
    assert len(read) == made.frames == frames
    assert int(read[-1][:200].mean()) == pytest.approx(255, abs=6)


def test_record_keeps_at_most_as_many_frames_a_second_as_asked(tmp_path: Path) -> None:
    recording_ = record(tmp_path / "a.webp", Counter(length=12, fps=50), max_frames_per_s=17)

    assert recording_.frames == 5  # steps 0, 3, 6, 9 and the last
    assert len(read_frames(recording_.path)) == 5


def test_record_webp_is_the_very_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    record(path, Counter(length=4), caption=False)

    pictures = read_frames(path)
    assert [int(p[0, 0, 0]) for p in pictures] == [0, 40, 80, 120, 160]
    assert all((picture == picture[0, 0]).all() for picture in pictures)


def test_record_small_pictures_are_enlarged_and_large_animations_shrunk(tmp_path: Path) -> None:
    small = record(tmp_path / "small.mp4", Counter(shape=(84, 84)))
    large = record(tmp_path / "large.gif", Counter(shape=(600, 800)))

    assert read_frames(small.path)[0].shape == (336 + CAPTION_HEIGHT_PIXELS, 336, 3)
    assert read_frames(large.path)[0].shape == (314, 400, 3)


def test_record_odd_sizes_are_padded_for_video(tmp_path: Path) -> None:
    frame = read_frames(record(tmp_path / "x.mp4", caption=False).path)[0]

    assert frame.shape == (242, 322, 3)


def test_add_caption_leaves_the_picture_and_fits_the_width() -> None:
    frame = np.full((50, 320, 3), 77, dtype=np.uint8)

    captioned = add_caption(frame, "episode 12   step 12345   return -1234.56   action 17")

    assert captioned.shape == (50 + CAPTION_HEIGHT_PIXELS, 320, 3)
    np.testing.assert_array_equal(captioned[:50], frame)
    bar = captioned[50:]
    assert (bar.max(), bar.min()) == (240, 24)
    assert (bar[:, -4:] == 24).all()  # nothing runs off the edge
    assert (bar > 200).any(axis=(0, 2)).sum() > 100  # and the text spans much of it


@pytest.mark.parametrize("name", ["x.avi", "x", "x.mp4.txt"])
def test_record_other_suffix_is_refused_listing_the_possible(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"one of \.mp4, \.webm, \.gif, \.webp, got 'x"):
        check_video_path(Path(name))
    env = Counter()
    with pytest.raises(ConfigError, match="--video"):
        record(tmp_path / name, env)
    assert env.seeds == []


def test_record_without_pictures_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    env = Counter()
    env.render = lambda: None  # type: ignore[method-assign]

    with pytest.raises(ConfigError, match=r"render_mode='rgb_array'.*got NoneType"):
        record(tmp_path / "x.mp4", env)

    assert list(tmp_path.iterdir()) == []


def test_record_failure_in_the_middle_keeps_the_previous_video(tmp_path: Path) -> None:
    path = record(tmp_path / "x.mp4").path
    before = path.read_bytes()
    env = Counter()

    def failing(observation: Array) -> int:
        if observation[0] == 2:
            raise ValueError("no action")
        return 0

    with pytest.raises(ValueError, match="no action"):
        record_play(failing, env, path, episodes=1)

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]


def test_record_unreadable_result_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, frames: Any, fps: float) -> int:
        path.write_bytes(b"not a video")
        return sum(1 for _ in frames)

    monkeypatch.setattr(recording, "_write_animation", broken)
    with pytest.raises(ConfigError, match="holds no picture"):
        record(tmp_path / "x.gif")
    assert list(tmp_path.iterdir()) == []


def test_record_unwritable_place_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        record(tmp_path / "file" / "x.mp4")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recording, "_write_video", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        record(tmp_path / "x.mp4")


def test_gif_of_cartpole_has_the_colours_of_the_lossless_animation(tmp_path: Path) -> None:
    """No rounding is carried along the rows, where it made edges yellow."""
    environments = [gymnasium.make("CartPole-v1", render_mode="rgb_array") for _ in range(2)]
    paths = [tmp_path / "play.gif", tmp_path / "play.webp"]
    for env, path in zip(environments, paths, strict=True):
        record_play(lambda _: 1, env, path, episodes=1, seed=3)
        env.close()

    gif, exact = ([f.astype(int) for f in read_frames(path)] for path in paths)

    assert len(gif) == len(exact) > 4
    for ours, wanted in zip(gif, exact, strict=True):
        assert np.abs(ours - wanted).max() <= 20
        assert ours[:100].min() >= 254  # the empty part of the picture stays white


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_recording_prints_no_library_warnings(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """FFmpeg and OpenCV write to the file descriptor, past `sys.stderr`."""
    record(tmp_path / f"play{suffix}")

    assert capfd.readouterr() == ("", "")


def test_standard_error_works_after_a_recording(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "play.mp4")

    os.write(2, b"still there\n")

    assert capfd.readouterr().err == "still there\n"


@pytest.mark.parametrize(
    ("codecs", "name", "remark"),
    [
        (("none", "mp4v"), "FMP4", recording.NO_H264),  # the first is not in any build
        (("mp4v", "vp09"), "FMP4", ""),
    ],
)
def test_mp4_takes_the_first_codec_of_the_build_and_says_when_it_is_not_the_best(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codecs: tuple[str, ...],
    name: str,
    remark: str,
) -> None:
    monkeypatch.setitem(recording.VIDEO_CODECS, ".mp4", codecs)

    made = record(tmp_path / "play.mp4")

    assert made.remark == remark
    assert codec_of(made.path) == name


def test_mp4_is_h264_where_the_build_has_it_else_vp9_with_a_remark(tmp_path: Path) -> None:
    made = record(tmp_path / "play.mp4")

    assert (codec_of(made.path), made.remark) in [("h264", ""), ("VP90", recording.NO_H264)]


def codec_of(path: Path) -> str:
    code = int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FOURCC))
    return code.to_bytes(4, "little").decode()
