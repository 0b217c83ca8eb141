"""The configuration of a run: one frozen pydantic model per section.

The line under a field is its documentation everywhere: `--help-all`, `config show` and
docs/configuration.md are generated from it. Keys named in docs/ are a promise to users.
Cross-field rules are in `config_checks.py`; `plans.py` makes the roles' plans of it, and no role
knows it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from qfleet.common.config import (
    Count,
    CountFromZero,
    EnvConfig,
    Flag,
    LossName,
    NetworkConfig,
    Number,
    Section,
    parse_count,
    parse_list,
    parse_number,
)


def parse_resources(value: object) -> object:
    """Refuse what Ray counts by itself: it has keys of its own."""
    for name in value if isinstance(value, dict) else ():
        if name in ("CPU", "GPU", "memory", "object_store_memory") or ":" in str(name):
            raise ValueError(f"{name} is no custom resource; *.num_cpus and num_gpus set Ray's own")
    return value


AutoCount = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(parse_count)]
AutoGpus = Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], BeforeValidator(parse_count)]
_NUMBER = BeforeValidator(parse_number)
NumberFromZero = Annotated[float, Field(ge=0, allow_inf_nan=False), _NUMBER]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), _NUMBER]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _NUMBER]
AutoFraction = Annotated[
    Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | Literal["auto"], _NUMBER
]
AutoExponent = Annotated[Annotated[float, Field(ge=0, le=2)] | Literal["auto"], _NUMBER]
Resources = Annotated[dict[str, Positive], BeforeValidator(parse_resources)]
PositiveFraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _NUMBER]


class ActorsConfig(Section):
    """Who plays, and how."""

    count: AutoCount = "auto"
    """Actor processes; `auto` takes the CPUs that learner and replay leave free (at least one)."""
    min_count: Count = 1
    """So many must have room to begin and to go on (exit 2), and be left alive (exit 5)."""
    envs_per_actor: AutoCount = "auto"
    """Sub-environments that one actor steps as a vector; `auto` is 16, or 1 per-episode."""
    max_memory_gb: Positive | None = None
    """Async: a larger actor process is replaced, for environments that leak; null: no limit."""
    num_cpus: Positive = 0.5
    """CPUs that Ray reserves for an actor; its BLAS threads are this rounded up."""
    n_step: Count = 1
    """Rewards summed before bootstrapping. 1 is plain Q-learning; 3 is Rainbow's and Ape-X's."""
    discount: PositiveFraction = 0.99
    """γ."""
    max_abs_reward: Positive | None = None
    """Larger rewards are clipped to it, for the learner alone: Atari's 1; null: as they are."""
    reward_scale: Positive = 1.0
    """Rewards are multiplied by this before they are learned from; scores stay as they are."""
    epsilon_schedule: Literal["ladder", "linear", "exponential", "constant"] = "ladder"
    """`ladder`: a constant ε per sub-environment (Ape-X); others follow the fleet's env steps."""
    epsilon_start: Fraction = 1.0
    """ε at env step 0 (linear, exponential)."""
    epsilon_end: Fraction = 0.05
    """ε that the schedule ends at; the value of `constant`."""
    epsilon_decay_env_steps: Count = 10_000
    """Env steps from start to end (linear), or the time constant (exponential)."""
    epsilon_decay_episodes: Count | None = None
    """Linear over so many episodes instead; only with learner.updates_per_episode."""
    epsilon_base: PositiveFraction = 0.4
    """Largest ε of the ladder (Ape-X: 0.4)."""
    epsilon_ladder_exponent: NumberFromZero = 7.0
    """Spread of the ladder: the smallest ε is base^(1 + exponent) (Ape-X: 7)."""
    chunk_transitions: AutoCount = "auto"
    """Transitions per push to the replay server. Fewer: fresher data, more calls."""
    max_chunk_transitions: AutoCount = "auto"
    """Async: a push grows up to this while sending costs over 5 %. `auto`: 8 × an `auto` chunk."""


