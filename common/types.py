"""The data that crosses a boundary between rooms.

Read this first: actors make `TransitionChunk`s, the replay server answers `ShardSample`s, the
learner turns those into a `ReplaySample` of K batches, and sends back `PriorityUpdate`s and
`ParamsSnapshot`s. Everything here is NumPy and plain Python; nothing imports torch or Ray.

Shapes: B batch, K batches of a block, E sub-environments, A actions, O an observation's shape.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from qfleet.common.pixels.frame_run import FrameRun
from qfleet.common.pixels.new_frames import NewFrames

Array = NDArray[Any]
Columns = dict[str, Array]

OBSERVATION = "observation"
ACTION = "action"
N_STEP_RETURN = "n_step_return"
BOOTSTRAP_DISCOUNT = "bootstrap_discount"
NEXT_OBSERVATION = "next_observation"


class ColumnSpec(NamedTuple):
    """One column of a transition: its name, NumPy dtype string (`"<f4"`) and shape per row."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """What the other roles must know of an environment, measured once by the driver."""

    env_id: str
    """Gymnasium id, or `module:function` of a factory."""
    observation_shape: tuple[int, ...]
    """O, after our preprocessing (Discrete observations are one-hot encoded)."""
    observation_dtype: str
    """NumPy dtype string of what is stored, e.g. `"<f4"`."""
    n_actions: int
    reward_threshold: float | None
    """The registered threshold that counts as solved; None when the id registers none."""
    max_episode_steps: int | None
    frame_stack: int | None = None
    """K where an observation is K frames, uint8 [K, H, W]; each frame is stored once."""

    @property
    def n_inputs(self) -> int:
        """Length of a flat observation, or the number of stacked frames or planes."""
        return self.observation_shape[0] if self.is_spatial else math.prod(self.observation_shape)

    @property
    def is_spatial(self) -> bool:
        """Whether an observation is [C, H, W]: frames or planes, which convolutions take."""
        return len(self.observation_shape) == 3

    def to_json(self) -> str:
        """As text, for another process or a file's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EnvironmentSpec:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        fields["observation_shape"] = tuple(fields["observation_shape"])
        return cls(**fields)


def transition_columns(spec: EnvironmentSpec) -> tuple[ColumnSpec, ...]:
    """The columns of one stored transition, in wire and storage order."""
    observation = (spec.observation_dtype, spec.observation_shape)
    return (
        ColumnSpec(OBSERVATION, *observation),
        ColumnSpec(ACTION, "<i4", ()),
        ColumnSpec(N_STEP_RETURN, "<f4", ()),
        ColumnSpec(BOOTSTRAP_DISCOUNT, "<f4", ()),
        ColumnSpec(NEXT_OBSERVATION, *observation),
    )


class ChunkId(NamedTuple):
    """Names one chunk for ever: a repeated chunk is accepted once, a zombie's is refused.

    `incarnation` is issued by the supervisor and grows each time a slot is filled anew; `seq`
    starts at 0 in each incarnation.
    """

    run_id: str
    actor_slot: int
    incarnation: int
    seq: int


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """One finished episode as an actor saw it."""

    actor_slot: int
    sub_env: int
    episode_return: float
    """Undiscounted sum of rewards."""
    length_env_steps: int
    epsilon: float
    terminated: bool
    """True when the environment ended it, False when a time limit truncated it."""


@dataclass(frozen=True, slots=True)
class TransitionChunk:
    """Transitions on their way from one actor to one replay shard."""

    chunk_id: ChunkId
    columns: Columns
    """`stored_columns`, each `[rows, ...]`."""
    priorities: Array | None
    """float64 [rows] |TD error| by the actor's own networks; None when sampling is uniform."""
    params_version: int
    """Version of the parameters that acted (the newest one in this chunk)."""
    env_steps: int
    """Environment steps taken since the previous chunk of this incarnation."""
    episodes: tuple[EpisodeSummary, ...] = ()
    """Episodes that ended since the previous chunk."""
    frames: FrameRun | None = None
    """New frames since the previous chunk, where the columns hold frame numbers."""
    target_version: int = 0
    """Version of the target that was held while they were played; 0: none."""
    first_transition: int = 0
    """Number of the first one: an incarnation numbers what it makes from 0 without gaps."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class InsertAck(NamedTuple):
    """A replay shard's answer to one chunk."""

    status: str
    """`accepted`, `duplicate`, `stale_incarnation` or `foreign_run`."""
    hwm: int
    """High-water mark: every seq up to this one of the slot's incarnation was accepted."""
    credits: int
    """How many more transitions the shard takes before the rate limiter blocks."""


