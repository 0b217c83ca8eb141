"""The learning curve's numbers, and that the picture shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qfleet.common.types import Array
from qfleet.pictures import learning_curve
from qfleet.pictures.learning_curve import (
    evaluation_points,
    plot_learning_curve,
    rolling_mean,
    training_points,
)
from qfleet.run_files.metrics import MetricsWriter


def make_run(run_dir: Path, config: str = "") -> Path:
    (run_dir / "config.yaml").write_text(config)
    writer = MetricsWriter(run_dir, env_id="x", t_start_s=0.0, tensorboard=False)
    for length in (10, 20, 30):
        writer.write_episode(float(length), length, 0.0)
    for env_steps, value in ((20, None), (40, 25.0), (60, 30.0), (80, None)):
        row = {} if value is None else {"eval/return_mean": value}
        writer.write(row, env_steps=env_steps, learner_steps=0, wall_s=0.0)
    writer.close()
    return run_dir


def read_picture(path: Path) -> Array:
    import cv2

    picture = cv2.imread(str(path))
    assert picture is not None
    return np.asarray(picture)


def test_training_points_lie_at_the_sum_of_lengths(tmp_path: Path) -> None:
    steps, returns = training_points(make_run(tmp_path))

    assert steps.tolist() == [10, 30, 60]
    assert returns.tolist() == [10, 20, 30]


def test_evaluation_points_skip_rows_without_one_and_rows_undone_by_a_resume(
    tmp_path: Path,
) -> None:
    make_run(tmp_path)
    assert [a.tolist() for a in evaluation_points(tmp_path)] == [[40, 60], [25, 30]]

    writer = MetricsWriter(tmp_path, env_id="x", t_start_s=0.0, tensorboard=False)
    for env_steps, value in ((50, 26.0), (70, float("nan")), (90, 40.0)):
        row = {"eval/return_mean": value}
        writer.write(row, env_steps=env_steps, learner_steps=0, wall_s=0.0)
    writer.close()

    assert [a.tolist() for a in evaluation_points(tmp_path)] == [[40, 50, 90], [25, 26, 40]]


def test_evaluation_point_stays_when_the_last_row_of_a_lockstep_run_is_at_its_env_step(
    tmp_path: Path,
) -> None:
    writer = MetricsWriter(tmp_path, env_id="x", t_start_s=0.0, tensorboard=False)
    for env_steps, learner_steps, row in (
        (20, 10, {"eval/return_mean": 9.0}),
        (20, 10, {}),  # the metrics period passes in the same round
        (40, 20, {}),
        (40, 20, {"eval/return_mean": 500.0}),  # solved: the loop ends in this round
        (40, 20, {}),  # written when the training has ended
    ):
        writer.write(row, env_steps=env_steps, learner_steps=learner_steps, wall_s=0.0)
    writer.close()

    assert [a.tolist() for a in evaluation_points(tmp_path)] == [[20, 40], [9, 500]]


def test_evaluation_points_of_an_async_run_stay_beside_rows_written_before_they_ended(
    tmp_path: Path,
) -> None:
    """A limiter holds the actors: two evaluations of different parameters at one env step."""
    writer = MetricsWriter(tmp_path, env_id="x", t_start_s=0.0, tensorboard=False)
    for env_steps, learner_steps, row in (
        (20, 10, {"eval/return_mean": 9.0}),
        (90, 50, {}),
        (60, 30, {"eval/return_mean": 10.0}),  # began before the row above it was written
        (60, 40, {"eval/return_mean": 11.0}),
        (95, 55, {}),
    ):
        writer.write(row, env_steps=env_steps, learner_steps=learner_steps, wall_s=0.0)
    writer.close()

    assert [a.tolist() for a in evaluation_points(tmp_path)] == [[20, 60, 60], [9, 10, 11]]


def test_evaluation_repeated_after_a_resume_from_the_cut_behind_it_counts_once(
    tmp_path: Path,
) -> None:
    writer = MetricsWriter(tmp_path, env_id="x", t_start_s=0.0, tensorboard=False)
    for value in (25.0, 26.0):
        row = {"eval/return_mean": value}
        writer.write(row, env_steps=40, learner_steps=20, wall_s=0.0)
    writer.close()

    assert [a.tolist() for a in evaluation_points(tmp_path)] == [[40], [26]]


def test_training_points_leave_out_episodes_undone_by_a_resume(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, env_id="x", t_start_s=0.0, tensorboard=False)
    for episode_return, length, wall_s in (
        (1.0, 10, 0.5),
        (2.0, 20, 1.5),
        (3.0, 30, 2.5),  # undone: the cut was taken at 1.5 s
        (4.0, 40, 1.75),
        (5.0, 50, 1.75),
    ):
        writer.write_episode(episode_return, length, wall_s)
    writer.close()

    steps, returns = training_points(tmp_path)

    assert (steps.tolist(), returns.tolist()) == ([10, 30, 70, 120], [1, 2, 4, 5])


@pytest.mark.parametrize("window", [1, 3, 50])
def test_rolling_mean_equals_the_naive_one(window: int) -> None:
    values = np.random.default_rng(0).normal(size=20)

    expected = [values[max(0, i + 1 - window) : i + 1].mean() for i in range(20)]

    np.testing.assert_allclose(rolling_mean(values, window), expected, atol=1e-12)
    assert rolling_mean(np.array([]), window).tolist() == []


def colours(picture: Array) -> dict[str, int]:
    """How many pixels have the colour of each curve; OpenCV's order is blue, green, red."""
    wanted = {"mean": (180, 119, 31), "evaluation": (14, 127, 255), "threshold": (44, 160, 44)}
    return {k: int((np.abs(picture.astype(int) - v).max(2) < 8).sum()) for k, v in wanted.items()}


def test_plot_shows_both_curves_and_the_threshold(tmp_path: Path) -> None:
    make_run(tmp_path, "preset: cartpole\nseed: 1\nenv: {id: CartPole-v1}\n")

    path = plot_learning_curve(tmp_path, threshold=28)

    picture = read_picture(path)
    assert path == tmp_path / "learning_curve.png"
    assert picture.shape == (540, 960, 3)
    assert min(colours(picture).values()) > 200
    assert not list(tmp_path.glob(".tmp-*"))


def test_plot_without_data_says_so_and_draws_no_curve(tmp_path: Path) -> None:
    picture = read_picture(plot_learning_curve(tmp_path))

    assert colours(picture) == {"mean": 0, "evaluation": 0, "threshold": 0}
    assert (picture[200:340, 300:700] < 100).any()  # the sentence in the middle


@pytest.mark.parametrize(
    ("config", "threshold"),
    [
        ({"env": {"id": "CartPole-v1"}}, 475.0),
        ({"env": {"id": "CartPole-v1"}, "eval": {"solved_at_return": 100}}, 100.0),
        ({"env": {"id": "CartPole-v1"}, "eval": {"solved_at_return": None}}, None),
        ({"env": {"id": "CartPole-v1", "factory": "m:f"}}, None),
        ({"env": {"id": "NotRegistered-v0"}}, None),
        ({}, None),
    ],
)
def test_threshold_comes_from_the_configuration(
    config: dict[str, object], threshold: float | None
) -> None:
    assert learning_curve._configured_threshold(config) == threshold


def test_plot_does_not_import_pyplot(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(learning_curve.__file__).parents[2])!r});"
        "from pathlib import Path; from qfleet.pictures.learning_curve import plot_learning_curve;"
        f"plot_learning_curve(Path({str(tmp_path)!r}), 1.0);"
        "print([m for m in ('matplotlib.pyplot', 'torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.strip() == "[]"