class ReplayConfig(Section):
    """What is remembered, and how it is drawn."""

    capacity: Count = 50_000
    """Transitions over all shards; the oldest leave first."""
    shards: Count = 1
    """Replay server processes. Actor slot i writes to shard i mod shards; others stay empty."""
    sampling: Literal["uniform", "prioritized", "rank"] = "uniform"
    """`prioritized`: in proportion to |TD error|, `rank`: to 1/rank of it (Schaul et al. 2016)."""
    priority_exponent: AutoExponent = "auto"
    """α: 0 draws uniformly, 1 in full proportion. `auto`, the paper's: 0.6, by rank 0.7."""
    importance_sampling_exponent: AutoFraction = "auto"
    """β at the start; it rises linearly to 1. `auto`, the paper's: 0.4, by rank 0.5."""
    importance_sampling_end_learner_steps: AutoCount | None = "auto"
    """Where β reaches 1; null: it stays as it begins. `auto`: the first start's step budget."""
    priority_epsilon: Positive = 1e-6
    """Added to |TD error| so that nothing becomes undrawable."""
    compression: Literal["none", "zlib"] = "none"
    """Frames: `zlib` keeps each compressed, Atari's in a fifth or less; draws take longer."""
    min_size_to_sample: Count = 1_000
    """Transitions stored before learning starts."""
    samples_per_insert: Positive | None = 16.0
    """Times each transition is drawn on average: both sides wait to keep it. null: free running."""
    limiter_tolerance_samples: AutoCount = "auto"
    """How far the two sides may drift apart, in samples; too small a window would deadlock."""


class LearnerConfig(Section):
    """How the online network is trained."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:N`."""
    batch_size: Count = 64
    """Transitions per update."""
    updates_per_call: AutoCount = "auto"
    """K updates per block; `auto` is the largest, up to 50, that fits the periods."""
    max_blocks_per_request: AutoCount = "auto"
    """Async: a request grows up to this while asking for it costs much. `auto`: 4; K set: 1."""
    updates_per_episode: Count | None = None
    """The course's schedule: after every episode exactly this many updates, then play again."""
    optimizer: Literal["sgd", "adam", "radam"] = "sgd"
    """`sgd` uses momentum."""
    learning_rate: Positive = 1e-3
    """Step size, at the start where there is a schedule."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the step size moves to learning_rate_end over the updates, block by block."""
    learning_rate_end: NumberFromZero = 0.0
    """Step size that a schedule ends at and keeps."""
    learning_rate_end_learner_steps: AutoCount | None = "auto"
    """Updates until then. `auto`: the first start's budget of updates, or of what it pays for."""
    momentum: Annotated[float, Field(ge=0, lt=1), _NUMBER] = 0.9
    """Momentum of sgd."""
    loss: LossName = "huber"
    """`mse` has gradient 2δ, `huber` δ up to ±huber_delta: at equal rate mse steps twice as far."""
    huber_delta: Positive = 1.0
    """Where huber turns from quadratic to linear."""
    double_q: Flag = True
    """Choose the next action with the online network (van Hasselt et al. 2016)."""
    munchausen: Flag = False
    """The policy's own log-probability is added to the reward (Vieillard et al. 2020); n_step 1."""
    target_network: Flag = True
    """false: bootstrap from the online network itself, detached (the course's first exercise)."""
    target_update_period_learner_steps: Count = 200
    """Hard target sync every so many updates. Unused when target_tau is set."""
    target_tau: PositiveFraction | None = None
    """Polyak averaging after every update instead of hard syncs; null: hard syncs."""
    publish_period_learner_steps: Count = 50
    """New parameters go to the actors every so many updates."""
    max_grad_norm: Positive | None = None
    """The gradient's global norm is clipped to this; null: no clipping."""
    compile: Literal["auto", "off", "required"] = "auto"
    """`off`: eager. `required`: CUDA graph or compiled. `auto`: what pays; kept in lockstep."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Frames: of convolutions and hidden layers. `auto` measures at the start which is faster."""
    num_cpus: Count = 1
    """CPUs and torch threads of the learner."""
    num_gpus: AutoGpus = "auto"
    """GPUs of the learner; `auto` is 1 when there is one and the device allows it."""


