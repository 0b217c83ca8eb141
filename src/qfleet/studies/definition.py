"""What a study compares: a preset, arms that change something in it, and seeds.

A study is a YAML file; those that ship with qfleet are in definitions/. Everything is checked
before the first run starts.

    title: What a larger batch brings
    preset: cartpole
    seeds: 3
    overrides: {run.max_env_steps: 100_000}
    arms:
      batch 64: {}
      batch 128: {learner.batch_size: 128}
      rainbow: {preset: rainbow}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qfleet.command_line.foreign_names import did_you_mean
from qfleet.common.errors import ConfigError
from qfleet.settings.config_loading import Config, load_config
from qfleet.settings.yaml_settings import Setting, load_plain

_FOLDER = Path(__file__).parent / "definitions"
IN_EVERY_ARM: dict[str, object] = {
    "runtime": "local",
    "eval.stop_when_solved": False,
    "metrics.console": "plain",
}
"""Arms are compared at equal work, in runs that are reproducible."""

Text = str | dict[str, str]
"""The same words in each language (`en`, `ja`), or one text for all."""


class Study(BaseModel):
    """One question, its arms and its seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: Text
    question: Text = ""
    preset: str
    seeds: int = Field(default=3, ge=1)
    first_seed: int = Field(default=1, ge=0)
    overrides: dict[str, Any] = {}
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    labels: dict[str, Text] = {}
    """How a report names an arm; by default by its key."""

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_arm_changes_nothing(cls, arms: object) -> object:
        if not isinstance(arms, dict):
            return arms
        return {str(name): {} if changes is None else changes for name, changes in arms.items()}

    def seed_numbers(self) -> list[int]:
        """The seeds of every arm: the same ones."""
        return list(range(self.first_seed, self.first_seed + self.seeds))

    def preset_of(self, arm: str) -> str:
        """What an arm starts from: the study's preset, unless it or `overrides` names another."""
        return str({**self.overrides, **self.arms[arm]}.get("preset", self.preset))

    def settings(self, arm: str) -> dict[str, Any]:
        """What an arm changes in its preset, by dotted key."""
        settings = {**IN_EVERY_ARM, **self.overrides, **self.arms[arm]}
        settings.pop("preset", None)
        return settings

    def config(self, arm: str) -> Config:
        """The whole configuration of an arm.

        Raises:
            ConfigError: naming the arm, with everything that is wrong in it.
        """
        try:
            own = self.arms[arm]
            given = [
                Setting(tuple(key.split(".")), value, "argument" if key in own else "study")
                for key, value in self.settings(arm).items()
            ]
            return load_config(self.preset_of(arm), overrides=given)
        except ConfigError as error:
            raise ConfigError(f"arm '{arm}' of study {self.name}: {error}") from error

    def label(self, arm: str, language: str) -> str:
        """The arm's name in a report."""
        return in_language(self.labels.get(arm, arm), language)


def in_language(text: Text, language: str) -> str:
    """The text in that language, else in English."""
    if isinstance(text, str):
        return text
    return text.get(language) or text["en"]


def shipped() -> tuple[str, ...]:
    """Names of the studies that come with qfleet."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_study(name_or_file: str, changes: dict[str, Any]) -> Study:
    """The study of that name or in that file, with `changes` to its own fields.

    Raises:
        ConfigError: when there is none, or it is not one, or an arm is no configuration.
    """
    file = Path(name_or_file)
    is_file = file.suffix in (".yaml", ".yml")
    if not is_file and name_or_file not in shipped():
        hint = did_you_mean(name_or_file, shipped())
        raise ConfigError(
            f"there is no study {name_or_file}{hint}; there are {', '.join(shipped())}, or name a "
            "YAML file of your own"
        )
    path = file if is_file else _FOLDER / f"{name_or_file}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the study {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the study {path} is no text: {error}") from error
    content = load_plain(text, f"the study {path}")
    if not content:
        raise ConfigError(f"{path} is no study: it must hold a mapping with preset and arms")
    try:
        study = Study.model_validate({"name": path.stem, **content, **changes})
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, one['loc']))}: {one['msg']}, got {one['input']!r}"
            for one in error.errors()
        ]
        raise ConfigError("\n".join([f"{path} is no study:", *lines])) from error
    for arm in study.arms:
        study.config(arm)
    return study
