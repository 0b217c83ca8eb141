"""Study files: what they may hold, and that every arm is checked before anything starts."""

from __future__ import annotations

import pytest

from qfleet.common.errors import ConfigError
from qfleet.studies.definition import Study, in_language, load_study, shipped


def test_every_shipped_study_is_one_and_speaks_both_languages() -> None:
    assert "target-network" in shipped()
    for name in shipped():
        study = load_study(name, {})
        for text in (study.title, study.question):
            assert isinstance(text, dict)
            assert set(text) == {"en", "ja"}
        for arm in study.arms:
            assert study.label(arm, "ja") != study.label(arm, "en")


def test_exercise_1_is_the_courses_program_but_for_the_target_network() -> None:
    study = load_study("target-network", {})

    with_it, without = (study.config(arm).model_dump() for arm in study.arms)

    assert (study.preset, study.seeds) == ("tutorial-state", 3)
    assert with_it["learner"].pop("target_network") is True
    assert without["learner"].pop("target_network") is False
    assert with_it == without
    assert with_it["eval"]["stop_when_solved"] is False
    assert with_it["runtime"] == "local"


@pytest.mark.parametrize("name", ["target-network", "dueling-per"])
def test_exercises_explore_by_env_steps_and_sync_after_each_episode(name) -> None:
    study = load_study(name, {})

    for arm in study.arms:
        config = study.config(arm)
        actors = config.actors
        assert (actors.epsilon_schedule, actors.epsilon_end) == ("exponential", 0.01)
        assert (actors.epsilon_decay_env_steps, actors.epsilon_decay_episodes) == (2_000, None)
        assert config.learner.target_update_period_learner_steps == 1_000


def flat(config) -> dict[str, object]:
    return {
        f"{section}.{key}": value
        for section, content in config.model_dump().items()
        if isinstance(content, dict)
        for key, value in content.items()
    }


@pytest.mark.parametrize(
    ("name", "preset", "end", "changed"),
    [
        (
            "dueling-per",
            "tutorial-state",
            200_000,
            {"plain": "", "dueling": "d", "prioritized": "p", "both": "dp"},
        ),
        ("dueling-per-pixels", "cartpole-pixels", 20_000, {"plain": "", "both": "dp"}),
    ],
)
def test_exercise_2_changes_the_network_the_sampling_or_both(name, preset, end, changed) -> None:
    study = load_study(name, {})
    of_letter = {
        "d": {"network.dueling": True},
        "p": {
            "replay.sampling": "prioritized",
            "replay.importance_sampling_end_learner_steps": end,
        },
    }

    plain = flat(study.config("plain"))

    assert study.preset == preset
    assert not plain["network.dueling"]
    assert plain["replay.sampling"] == "uniform"
    assert list(study.arms) == list(changed)
    for arm, letters in changed.items():
        found = flat(study.config(arm))
        differing = {key: found[key] for key in found if found[key] != plain[key]}
        assert differing == {k: v for letter in letters for k, v in of_letter[letter].items()}
    budgets = study.config("plain").run, study.config("plain").learner
    assert end in (
        budgets[0].max_learner_steps,
        (budgets[0].max_episodes or 0) * (budgets[1].updates_per_episode or 0),
    )


def test_changes_replace_a_studys_own_fields() -> None:
    study = load_study("target-network", {"seeds": 5, "preset": "cartpole"})

    assert study.seed_numbers() == [1, 2, 3, 4, 5]
    assert study.config("no target network").learner.batch_size == 64


def test_own_file(tmp_path) -> None:
    file = tmp_path / "batch.yaml"
    file.write_text(
        "title: What a larger batch brings\npreset: cartpole\nseeds: 2\n"
        "overrides: {run.max_env_steps: 100_000}\n"
        "arms:\n  batch 64:\n  batch 128: {learner.batch_size: 128}\n"
    )

    study = load_study(str(file), {})

    assert study.name == "batch"
    assert study.config("batch 64").learner.batch_size == 64
    assert study.config("batch 128").learner.batch_size == 128
    assert study.config("batch 128").run.max_env_steps == 100_000


