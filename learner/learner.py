"""The learner's core: owns the networks, runs blocks of updates, says when targets were synced.

Driven by hand in tests, by the round loop in the local runtime and by the Ray shell. No Ray, no
threads, no clock; what computes is a `LearnerBackend`. Source: Mnih et al. 2013 and 2015 (DQN).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qfleet.common.errors import CheckpointError, InvariantError, NonFiniteError
from qfleet.common.params import params_sha256
from qfleet.common.reports import LearnerStats
from qfleet.common.types import (
    Array,
    Capture,
    EnvironmentSpec,
    ParamsSnapshot,
    ReplaySample,
    TargetSyncEvent,
)
from qfleet.learner.backend import GROUPS, Groups, LearnerPath
from qfleet.learner.block_statistics import BlockStatistics
from qfleet.learner.fast.backends import cached_backend, starting_backend
from qfleet.learner.noise import NoiseSource
from qfleet.learner.plan import LearnerPlan


class Learner:
    """Online and target network, optimizer and counters of one run.

    Invariants: hard syncs happen only after `updates_per_call` updates; right after one, online
    and target are equal bit for bit, buffers included; versions grow by one per snapshot.
    Owned by one thread.
    """

    def __init__(self, plan: LearnerPlan, spec: EnvironmentSpec, device: str = "cpu") -> None:
        self._plan, self._spec = plan, spec
        self._backend = starting_backend(plan, spec, device)
        self._noise = NoiseSource(plan, spec)
        self.learner_steps = 0
        self.target_syncs: list[TargetSyncEvent] = []
        """Every hard sync of this run so far."""
        self.fleet_env_steps = 0
        """Env steps of the fleet, told by whoever sees the replay's counters."""
        self._version = 0
        self._published_at_learner_step = -1
        self._outbox: list[ParamsSnapshot] = []
        self._statistics = BlockStatistics()
        self._has_diverged = False
        if self._plan.has_hard_syncs:
            self._sync_target()
        else:
            self.publish()

    def take_package(self) -> bool:
        """Go on with the compiled block when the cache holds one; call between two blocks.

        Returns whether the path is compiled now.
        """
        package = cached_backend(self._plan, self._spec)
        if package is None:
            return False
        package.load(self._backend.groups())
        self._backend = package
        return True

    @property
    def path(self) -> LearnerPath:
        """How blocks are computed; changes between two blocks only."""
        return self._backend.path

    def update_block(self, sample: ReplaySample) -> Array:
        """K updates; returns |TD errors| `float64 [K, B]` for the priorities.

        A hard target sync that falls due is done at the end and queued as a snapshot.

        Raises:
            NonFiniteError: when a TD error, a loss or the gradient is NaN or infinite; the learner
                is then as before the block.
        """
        first_step = self.learner_steps + 1
        if self._plan.learning_rate_schedule != "constant":
            self._backend.set_learning_rate(self._plan.learning_rate_at(self.learner_steps))
        measured = self._backend.run(self._noise.add_to(sample))
        if not all(
            np.isfinite(values).all()
            for values in (measured.td_errors_abs, measured.losses, measured.grad_norms)
        ):
            self._has_diverged = True
            with np.errstate(over="ignore", invalid="ignore"):
                self._statistics.remember(first_step + sample.n_batches - 1, measured)
            raise NonFiniteError(
                f"training diverged: a TD error, loss or gradient is not finite in updates "
                f"{first_step}…{first_step + sample.n_batches - 1}; try "
                f"{'learner.loss huber, ' if self._plan.loss == 'mse' else ''}"
                "a smaller learner.learning_rate or learner.max_grad_norm"
            )
        self._backend.accept()
        self.learner_steps += sample.n_batches
        self._statistics.add(self.learner_steps, measured)
        self._sync_if_due()
        return measured.td_errors_abs

    def _sync_if_due(self) -> None:
        period = self._plan.target_update_period_learner_steps
        if self._plan.has_hard_syncs and self.learner_steps % period == 0:
            self._sync_target()

    def _sync_target(self) -> None:
        """Copy online to target, parameters and buffers, and publish it as the new target."""
        self._backend.sync_target()
        self.publish(is_target_sync=True)
        self.target_syncs.append(TargetSyncEvent(self.learner_steps, self._version))

    def publish(self, *, is_target_sync: bool = False) -> ParamsSnapshot:
        """Queue the online network, buffers included, under a new version."""
        self._version += 1
        snapshot = ParamsSnapshot(
            self._version, self.learner_steps, self.fleet_env_steps, is_target_sync, self.params()
        )
        self._published_at_learner_step = self.learner_steps
        self._outbox.append(snapshot)
        return snapshot

    def take_snapshots(self) -> list[ParamsSnapshot]:
        """The snapshots published since the last call, oldest first."""
        taken, self._outbox = self._outbox, []
        return taken

    @property
    def has_snapshots(self) -> bool:
        """Whether `take_snapshots` would give any."""
        return bool(self._outbox)

    @property
    def publish_due(self) -> bool:
        """Whether the publish period ends at this step and this step was not published yet."""
        on_period = self.learner_steps % self._plan.publish_period_learner_steps == 0
        return on_period and not self.is_published

    @property
    def params_version(self) -> int:
        """The newest version that was published."""
        return self._version

    @property
    def is_published(self) -> bool:
        """Whether the newest version holds exactly the current parameters."""
        return self._published_at_learner_step == self.learner_steps

    def params(self) -> dict[str, Array]:
        """The online network's parameters and buffers as arrays."""
        return self._backend.online()

    def target_params(self) -> dict[str, Array]:
        """The target network's parameters and buffers; empty without a target network."""
        return self._backend.target()

    def params_sha256(self) -> str:
        """Fingerprint of the online network."""
        return params_sha256(self.params())

    def stats(self) -> LearnerStats:
        """Counters, and means since the previous call (the last ones when nothing was learned)."""
        return self._statistics.report(
            self.learner_steps,
            self._version,
            len(self.target_syncs),
            has_diverged=self._has_diverged,
        )

    def capture(self) -> Capture:
        """Networks, optimizer, counters and the log of target syncs."""
        arrays = _flat(self._backend.groups())
        meta = {
            "path": self.path,
            "learner_steps": self.learner_steps,
            "version": self._version,
            "fleet_env_steps": self.fleet_env_steps,
            "target_syncs": [list(event) for event in self.target_syncs],
            "published_at_learner_step": self._published_at_learner_step,
            "noise": self._noise.capture(),
            **self._statistics.capture(),
        }
        return Capture(meta, arrays)

    def restore(self, capture: Capture) -> None:
        """Continue from a capture; the latest parameters and the target are queued for receivers.

        Raises:
            CheckpointError: when names, shapes or dtypes are not this network's, listing them.
        """
        wanted = _flat(self._backend.groups())
        differing = sorted(
            name
            for name in wanted.keys() | capture.arrays.keys()
            if name not in wanted
            or name not in capture.arrays
            or wanted[name].shape != capture.arrays[name].shape
            or wanted[name].dtype != capture.arrays[name].dtype
        )
        if differing:
            raise CheckpointError(f"the checkpoint's network differs in {', '.join(differing)}")
        self._backend.load(_grouped(capture.arrays))
        self.learner_steps = capture.meta["learner_steps"]
        self._version = capture.meta["version"]
        self.fleet_env_steps = capture.meta["fleet_env_steps"]
        self.target_syncs = [TargetSyncEvent(*event) for event in capture.meta["target_syncs"]]
        self._published_at_learner_step = capture.meta["published_at_learner_step"]
        self._statistics.restore(capture.meta)
        if "noise" in capture.meta:  # a checkpoint of an earlier release has none, nor needs it
            self._noise.restore(capture.meta["noise"])
        self._outbox = self.current_snapshots()

    def keep_versions_above(self, version: int) -> None:
        """Number the next snapshot above `version`; a learner rolled back must not repeat one."""
        if version > self._version:
            self._version = version
            self._published_at_learner_step = -1

    def init_params(self, arrays: dict[str, Array]) -> None:
        """Begin with the parameters and buffers of another run; the target follows, as at a sync.

        Raises:
            CheckpointError: when names or shapes are not this network's, listing them.
        """
        groups = self._backend.groups()
        wanted = groups["online"]
        differing = sorted(
            name
            for name in wanted.keys() | arrays.keys()
            if name not in wanted or name not in arrays or wanted[name].shape != arrays[name].shape
        )
        if differing:
            raise CheckpointError(f"the other run's network differs in {', '.join(differing)}")
        groups["online"] = {
            name: np.asarray(arrays[name], old.dtype) for name, old in wanted.items()
        }
        self._backend.load(groups)
        self._outbox, self.target_syncs = [], []
        if self._plan.has_hard_syncs:
            self._sync_target()
            return
        if self._plan.target_network:  # averaged: the target begins at the online network
            self._backend.sync_target()
        self.publish()

    def current_snapshots(self) -> list[ParamsSnapshot]:
        """What a new receiver needs: the target's snapshot and, when it is newer, the latest.

        Between two publications the latest carries the newest version's number, but the
        parameters of now. With Polyak averaging or without a target network there is no target to
        send.
        """
        if not self._plan.has_hard_syncs:
            return [self.latest_snapshot()]
        sync = self.target_syncs[-1]
        target = ParamsSnapshot(
            sync.version, sync.learner_step, self.fleet_env_steps, True, self.target_params()
        )
        is_latest = sync.version == self._version and self.is_published
        return [target] if is_latest else [target, self.latest_snapshot()]

    def latest_snapshot(self) -> ParamsSnapshot:
        """The parameters of now under the newest version's number."""
        return ParamsSnapshot(
            self._version, self.learner_steps, self.fleet_env_steps, False, self.params()
        )

    def check_valid(self) -> None:
        """Raise `InvariantError` unless the state is one that updates can lead to."""
        online = self.params()
        if self._plan.target_network and list(online) != list(self.target_params()):
            raise InvariantError("online and target network have different parameters")
        if any(not np.isfinite(array).all() for array in online.values()):
            raise InvariantError("a parameter is not finite")
        versions = [event.version for event in self.target_syncs]
        if versions != sorted(set(versions)) or (versions and versions[-1] > self._version):
            raise InvariantError(f"target-sync versions {versions} do not grow to {self._version}")


def _flat(groups: Groups) -> dict[str, Array]:
    """As a capture holds them, under `group/name`."""
    return {f"{group}/{name}": array for group in GROUPS for name, array in groups[group].items()}


def _grouped(arrays: Mapping[str, Array]) -> Groups:
    """The inverse of `_flat`."""
    groups: Groups = {group: {} for group in GROUPS}
    for key, array in arrays.items():
        group, _, name = key.partition("/")
        groups[group][name] = array
    return groups
