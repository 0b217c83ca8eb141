"""What an environment and a network are: the values that the configuration and every role share.

The rest of the configuration is the door's (`settings/config.py`); the roles get plans made of it.
The line under a field is its documentation everywhere, as there.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_MULTIPLIERS = {"k": 10**3, "m": 10**6, "g": 10**9}
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def parse_count(value: object) -> object:
    """Accept `1e6`, `1_000_000`, `2M` and whole floats where a whole number is wanted."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true or false")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    text = value.strip().replace("_", "").lower()
    factor = _MULTIPLIERS.get(text[-1:], 1)
    try:
        number = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        return value
    return int(number) if number.is_integer() else value


def parse_list(value: object) -> object:
    """Accept `128,64` and a single value where a list is wanted."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, int | float):
        return [value]
    return value


def parse_factory(value: object) -> object:
    """Accept an importable function and write it as `module:function`."""
    if callable(value):
        module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
        text = f"{module}:{name}"
        if module == "__main__" or not _FACTORY.fullmatch(text):
            raise ValueError(
                "must be importable by the other processes: move the function to the top level "
                "of a module of its own"
            )
        return text
    if isinstance(value, str) and not _FACTORY.fullmatch(value):
        raise ValueError("must be written module:function")
    return value


def parse_flag(value: object) -> object:
    """Accept `true` and `false` in any case where a flag is wanted, and nothing else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError("must be true or false")


def parse_number(value: object) -> object:
    """Refuse true and false where a number is wanted; pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Count = Annotated[int, Field(ge=1), BeforeValidator(parse_count)]
CountFromZero = Annotated[int, Field(ge=0), BeforeValidator(parse_count)]
Flag = Annotated[bool, BeforeValidator(parse_flag)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(parse_number)]
LossName = Literal["mse", "huber"]
"""Each is a file of `learner/losses/`."""
FrameRows = Annotated[
    Annotated[tuple[CountFromZero, ...], Field(min_length=2, max_length=2)] | None,
    BeforeValidator(parse_list),
]
Factory = Annotated[str, BeforeValidator(parse_factory)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys are errors, defaults are validated too."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class EnvConfig(Section):
    """The environment that is played."""

    id: str = "CartPole-v1"
    """Gymnasium id with a discrete action space; `module:Id` imports `module` first."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments for `gymnasium.make` or for the factory."""
    factory: Factory | None = None
    """Instead of the id: `module:function`, called as `function(**kwargs, render_mode=None)`."""
    observation: Literal["state", "pixels", "planes"] = "state"
    """`pixels`: gray frames of its images or of what it renders; `planes`: a grid [H, W, C]."""
    frame_stack: Count = 4
    """Pixels: newest frames that an observation stacks, never across an episode's start."""
    frame_size: Count = 84
    """Pixels: width and height of a frame, which is averaged over each pixel's area."""
    episodic_life: Flag = False
    """Atari: a lost life ends an episode for the learner; scores are of whole games."""
    frame_rows: FrameRows = None
    """Pixels: `first,end`: only these rows of a frame (without `end`); null: all of them."""
    frame_inverted: Flag = False
    """Pixels: 255 minus each pixel, so that a white background becomes 0; networks learn sooner."""
    renderer: Literal["fast", "gymnasium"] = "gymnasium"
    """Pixels: `gymnasium` shrinks what `render()` draws; `fast` (CartPole) draws that directly."""

    @property
    def kept_rows(self) -> slice:
        """The rows of a frame that are observed."""
        return slice(*(self.frame_rows or (0, self.frame_size)))

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Height and width of an observed frame."""
        return self.kept_rows.stop - self.kept_rows.start, self.frame_size


class NetworkConfig(Section):
    """The Q-network."""

    kind: Literal["mlp", "convnet", "nature", "small", "tiny", "minatar"] = "mlp"
    """`mlp` takes states, `minatar` planes, the others pixels; the course's is `convnet`."""
    hidden_sizes: Annotated[tuple[Count, ...], BeforeValidator(parse_list)] = (128, 64)
    """Units of each hidden linear layer; after the convolutions, where there are some."""
    normalization: Literal["batch", "layer", "none"] = "none"
    """After each hidden layer and convolution; `batch` is the course's."""
    dueling: Flag = False
    """Value and advantages in streams of their own, each with the last hidden layer (Wang 2016)."""
    noisy: Flag = False
    """Learned noise on the linear layers explores; ε is then 0 (Fortunato et al. 2018)."""
    distribution: Literal["none", "c51", "qr", "iqn"] = "none"
    """Of the return: `c51` probabilities, `qr` quantiles, `iqn` a quantile function. `none`: Q."""
    atoms: Count | None = None
    """Numbers per action: c51 51, qr 32 (paper: 200), iqn 8 fractions drawn (64) where null."""
    value_min: Number | None = None
    """Smallest discounted return of c51's atoms. The paper: −10, with rewards cut to ±1."""
    value_max: Number | None = None
    """Largest one. What lies outside counts as the nearest atom."""
    factory: Factory | None = None
    """`module:function`, called as `function(n_inputs, n_actions, **kwargs) -> nn.Module`."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments for the factory."""

    @property
    def n_atoms(self) -> int:
        """`atoms`, or what the distribution has without."""
        return self.atoms or {"none": 1, "c51": 51, "qr": 32, "iqn": 8}[self.distribution]

    @property
    def is_convolutional(self) -> bool:
        """Whether it is a built-in network of convolutions."""
        return self.factory is None and self.kind != "mlp"

    @property
    def is_compiled_on_cpu(self) -> bool:
        """Whether a compiled block pays on a CPU: where single operations take no time."""
        return not self.is_convolutional or self.kind == "minatar"
