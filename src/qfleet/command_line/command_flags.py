"""The flags of every command but `train`; argparse says what is wrong and exits 2.

Called by `cli.py`.
"""

from __future__ import annotations

import argparse

LATEST_RUN = "runs/latest"


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of that command."""
    parser = argparse.ArgumentParser(prog=f"qfleet {command}", allow_abbrev=False)
    if command in ("eval", "play", "status"):
        parser.add_argument(
            "run", nargs="?", default=LATEST_RUN, metavar="RUN", help=f"default: {LATEST_RUN}"
        )
    if command == "scale":
        parser.add_argument("run", metavar="RUN")
        parser.add_argument("--actors", type=_count, required=True, metavar="N")
    if command == "bench":
        parser.add_argument("name", metavar="NAME", help="what to time")
    if command in ("study", "report"):
        _add_comparison_flags(parser, command)
    if command in ("eval", "play"):
        episodes = 100 if command == "eval" else 1
        parser.add_argument(
            "--episodes", type=_count, default=episodes, metavar="N", help=f"default: {episodes}"
        )
        parser.add_argument("--seed", type=_seed, default=None, metavar="S", help="first seed")
        parser.add_argument(
            "--allow-code",
            action="store_true",
            help="the run may name code that is not installed (SECURITY.md)",
        )
    if command == "play":
        parser.add_argument(
            "--video", default=None, metavar="FILE", help=".mp4, .webm, .gif or .webp"
        )
    if command in ("eval", "status", "bench", "doctor"):
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_comparison_flags(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("--language", default="en", metavar="en|ja", help="of the report")
    if command == "report":
        parser.add_argument("runs", nargs="+", metavar="RUN")
        parser.add_argument("-o", "--output", metavar="FILE", help=".html, .csv or .json")
        return
    parser.add_argument("name", metavar="NAME|FILE", help="a study, or a YAML file of your own")
    parser.add_argument("--seeds", type=_count, metavar="N", help="per arm; default: the study's")
    parser.add_argument("--preset", metavar="PRESET", help="another base than the study's")
    parser.add_argument("--jobs", type=_count, metavar="N", help="runs at a time; default: by CPUs")
    parser.add_argument("--out", metavar="DIR", help="default: runs/study-NAME")


def _count(text: str) -> int:
    return _whole_number(text, 1)


def _seed(text: str) -> int:
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    from qfleet.common.config import parse_count

    number = parse_count(text)
    if not isinstance(number, int) or number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number ≥ {least}, got {text}")
    return number
