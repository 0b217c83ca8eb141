"""Plays a policy and records it as a video or an animated picture, with a caption on each frame.

Called by `qfleet play` and at the end of `train`. OpenCV writes H.264 for .mp4 where its build
has an encoder (its Linux wheels have none), else VP9; VP9 for .webm; .webp. Pillow writes .gif, for
OpenCV's palette is fixed, and its rounding is carried along the rows until edges turn yellow.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qfleet.common.errors import ConfigError
from qfleet.common.types import Array
from qfleet.pictures.agent_view import AgentView
from qfleet.run_files.durable import TEMPORARY_PREFIX

VIDEO_CODECS = {".mp4": ("avc1", "vp09"), ".webm": ("VP90",)}
"""Codes by suffix, the best first: the first that opens is taken. Everything plays H.264 (`avc1`);
QuickTime and older Safari do not play VP9."""
ANIMATIONS = (".gif", ".webp")
MIN_WIDTH_PIXELS = 320
"""Narrower frames are enlarged in whole steps: a caption needs the room."""
ANIMATION_MAX_WIDTH_PIXELS = 400
"""Animations are held in memory and stored almost uncompressed."""
MAX_FRAMES_PER_S = 30
"""Encoding one takes 10 ms."""
WEBP_LOSSLESS = 101
"""A quality that OpenCV takes for lossless. Of drawn pictures it is both smaller and written half
again as fast as its default of 75."""
CAPTION_HEIGHT_PIXELS = 28
NO_H264 = (
    "this OpenCV has no H.264 encoder, so it is VP9: browsers and VLC play it, QuickTime does not; "
    ".gif plays everywhere"
)


@dataclass(frozen=True, slots=True)
class PlayRecording:
    """A video that was written and opened again."""

    path: Path
    returns: tuple[float, ...]
    """Undiscounted return of each episode."""
    frames: int
    remark: str = ""
    """What a viewer should know of the format; empty when there is nothing."""


def check_video_path(path: Path) -> None:
    """Raise `ConfigError` unless the suffix is one that can be written."""
    suffixes = [*VIDEO_CODECS, *ANIMATIONS]
    if path.suffix.lower() not in suffixes:
        raise ConfigError(
            f"a video's name must end in one of {', '.join(suffixes)}, got {path.name!r} (--video)"
        )


def record_play(
    policy_act: Callable[[Array], Any],
    env: Any,
    path: Path,
    *,
    episodes: int,
    fps: float | None = None,
    caption: bool = True,
    view: AgentView | None = None,
    seed: int | None = None,
    max_frames_per_s: float = MAX_FRAMES_PER_S,
) -> PlayRecording:
    """Play `episodes` episodes in `env` and write them to `path`.

    Args:
        policy_act: From one observation to an action.
        env: A Gymnasium environment made with `render_mode="rgb_array"`; not closed here.
        path: Ends in .mp4, .webm, .gif or .webp; replaced only when all went well.
        episodes: At least 1.
        fps: Env steps per second of play; None takes the environment's `render_fps`, else 30.
        caption: Whether step, return and action stand below each frame.
        view: Draws beside each frame what the agent sees and thinks.
        seed: Of the first episode's reset; the others follow from it.
        max_frames_per_s: Of faster play every second (third …) frame is kept.

    Raises:
        ConfigError: for another suffix, an environment that renders no pictures, or a file that
            cannot be written or opened again.
    """
    path = Path(path)
    check_video_path(path)
    fps = float(fps or env.metadata.get("render_fps") or 30)
    stride = max(1, round(fps / max_frames_per_s))
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    returns: list[float] = []
    frames = _play(policy_act, env, _Plan(episodes, seed, caption, stride, view), returns)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written, remark = (
            _write_video(temporary, frames, fps / stride)
            if path.suffix.lower() in VIDEO_CODECS
            else (_write_animation(temporary, frames, fps / stride), "")
        )
        _check_readable(temporary)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror} (--video)") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return PlayRecording(path, tuple(returns), written, remark)


class _Plan(NamedTuple):
    episodes: int
    seed: int | None
    caption: bool
    stride: int
    """Of so many steps one is shown, and the last of each episode."""
    view: AgentView | None


def _play(
    policy_act: Callable[[Array], Any], env: Any, plan: _Plan, returns: list[float]
) -> Iterator[Array]:
    """Yield captioned frames, uint8 [H, W, 3] in RGB; append each episode's return at its end."""
    for episode in range(1, plan.episodes + 1):
        observation, _ = env.reset(seed=plan.seed if episode == 1 else None)
        episode_return, step, action, is_over = 0.0, 0, "-", False
        while True:
            if step % plan.stride == 0 or is_over:
                text = f"step {step}   return {episode_return:g}   action {action}"
                if plan.episodes > 1:
                    text = f"episode {episode}   {text}"
                frame = _frame(env)
                if plan.view is not None:
                    frame = plan.view.beside(frame, observation)
                yield add_caption(frame, text) if plan.caption else frame
            if is_over:
                break
            chosen = int(policy_act(observation))
            observation, reward, terminated, truncated, _ = env.step(chosen)
            episode_return += float(reward)
            step, action, is_over = step + 1, str(chosen), bool(terminated or truncated)
        returns.append(episode_return)


