"""Prints what qfleet needs to run and to be built, as pip reads it: the image's first layer."""

import tomllib
from pathlib import Path

described = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
print(*described["project"]["dependencies"], *described["build-system"]["requires"], sep="\n")
