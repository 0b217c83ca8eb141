"""Blocks from all replay shards at once, for the asynchronous learner, and priorities back to them.

Called by the learner's Ray shell. Twin of `block_runner.LockstepFeed`: the same two methods, but
requests are in flight while the learner trains, and a call that is lost is made again.

What the feed owns of a shard is its handle, newest counters and open questions; nothing of it is in
a checkpoint. A shard that dies is left out until `replace_shard` brings a new handle, and one that
no actor writes to while it is said to rest: the others are drawn from meanwhile.
"""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from typing import Any

import ray

from qfleet.common.adaptive_size import AdaptiveSize
from qfleet.common.errors import WaitTimeoutError
from qfleet.common.messages import encode_priority_update
from qfleet.common.stage_clock import COPYING, WAIT, StageClock
from qfleet.common.types import Array, EnvironmentSpec, ReplaySample, ReplayStats, ShardSample
from qfleet.learner.block_runner import BlockPlanner
from qfleet.learner.learner import Learner
from qfleet.learner.plan import REQUESTS_IN_FLIGHT
from qfleet.learner.remote_line import Draws, ShardLine
from qfleet.learner.sampling import slices

ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.1
LEAST_WAIT_S = 0.001
NOTHING_THERE_S = 0.01
"""Pause before shards are asked again whether anything is stored."""
ASKING_TO_GROW = 0.05
"""A learner that spends more than this share of its time on asking and waiting asks for more blocks
at once."""


@dataclass(slots=True, eq=False)
class _Request:
    """The draws of one or more blocks, asked of the shards together."""

    stats: list[ReplayStats]
    splits: list[list[int]]
    draws: list[Draws] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return all(draws.part is not None for draws in self.draws)

    @property
    def parts(self) -> list[ShardSample]:
        return [draws.part for draws in self.draws if draws.part is not None]


