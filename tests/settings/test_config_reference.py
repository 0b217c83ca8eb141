"""The generated descriptions of keys, and the committed page."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.settings import config_reference
from qfleet.settings.config_loading import load_config
from qfleet.settings.yaml_settings import parse_value

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_committed_page_is_what_the_models_say():
    assert PAGE.read_text(encoding="utf-8") == config_reference.markdown(), (
        "run: qfleet config reference > docs/configuration.md"
    )


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seed", "whole number ≥ 0"),
        ("runtime", "one of ray, local"),
        ("env.kwargs", "mapping"),
        ("env.factory", "module:function or null"),
        ("network.hidden_sizes", "list of whole numbers ≥ 1"),
        ("actors.count", "whole number ≥ 1 or auto"),
        ("actors.discount", "number > 0 and ≤ 1"),
        ("actors.epsilon_end", "number from 0 to 1"),
        ("replay.samples_per_insert", "number > 0 or null"),
        ("learner.device", "auto, cpu, cuda or cuda:N"),
        ("learner.double_q", "true or false"),
        ("learner.momentum", "number ≥ 0 and < 1"),
        ("learner.compile", "one of auto, off, required"),
        ("eval.solved_at_return", "number or auto or null"),
        ("run.dir", "text or null"),
        ("ray.ship", "list of text"),
    ],
)
def test_accepted_values_in_words(key, values):
    assert config_reference.keys()[key].values == values


def test_every_key_is_in_the_page_and_in_help_all():
    page, help_all = config_reference.markdown(), config_reference.help_all()

    assert len(config_reference.keys()) > 60
    for key, doc in config_reference.keys().items():
        assert f"| `{key}` |" in page
        assert f"  --{key} " in help_all
        assert doc.meaning.replace("|", "\\|") in page


def test_help_all_fits_the_terminal():
    assert max(map(len, config_reference.help_all().splitlines())) <= 100


def test_annotated_yaml_explains_each_key_and_loads_again(tmp_path):
    config = load_config("lunarlander", overrides={"env.kwargs": {"gravity": -9.0, "wind": "off"}})
    text = config_reference.annotated_yaml(config)
    path = tmp_path / "run.yaml"
    path.write_text(text)

    assert load_config(files=[path]) == config
    assert parse_value(text) == config_reference.plain_content(config)
    assert "  # Transitions per update. [whole number ≥ 1]\n  batch_size: 128\n" in text


def test_json_schema_names_the_preset_and_its_ranges():
    schema = config_reference.json_schema()

    assert "preset" in schema["properties"]
    assert schema["$defs"]["LearnerConfig"]["properties"]["batch_size"]["minimum"] == 1
    assert schema["additionalProperties"] is False