def _frame(env: Any) -> Array:
    """The current picture, at least `MIN_WIDTH_PIXELS` wide."""
    try:
        picture = env.render()
    except NotImplementedError:
        picture = None
    if picture is None or np.ndim(picture) != 3 or np.shape(picture)[2] != 3:
        raise ConfigError(
            "recording needs an environment that renders RGB pictures (render_mode='rgb_array'), "
            f"got {type(picture).__name__}"
        )
    frame = np.asarray(picture, dtype=np.uint8)
    scale = -(-MIN_WIDTH_PIXELS // frame.shape[1])
    return frame.repeat(scale, axis=0).repeat(scale, axis=1) if scale > 1 else frame


def add_caption(frame: Array, text: str) -> Array:
    """`frame` with a dark bar of text below it: the picture itself stays unspoilt."""
    import cv2

    bar = np.full((CAPTION_HEIGHT_PIXELS, frame.shape[1], 3), 24, dtype=np.uint8)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.55
    (width, _), _ = cv2.getTextSize(text, font, size, 1)
    size *= min(1.0, (frame.shape[1] - 16) / width)
    cv2.putText(bar, text, (8, 19), font, size, (240, 240, 240), 1, cv2.LINE_AA)
    return np.concatenate([frame, bar])


def _write_video(path: Path, frames: Iterator[Array], fps: float) -> tuple[int, str]:
    """The number of frames written, and a remark where the best codec was not to be had."""
    import cv2

    writer, written, size, remark = None, 0, (0, 0), ""
    try:
        for frame in frames:
            even = _pad_to_even(frame)  # both codecs halve the colour planes
            if writer is None:
                size = (even.shape[1], even.shape[0])
                writer, remark = _open_writer(path, fps, size)
            if (even.shape[1], even.shape[0]) != size:
                raise ConfigError(f"frames change their size from {size} to {even.shape[1::-1]}")
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
            written += 1
    finally:
        if writer is not None:
            with _quiet():
                writer.release()
    return written, remark


def _open_writer(path: Path, fps: float, size: tuple[int, int]) -> tuple[Any, str]:
    import cv2

    best, *others = VIDEO_CODECS[path.suffix.lower()]
    for codec in (best, *others):
        with _quiet():
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
        if writer.isOpened():
            return writer, "" if codec == best else NO_H264
    raise ConfigError(f"{path} cannot be written by this OpenCV: try .gif or .webp")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What FFmpeg and OpenCV write to the standard error themselves goes nowhere.

    They complain of a codec that is only tried, and of a tag that is right; both write past Python
    and past OpenCV's own log level.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _write_animation(path: Path, frames: Iterator[Array], fps: float) -> int:
    kept = [_shrink(frame) for frame in frames]
    write = _write_gif if path.suffix.lower() == ".gif" else _write_webp
    write(path, kept, round(1000 / fps))
    return len(kept)


def _write_gif(path: Path, frames: list[Array], duration_ms: int) -> None:
    from PIL import Image

    method, plain = Image.Quantize.FASTOCTREE, Image.Dither.NONE
    # A palette for each picture; of Pillow's methods this one is the nearest and the fastest.
    first, *others = (Image.fromarray(f).quantize(256, method, dither=plain) for f in frames)
    first.save(path, save_all=True, append_images=others, duration=duration_ms, loop=0)


def _write_webp(path: Path, frames: list[Array], duration_ms: int) -> None:
    import cv2

    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames]
    animation.durations = [duration_ms] * len(frames)
    if not cv2.imwriteanimation(str(path), animation, [cv2.IMWRITE_WEBP_QUALITY, WEBP_LOSSLESS]):
        raise ConfigError(f"{path} cannot be written by this OpenCV: try .mp4")


def _shrink(frame: Array) -> Array:
    import cv2

    height, width = frame.shape[:2]
    if width <= ANIMATION_MAX_WIDTH_PIXELS:
        return frame
    size = (ANIMATION_MAX_WIDTH_PIXELS, round(height * ANIMATION_MAX_WIDTH_PIXELS / width))
    # Below a factor of two each pixel counts in a linear one too, at a third of the time.
    by_area = width >= 2 * ANIMATION_MAX_WIDTH_PIXELS
    method = cv2.INTER_AREA if by_area else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(frame, size, interpolation=method))


def _pad_to_even(frame: Array) -> Array:
    rows, columns = frame.shape[0] % 2, frame.shape[1] % 2
    return np.pad(frame, ((0, rows), (0, columns), (0, 0)), mode="edge")


def _check_readable(path: Path) -> None:
    if not read_frames(path, limit=1):
        raise ConfigError(f"{path} was written but holds no picture that OpenCV can read back")


def read_frames(path: Path, limit: int = 1_000_000) -> Sequence[Array]:
    """At most `limit` frames of a recording, uint8 [H, W, 3] in RGB; empty when unreadable."""
    import cv2

    if path.suffix.lower() in ANIMATIONS:
        is_read, animation = cv2.imreadanimation(str(path), 0, min(limit, 32767))
        bgr = list(animation.frames) if is_read else []
        return [np.asarray(frame)[:, :, 2::-1] for frame in bgr]
    capture = cv2.VideoCapture(str(path))
    frames: list[Array] = []
    while len(frames) < limit:
        is_read, frame = capture.read()
        if not is_read:
            break
        frames.append(frame[:, :, ::-1])
    capture.release()
    return frames