class ReplayFeed:
    """`BlockFeed` over shard handles; owned by the training thread.

    Draws are split by the newest masses that each shard has told of: a shard that is asked tells
    with its answer, one that is not is asked for its counters alone.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        planner: BlockPlanner,
        max_blocks_per_request: int,
        stop: threading.Event,
        clock: StageClock,
        *,
        by_place: bool = False,
    ) -> None:
        self._spec, self._planner, self._stop, self._clock = spec, planner, stop, clock
        self._by_place = by_place
        """Whether the learner keeps the shards' frames, and stacks come as their places."""
        self._lines: list[ShardLine] = []
        self._requests: collections.deque[_Request] = collections.deque()
        self._replacements: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.resting: frozenset[int] = frozenset()
        """Shards that nothing is drawn from, for nobody writes to them."""
        self._params_version = 0
        self.sample_age_s = 0.0
        self.blocks_per_request = AdaptiveSize(
            1,
            max_blocks_per_request,
            grow_above=ASKING_TO_GROW,
            shrink_below=ASKING_TO_GROW / 10,
            grow_after=4,
            shrink_after=100,
        )

    def set_shards(self, shards: list[Any]) -> None:
        """All shards, in order."""
        self._lines = [
            ShardLine(i, shard, self._spec, by_place=self._by_place)
            for i, shard in enumerate(shards)
        ]
        self._requests.clear()

    def replace_shard(self, index: int, shard: Any) -> None:
        """A new process serves shard `index`: what was asked of the old one is asked of it.

        From any thread; it happens before the next answer is waited for.
        """
        self._replacements.put((index, shard))

    def let_rest(self, shards: Collection[int]) -> None:
        """Draw from all shards but these, which no actor writes to, from now on; from any thread.

        Their limiters keep the ratio of draws to inserts: asked on, they would hold everybody back.
        """
        self.resting = frozenset(shards)

    def blocks(self, learner: Learner) -> Generator[ReplaySample]:
        """Blocks until stopped, in the order in which they come; see `BlockFeed`."""
        while not self._stop.is_set():
            asked_from_s, self._params_version = time.perf_counter(), learner.params_version
            request = self._next_request()
            if request is None:
                return
            got_at_s = time.perf_counter()
            parts = request.parts
            self.sample_age_s = parts[-1].mean_age_s
            learner.fleet_env_steps = sum(s.env_steps for s in self._stats())
            try:
                for block in slices(parts, request.splits):
                    self._clock.start()
                    sample = self._planner.assemble(block, request.stats, learner)
                    self._clock.lap(COPYING)
                    yield sample
            finally:
                for line in self._lines:
                    line.send_priorities()
            for draws in request.draws:
                self._lines[draws.shard].used(draws)
            held_s = max(part.held_s for part in parts)
            asking_s = max(0.0, got_at_s - asked_from_s - held_s)
            self.blocks_per_request.observe(asking_s, time.perf_counter() - got_at_s)

    def give_back(self, sample: ReplaySample, errors: Array) -> None:
        """|TD errors| of a block; they are sent with those of the request's other blocks."""
        for shard, update in self._planner.priority_updates(sample, errors).items():
            self._lines[shard].priorities.append(encode_priority_update(update))

    def _next_request(self) -> _Request | None:
        """The first request that is complete, however long the limiter holds it; None: stopped."""
        self._clock.start()
        complete = None
        while complete is None and not self._stop.is_set():
            while not self._replacements.empty():
                index, shard = self._replacements.get()
                self._lines[index].replace(shard)
            self._ask_ahead()
            self._listen()
            for request in [r for r in self._requests if self._is_broken(r)]:
                self._requests.remove(request)
                for draws in request.draws:
                    self._lines[draws.shard].forget(draws)
            complete = next((r for r in self._requests if r.is_complete), None)
        if complete is not None:
            self._requests.remove(complete)
        self._clock.lap(WAIT)
        return complete

    def _ask_ahead(self) -> None:
        while len(self._requests) < REQUESTS_IN_FLIGHT:
            request = self._ask()
            if request is None:
                return
            self._requests.append(request)

    def _stats(self) -> list[ReplayStats]:
        return [line.stats for line in self._lines]

    def _ask(self) -> _Request | None:
        """A new request, split by mass; None while no shard that may be asked holds anything.

        Also while one has yet to tell its mass: the others would be drawn from too often.
        """
        resting = self.resting
        stats = [s._replace(mass=0.0) if i in resting else s for i, s in enumerate(self._stats())]
        all_told = all(line.has_told for i, line in enumerate(self._lines) if i not in resting)
        if not all_told or not any(s.mass > 0 for s in stats):
            for line in self._lines:
                line.ask_stats()
            return None
        n_blocks = self.blocks_per_request.size
        request = _Request(stats, [self._planner.split(stats) for _ in range(n_blocks)])
        for line, draws in zip(self._lines, zip(*request.splits, strict=True), strict=True):
            if sum(draws):
                request.draws.append(line.ask(sum(draws), self._params_version))
            else:
                line.ask_stats()
        return request

    def _is_broken(self, request: _Request) -> bool:
        """Whether it cannot be trained on any more, so that its draws are split anew.

        So it is when it waits for a shard that is gone or rests, or when it was overtaken.
        """
        waiting = {draws.shard for draws in request.draws if draws.part is None}
        if any(not self._lines[i].is_there or i in self.resting for i in waiting):
            return True
        return any(self._lines[draws.shard].is_overtaken(draws) for draws in request.draws)

    def _listen(self) -> None:
        """Wait for the next answer of any shard and take it."""
        calls = {ref: line for line in self._lines for ref in line.awaited()}
        if not calls:
            self._stop.wait(NOTHING_THERE_S)
        else:
            now_s = time.monotonic()
            silence_ends_s = min(line.silence_ends_s for line in self._lines)
            timeout_s = min(POLL_S, max(LEAST_WAIT_S, silence_ends_s - now_s))
            for ref in _ready(list(calls), timeout_s):
                calls[ref].take(ref)
            if not self._requests:
                self._stop.wait(NOTHING_THERE_S)
        for line in self._lines:
            line.ask_again_after_silence()
        if self._lines and not any(line.is_there for line in self._lines):
            self._nobody_is_there()

    def _nobody_is_there(self) -> None:
        gone_s = min(time.monotonic() - line.heard_s for line in self._lines)
        if gone_s > ANSWER_TIMEOUT_S:
            raise WaitTimeoutError(
                f"learner waited {gone_s:.0f} s for a replay shard in place of those that died"
            )


def _ready(refs: list[Any], timeout_s: float) -> list[Any]:
    """All of them that are ready now, in order; when none is, the first within the time."""
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
    if not ready:
        ready, _ = ray.wait(refs, timeout=timeout_s)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
    return [ref for ref in refs if ref in ready]