class EvalConfig(Section):
    """Greedy evaluation while training, and when a run counts as solved."""

    period_learner_steps: Count = 500
    """Updates between evaluations."""
    episodes: Count = 20
    """Episodes per periodic evaluation."""
    confirm_episodes: Count = 100
    """Episodes, on seeds of their own, that confirm a solved run; only these are reported."""
    epsilon: Fraction = 0.0
    """Exploration while evaluating; 0 is greedy."""
    max_episode_steps: AutoCount = "auto"
    """Longer episodes are cut, the actors' too. `auto`: the environment's limit, else 10,000."""
    solved_at_return: Number | Literal["auto"] | None = "auto"
    """Mean return that counts as solved; `auto` is the registered threshold; null: never."""
    stop_when_solved: Flag = True
    """End the run when the confirmation passes."""


class RunConfig(Section):
    """Budgets, files and schedule."""

    dir: str | None = None
    """Run directory; null is `runs/<env>__<preset>__s<seed>__<time>`."""
    max_env_steps: Count | None = None
    """Stop after so many environment steps of the fleet."""
    max_learner_steps: Count | None = None
    """Stop after so many updates."""
    max_episodes: Count | None = None
    """Stop after so many training episodes."""
    max_wall_s: Positive | None = None
    """Stop after so many seconds of training."""
    schedule: Literal["auto", "async", "lockstep"] = "auto"
    """`async`: roles run free (Ray only). `lockstep`: same seed, same bits. `auto`: by runtime."""
    checkpoint_period_s: Positive = 60.0
    """Seconds between checkpoints; one is always written at the end."""
    checkpoint_replay: Literal["full", "none"] = "full"
    """Whether checkpoints hold the replay's contents."""
    keep_checkpoints: Count = 3
    """Newest checkpoints to keep."""
    max_role_restarts: CountFromZero = 3
    """Restarts from the last checkpoint when learner or replay die without progress between."""
    step_timeout_s: Positive = 45.0
    """Ray: a role whose environments take longer over a step or reset hangs and is replaced."""


class RayConfig(Section):
    """The Ray cluster."""

    address: str | None = None
    """null: RAY_ADDRESS or a cluster of our own; `local`: always our own; `auto`: must exist."""
    wait_for_resources_s: NumberFromZero = 60.0
    """How long a cluster may lack room for learner, shards and actors.min_count; 0: no wait."""
    learner_resources: Resources = Field({})
    """Custom resources of Ray that the learner takes, to pin it to hosts: `{gpu_host: 0.01}`."""
    replay_resources: Resources = Field({})
    """The same for each replay shard."""
    actor_resources: Resources = Field({})
    """The same for each actor."""
    ship: Annotated[tuple[str, ...], BeforeValidator(parse_list)] = ()
    """Python files or folders sent to every role, for custom environments and networks."""
    lean: bool | None = None
    """Our own Ray starts sooner, without dashboard and monitors; null: on the command line only."""


class MetricsConfig(Section):
    """What is shown and written while training."""

    console: Literal["auto", "rich", "plain", "json", "none"] = "auto"
    """`auto`: a live table on a terminal, plain lines elsewhere."""
    period_s: Positive = 1.0
    """Seconds between rows of metrics.jsonl and TensorBoard."""


class Config(Section):
    """A whole run."""

    preset_name: Annotated[str, Field(alias="preset")] = "cartpole"
    """The preset that the defaults came from."""
    seed: CountFromZero = 1
    """Root of every random generator of every role."""
    runtime: Literal["ray", "local"] = "ray"
    """`ray`: real processes. `local`: everything in this process, reproducible, without Ray."""
    env: EnvConfig = EnvConfig()
    network: NetworkConfig = NetworkConfig()
    actors: ActorsConfig = ActorsConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()
    ray: RayConfig = RayConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def effective_schedule(self) -> Literal["async", "lockstep"]:
        """The schedule that runs: episode-driven runs and the local runtime are lockstep."""
        if self.learner.updates_per_episode is not None or self.runtime == "local":
            return "lockstep"
        return "async" if self.run.schedule == "auto" else self.run.schedule


def section_names() -> tuple[str, ...]:
    """The names of the nested sections, in order."""
    return tuple(
        name
        for name, info in Config.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
    )