class SlotStats(NamedTuple):
    """What a shard knows of one actor slot from its accepted chunks, all incarnations together."""

    slot: int
    incarnation: int
    """The newest one."""
    env_steps: int
    transitions: int
    params_version: int
    """Versions that acted in the newest chunk; 0: none yet, or no target."""
    target_version: int


class ReplayStats(NamedTuple):
    """Counters of one replay shard; counts are transitions since the run began."""

    size: int
    inserted: int
    sampled: int
    evicted: int
    mass: float
    """Sum of sampling weights; equals `size` when sampling is uniform."""
    duplicate_chunks: int
    rejected_transitions: int
    dropped_priority_updates: int
    gap_chunks: int
    """Numbers that were skipped, in chunks: those were lost on the way."""
    env_steps: int = 0
    """Environment steps behind the accepted chunks."""
    episodes: int = 0
    """Episodes that ended in the accepted chunks."""


@dataclass(frozen=True, slots=True)
class ShardSample:
    """n independent draws (with replacement) from one shard."""

    shard: int
    columns: Columns
    """`transition_columns`, each `[n, ...]`."""
    item_keys: Array
    """int64 [n] insertion numbers: slot `key % capacity`, generation `key // capacity`."""
    probabilities: Array
    """float64 [n] probability of each draw within this shard."""
    stats: ReplayStats
    """The shard's counters just after this draw."""
    mean_age_s: float
    """Mean time since insertion of the drawn items, in seconds."""
    held_s: float = 0.0
    """How long the rate limiter had held the request back, in seconds."""
    new_frames: NewFrames | None = None
    """When given, stacks are places int32 [n, S] of frames that the reader keeps, these added."""


@dataclass(frozen=True, slots=True)
class ReplaySample:
    """K batches for one block of K updates.

    `columns` are `[K, B, ...]`; `item_keys` int64 [K, B]; `shards` int32 [K, B]; `is_weights`
    float32 [K, B] importance-sampling weights, each batch divided by its maximum.
    """

    columns: Columns
    item_keys: Array
    shards: Array
    is_weights: Array
    noise: Array | None = None
    """float32 [K, 3, N], added by the learner for a network that takes random numbers."""
    new_frames: dict[int, NewFrames] | None = None
    """By shard; when given, stacks are places int32 [K, B, S] at their shards."""

    @property
    def n_batches(self) -> int:
        """K."""
        return int(self.item_keys.shape[0])


@dataclass(frozen=True, slots=True)
class PriorityUpdate:
    """New |TD errors| for sampled items, by item key; keys since overwritten are dropped."""

    item_keys: Array
    """int64 [n]."""
    td_errors_abs: Array
    """float64 [n]; when a key occurs twice, the later entry wins."""


@dataclass(frozen=True, slots=True)
class ParamsSnapshot:
    """The online network at one learner step: parameters AND buffers (BatchNorm's statistics).

    Every hard target sync publishes one with `is_target_sync` set: receivers that need the target
    network take this very snapshot as their target, so a sync costs no second transfer.
    """

    version: int
    learner_step: int
    env_steps: int
    """Env steps of the whole fleet that the learner knew of: actors run their ε schedule on it."""
    is_target_sync: bool
    arrays: dict[str, Array]
    """PyTorch module names to arrays."""


class ParamsOffer(NamedTuple):
    """What to act with: announced by the learner, handed on with a shard's acknowledgements.

    Versions count from 1; 0: none yet, or no target. A payload is a snapshot's message
    (`messages.encode_snapshot`) or, when that is large, a list of one reference to it. It is None
    where the receiver holds that version, and `target` also where the latest is the target.
    """

    version: int = 0
    target_version: int = 0
    latest: Any = None
    target: Any = None

    def beyond(self, version: int, target_version: int) -> ParamsOffer:
        """The same for a receiver that holds these versions."""
        return ParamsOffer(
            self.version,
            self.target_version,
            self.latest if version < self.version else None,
            self.target if target_version < self.target_version else None,
        )


class TargetSyncEvent(NamedTuple):
    """`target := version`, as the learner did it or as a receiver took it."""

    learner_step: int
    version: int


@dataclass(slots=True)
class Capture:
    """The state of one core, ready to be written: JSON-able `meta` and named `arrays`.

    Every core has `capture() -> Capture` and `restore(Capture)`; a round trip is exact.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    arrays: Columns = field(default_factory=dict)
