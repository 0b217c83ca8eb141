"""YAML text as a list of settings, each with its key path and the line it stands on.

Called for presets, `--config` files and the values of flags. YAML 1.1 surprises are off: `off`,
`no` and dates stay text, `1e-3` is a number. Every mistake in a text becomes a `Problem`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from qfleet.common.errors import ConfigError
from qfleet.settings.problems import Problem

MAX_DEPTH = 100
MAX_VALUES = 100_000

_RESOLVERS: tuple[tuple[str, str, str], ...] = (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("null", r"(?:null|Null|NULL|~|)", "nN~\0"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+0123456789.",
    ),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which the loader above would read as a number."""


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^(?:{_pattern})$"),
            ["" if letter == "\0" else letter for letter in _first],
        )
# Base 10 only: YAML 1.1 reads 010 as eight.
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(str(node.value).replace("_", ""))
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value on its way into the configuration."""

    path: tuple[str, ...]
    value: object
    origin: str
    """What the user would look for: `run.yaml:3`, `--learner.batch_size`, `preset cartpole`."""
    text: str | None = None
    """A single value as typed, so that a directory named 2024 can stay text."""

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.path)


def parse_value(text: str) -> object:
    """One value in YAML; text that is no YAML, or too much of it, stays text."""
    try:
        root = yaml.compose(text, Loader=_Loader)
        return text if root is not None and _excess(root) else yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def load_plain(text: str, name: str) -> dict[str, Any]:
    """A whole file of keys and values; none when it is empty.

    Raises:
        ConfigError: when it is not YAML, or more than a configuration can be.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        excess = None if root is None else _excess(root)
        content = {} if root is None or excess else yaml.load(text, Loader=_Loader)
    except RecursionError:
        excess = f"is nested more than {MAX_DEPTH} deep"
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read as YAML: {error}") from error
    if excess is None and not isinstance(content, dict):
        excess = "must hold keys and values, such as `seed: 1`"
    if excess is not None:
        raise ConfigError(f"{name} {excess}")
    return dict(content)


def _excess(root: yaml.Node) -> str | None:
    """What makes it more than a configuration can be: aliases count as often as they stand."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if depth > MAX_DEPTH:  # also of a node that holds itself
            raise RecursionError
        if id(node) not in sizes:
            pairs = isinstance(node, yaml.MappingNode)
            parts = [part for pair in node.value for part in pair] if pairs else node.value
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
        return sizes[id(node)]

    try:
        n_values = size(root, 0)
    except RecursionError:
        return f"is nested more than {MAX_DEPTH} deep"
    return f"stands for more than {MAX_VALUES:,} values" if n_values > MAX_VALUES else None


def dump(content: Mapping[str, object]) -> str:
    """Write a nested mapping so that `read_settings` reads the same; keys keep their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_settings(
    text: str, name: str, sections: tuple[str, ...], *, lines: bool = True
) -> tuple[list[Setting], list[Problem]]:
    """Read one file's text.

    Args:
        text: YAML; keys may be nested (`learner: {batch_size: 32}`) or dotted.
        name: The file, as messages call it.
        sections: Keys whose mappings are descended into; other mappings are values.
        lines: Whether origins carry the line number.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        return [], [Problem("--config", name, f"is nested more than {MAX_DEPTH} deep")]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        return [], [Problem("--config", name, f"is not YAML:{line} {reason}")]
    if root is None:
        return [], []
    if excess := _excess(root):
        return [], [Problem("--config", name, excess)]
    if not isinstance(root, yaml.MappingNode):
        return [], [Problem("--config", name, "must hold keys and values, such as `seed: 1`")]
    return _collect(list(_leaves(root, (), sections)), name, lines)


def _collect(
    leaves: list[tuple[tuple[str, ...], yaml.Node]], name: str, lines: bool
) -> tuple[list[Setting], list[Problem]]:
    settings: list[Setting] = []
    problems: list[Problem] = []
    seen: set[tuple[str, ...]] = set()
    for path, node in leaves:
        origin = f"{name}:{node.start_mark.line + 1}" if lines else name
        try:
            value = _construct(node)
        except (yaml.YAMLError, ValueError):
            problems.append(Problem(".".join(path), "?", "is not a plain value", origin=origin))
            continue
        if path in seen:
            problems.append(
                Problem(".".join(path), value, "is set twice in this file", "keep one", origin)
            )
        seen.add(path)
        text = str(node.value) if isinstance(node, yaml.ScalarNode) else None
        settings.append(Setting(path, value, origin, text))
    return settings, problems


def _construct(node: yaml.Node) -> object:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _leaves(
    node: yaml.MappingNode, prefix: tuple[str, ...], sections: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    for key_node, value_node in node.value:
        path = (*prefix, *str(key_node.value).split("."))
        is_section = path[-1] in sections and len(path) == 1
        if is_section and isinstance(value_node, yaml.MappingNode):
            yield from _leaves(value_node, path, sections)
        elif not (is_section and _is_empty(value_node)):
            yield path, value_node


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
