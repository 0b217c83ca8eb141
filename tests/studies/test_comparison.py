"""Readings, arms and their figures, from run directories written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.common.errors import ConfigError
from qfleet.studies.comparison import Arm, compare, gain, group_by_configuration
from qfleet.studies.findings import findings
from qfleet.studies.readings import Reading, differing_keys, read_run
from qfleet.studies.words import Words


def test_reading_holds_what_the_run_wrote(make_run) -> None:
    run = read_run(make_run("a", seed=7, lengths=(10, 30), solved=True))

    assert run.seed == 7
    assert run.eval_learner_steps.tolist() == [100.0, 200.0]
    assert run.eval_env_steps.tolist() == [50.0, 100.0]
    assert run.eval_returns.tolist() == [20.0, 480.0]
    assert run.episode_lengths.tolist() == [10.0, 30.0]
    assert run.traces["learner/q_mean"][1].tolist() == [2.0, 48.0]
    assert run.score == 480.0
    assert run.is_complete
    assert run.failure is None


@pytest.mark.parametrize(
    ("status", "exit_code", "complete", "failure"),
    [
        ("solved", 0, True, None),
        ("failed", 4, True, None),  # diverged: a finding
        ("failed", 5, False, "exit 5: lost"),
        ("stopped", 130, False, "exit 130: lost"),
    ],
)
def test_what_counts_as_an_end(make_run, status, exit_code, complete, failure) -> None:
    run = read_run(make_run("a", status=status, exit_code=exit_code, stop_reason="lost"))

    assert run.is_complete is complete
    assert run.failure == failure
    assert run.has_diverged is (exit_code == 4)


def test_a_folder_without_a_run_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"is no run directory: it holds no config\.yaml"):
        read_run(tmp_path)


def test_runs_that_differ_in_their_seeds_alone_are_one_arm(make_run) -> None:
    runs = [
        read_run(make_run("a1", seed=1)),
        read_run(make_run("b1", seed=1, learner={"batch_size": 64})),
        read_run(make_run("a2", seed=2)),
    ]

    arms = group_by_configuration(runs)

    assert differing_keys(runs) == {"learner.batch_size": [32, 64, 32]}
    assert [(arm.name, [run.seed for run in arm.runs]) for arm in arms] == [
        ("learner.batch_size 32", [1, 2]),
        ("learner.batch_size 64", [1]),
    ]


def test_arms_that_differ_in_much_are_named_by_the_fewest_keys_that_tell_them_apart(
    make_run,
) -> None:
    """By what they are of before what their learners do, and that before what ends them."""
    alike = {"a_rather_long_key_of_the_learner": 1, "target_update_period_learner_steps": 100}
    runs = [
        read_run(make_run("a", learner=alike)),
        read_run(make_run("b", learner={key: 2 * value for key, value in alike.items()})),
        read_run(make_run("c", learner=alike, env_id="Acrobot-v1")),
    ]

    assert [arm.name for arm in group_by_configuration(runs[1:])] == [
        "env.id CartPole-v1, …",
        "env.id Acrobot-v1, …",
    ]
    assert [arm.name for arm in group_by_configuration(runs[:2])] == [
        "learner.a_rather_long_key_of_the_learner 1, …",
        "learner.a_rather_long_key_of_the_learner 2, …",
    ]
    assert [arm.name for arm in group_by_configuration(runs)] == [
        "env.id CartPole-v1, learner.a_rather_long_key_of_the_learner 1, …",
        "env.id CartPole-v1, learner.a_rather_long_key_of_the_learner 2, …",
        "env.id Acrobot-v1, learner.a_rather_long_key_of_the_learner 1, …",
    ]


def test_returns_of_different_environments_are_not_compared(make_run) -> None:
    arms = [
        Arm(env_id, [read_run(make_run(f"{env_id}{seed}", seed=seed, env_id=env_id,
                                       evaluations=((100, value),))) for seed in range(5)])
        for env_id, value in (("CartPole-v1", 400.0), ("Acrobot-v1", -90.0))
    ]  # fmt: skip

    lines = findings(arms, compare(arms, None), None, Words("en"))

    assert [line.split(":")[0] for line in lines] == ["CartPole-v1", "Acrobot-v1"]


def test_figures_of_an_arm_by_hand(make_run) -> None:
    arm = Arm(
        "x",
        [
            read_run(make_run("a", seed=1, evaluations=((100, 20.0), (200, 480.0)), solved=True)),
            read_run(make_run("b", seed=2, evaluations=((100, 30.0), (200, 40.0)))),
            read_run(make_run("c", seed=3, status="failed", exit_code=5)),
        ],
    )

    (found,) = compare([arm], 475.0)

    assert (found.n_complete, found.n_failed, found.n_diverged, found.n_solved) == (2, 1, 0, 1)
    assert found.score is not None
    assert found.over_training is not None
    assert found.score.value == 260.0  # of 480 and 40: the failed run is not averaged in
    assert found.over_training.value == pytest.approx((20 + 30) / 2)  # up to the budget of 200
    assert (found.reached, found.learner_steps_to_threshold) == (1, 200.0)
    assert found.env_steps_to_threshold == 100.0
    assert found.curve is not None
    assert found.curve.mean[0] == pytest.approx(25.0)
    assert found.curve.mean[-1] == pytest.approx(260.0)
    assert found.as_row()["score_low"] == found.score.low


def test_every_arm_counts_its_own_seeds(make_run) -> None:
    def runs(name: str, n_seeds: int, score: float) -> list[Reading]:
        ends = ((100, score),)
        return [
            read_run(make_run(f"{name}{seed}", seed=seed, evaluations=ends, solved=True))
            for seed in range(n_seeds)
        ]

    found = compare([Arm("a", runs("a", 5, 480.0)), Arm("b", runs("b", 2, 80.0))], 475.0)

    assert [(each.n_complete, each.n_solved, each.reached) for each in found] == [
        (5, 5, 5),
        (2, 2, 0),
    ]
    assert [(each.score.value, each.score.n) for each in found if each.score] == [(480, 5), (80, 2)]
    assert [each.over_training.n for each in found if each.over_training] == [5, 2]
    assert [each.seeds for each in found] == [[0, 1, 2, 3, 4], [0, 1]]


def test_arm_of_which_nothing_is_complete_has_no_figures(make_run) -> None:
    arm = Arm("x", [read_run(make_run("a", status="failed", exit_code=5))])

    (found,) = compare([arm], 475.0)

    assert (found.score, found.over_training, found.curve) == (None, None, None)
    assert found.n_failed == 1


def test_findings_say_what_the_numbers_say(make_run) -> None:
    good = Arm("with", [read_run(make_run(f"a{s}", seed=s)) for s in (1, 2)])
    gone = Arm(
        "without",
        [
            read_run(
                make_run(f"b{s}", seed=s, evaluations=(), status="failed", exit_code=4)
                if s == 1
                else make_run(f"b{s}", seed=s, evaluations=((100, 9.0),))
            )
            for s in (1, 2, 3)
        ],
    )
    arms = [good, gone]

    lines = findings(arms, compare(arms, 475.0), 475.0, Words("en"))

    assert lines == [
        "with: reached 475 in 2 of 2 seeds after 200 updates (median), best parameters scored "
        "480.0 (480.0–480.0), mean Q-value up to 48",
        "without: reached 475 in 0 of 3 seeds, best parameters scored 9.0 (9.0–9.0) in the 2 seeds "
        "that were evaluated, diverged in 1 of 3 seeds, after 0 updates (median), mean Q-value up "
        "to 0.9",
        "The score of 'with' lies above that of 'without', interval against interval.",
        "With 2 seeds such intervals are too narrow to rely on; five or more tell more.",
    ]
    japanese = findings(arms, compare(arms, 475.0), 475.0, Words("ja"))
    assert japanese[1].startswith("without: 3シード中0で475に到達")


def test_overlapping_intervals_are_said_to_tell_nothing(make_run) -> None:
    arms = [
        Arm(name, [read_run(make_run(f"{name}{s}", seed=s, evaluations=((100, value),)))
                   for s, value in enumerate(values)])
        for name, values in (("a", (100.0, 300.0)), ("b", (120.0, 250.0)))
    ]  # fmt: skip

    assert "not told apart" in findings(arms, compare(arms, None), None, Words("en"))[-2]


@pytest.mark.parametrize(
    ("losses", "is_said"),
    [
        (({"loss": "mse"}, {"loss": "huber"}), True),
        (({"loss": "mse"}, {"loss": "mse"}), False),
        (({"loss": "mse"}, {"loss": "huber", "distribution": "qr"}), False),
    ],
    ids=["mse-huber", "same", "distribution"],
)
def test_arms_whose_losses_differ_in_scale_are_said_to(make_run, losses, is_said) -> None:
    arms = []
    for place, loss in enumerate(losses):
        distribution = loss.get("distribution", "none")
        path = make_run(f"arm-{place}", learner={"loss": loss["loss"]})
        config = path / "config.yaml"
        config.write_text(f"{config.read_text()}network: {{distribution: {distribution}}}\n")
        arms.append(Arm(f"arm {place}", [read_run(path)]))

    english, japanese = (findings(arms, compare(arms, None), None, Words(x)) for x in ("en", "ja"))

    assert any("MSE's gradient is twice Huber's" in line for line in english) == is_said
    assert any("MSEの勾配はHuberの2倍" in line for line in japanese) == is_said


def test_intervals_of_five_seeds_are_told_without_a_warning(make_run) -> None:
    arms = [
        arm_of(make_run, name, {seed: value + seed for seed in range(1, 6)})
        for name, value in (("a", 100.0), ("b", 300.0))
    ]

    assert findings(arms, compare(arms, None), None, Words("en"))[-1] == (
        "The score of 'b' lies above that of 'a', interval against interval."
    )


def arm_of(make_run, name: str, values: dict[int, float]) -> Arm:
    """An arm whose evaluations are `values` by seed from the beginning to update 100."""
    return Arm(
        name,
        [
            read_run(make_run(f"{name}{seed}", seed=seed, evaluations=((100, value),)))
            for seed, value in values.items()
        ],
    )


def test_gain_compares_equal_seeds_alone(make_run) -> None:
    base = arm_of(make_run, "base", {1: 20.0, 2: 30.0, 4: 1.0})
    arm = arm_of(make_run, "arm", {2: 50.0, 1: 25.0, 3: 400.0})

    found = gain(arm, base, 100.0)

    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (12.5, 5.0, 20.0, 2)
    assert gain(arm_of(make_run, "other", {9: 1.0}), base, 100.0) is None


def test_findings_say_what_each_arm_gains_on_the_first(make_run) -> None:
    base = arm_of(make_run, "base", {1: 20.0, 2: 30.0})
    arms = [base, arm_of(make_run, "a", {1: 25.0, 2: 50.0}), arm_of(make_run, "b", {1: 10.0})]

    lines = findings(arms, compare(arms, None), None, Words("en"))

    assert [line for line in lines if line.startswith("Against")] == [
        "Against 'base', 'a' returns +12.5 (+5.0 to +20.0) over the whole training, compared seed "
        "by seed (2 seeds)."
    ]


def test_unknown_language_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="--language must be one of en, ja, got fr"):
        Words("fr")


def test_curve_ends_at_the_longest_run(make_run) -> None:
    arms = [
        Arm("a", [read_run(make_run("a", evaluations=((100, 1.0),)))]),
        Arm("b", [read_run(make_run("b", evaluations=((400, 2.0),)))]),
    ]

    found = compare(arms, None)

    assert all(each.curve is not None for each in found)
    assert [float(each.curve.learner_steps[-1]) for each in found if each.curve] == [400.0, 400.0]
    assert np.array_equal(found[0].curve.mean if found[0].curve else [], np.full(200, 1.0))