def test_an_arm_may_start_from_another_preset() -> None:
    study = Study(
        name="s",
        title="t",
        preset="cartpole",
        overrides={"learner.batch_size": 16},
        arms={"a": {}, "b": {"preset": "rainbow", "actors.n_step": 2}},
    )

    assert [study.preset_of(arm) for arm in study.arms] == ["cartpole", "rainbow"]
    assert "preset" not in study.settings("b")
    found = study.config("b")
    assert found.network.noisy
    assert (found.learner.batch_size, found.actors.n_step) == (16, 2)


def test_preset_among_the_overrides_is_every_arms() -> None:
    arms = {"a": {}, "b": {"preset": "rainbow"}}
    study = Study(name="s", title="t", preset="cartpole", overrides={"preset": "apex"}, arms=arms)

    assert [study.config(arm).preset_name for arm in arms] == ["apex", "rainbow"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: cartpole\n", r"arms: Field required"),
        ("preset: cartpole\ntitle: x\narms: {}\n", "arms: .*at least 1"),
        ("preset: cartpole\ntitle: x\nseeds: 0\narms: {a: {}}\n", "seeds: .*got 0"),
        ("preset: cartpole\ntitle: x\narm: {a: {}}\narms: {a: {}}\n", "arm: Extra inputs"),
        (
            "preset: cartpole\ntitle: x\narms: {a: {learner.batch_sise: 3}}\n",
            r"arm 'a' of study s: .*learner\.batch_sise",
        ),
        (
            "preset: cartpole\ntitle: x\narms: {a: {preset: rainbo}}\n",
            r"arm 'a' of study s: .*rainbo",
        ),
        ("just words", "must hold keys and values"),
    ],
)
def test_bad_file_says_what_is_wrong(tmp_path, text, message) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=rf"(?s){message}"):
        load_study(str(file), {})


def test_unknown_study_suggests_one(tmp_path) -> None:
    with pytest.raises(ConfigError, match="did you mean target-network"):
        load_study("target-networks", {})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_study(str(tmp_path / "none.yaml"), {})


def test_text_in_a_language_falls_back_to_english() -> None:
    assert in_language({"en": "a", "ja": "b"}, "ja") == "b"
    assert in_language({"en": "a"}, "ja") == "a"
    assert in_language("c", "ja") == "c"


def test_label_is_the_arms_key_unless_said_otherwise() -> None:
    study = Study(
        name="s", title="t", preset="cartpole", arms={"a": {}, "b": {}}, labels={"b": "B"}
    )

    assert [study.label(arm, "ja") for arm in study.arms] == ["a", "B"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"preset: cartpole\ntitle: {en: what?}\n", "line 2, column"),
        (b"- 1\n", "must hold keys and values"),
        (b"", "must hold a mapping with preset and arms"),
        (b"\xff\xfe", "is no text"),
    ],
)
def test_file_that_cannot_be_read_says_why(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_study(str(file), {})
    assert str(file) in str(caught.value)


def test_numbers_in_a_file_are_read_as_in_a_configuration(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "title: t\nquestion: q\npreset: cartpole\n"
        "arms:\n  a: {learner.learning_rate: 1e-3}\n  b: {}\n"
    )
    study = load_study(str(file), {})
    assert study.config("a").learner.learning_rate == 0.001


def test_what_all_arms_share_may_be_idle_in_one_of_them(tmp_path):
    """Its own settings may not: they would promise a difference that is none."""
    file = tmp_path / "mine.yaml"
    shared = "title: t\nquestion: q\npreset: cartpole\noverrides: {learner.momentum: 0.8}\n"
    file.write_text(f"{shared}arms:\n  sgd: {{}}\n  adam: {{learner.optimizer: adam}}\n")
    assert load_study(str(file), {}).config("adam").learner.momentum == 0.8

    own = "{learner.optimizer: adam, learner.momentum: 0.7}"
    file.write_text(f"{shared}arms:\n  sgd: {{}}\n  adam: {own}\n")
    with pytest.raises(ConfigError, match=r"arm 'adam' .*\n.*learner.momentum = 0.7"):
        load_study(str(file), {})
