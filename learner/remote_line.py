"""One replay shard as the asynchronous learner sees it: what is asked of it and what it has told.

Called by `remote_feed.py`, in the training thread.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray

from qfleet.common.errors import WaitTimeoutError
from qfleet.common.inline_pieces import join, pieces_for
from qfleet.common.patience import Patience
from qfleet.common.sample_message import decode_shard_sample, shard_sample_bytes
from qfleet.common.types import EnvironmentSpec, ReplayStats, ShardSample
from qfleet.learner.frame_receipts import FrameReceipts

ANSWER_TIMEOUT_S = 60.0
LEAST_SILENCE_S = 0.02
FIRST_SILENCE_S = 0.5
MOST_SILENCE_S = 2.0
LONGEST_SILENCE_S = 5.0
"""A shard answers a request within `SAMPLE_HOLD_S` also when it holds it back. After a silence that
is longer than usual (the second while nothing is known, between the first and the third) the
oldest question is asked once more, each time after twice as long, up to the fourth."""
MAX_CALLS = 4
"""Of one question, the first included."""
UPDATES_UNDER_WAY = 2
MOST_UPDATES_UNDER_WAY = 16
"""Priority updates without an answer: asked after above the first number, waited for above the
second."""
NOTHING = ReplayStats(0, 0, 0, 0, 0.0, 0, 0, 0, 0)


class _Call(NamedTuple):
    number: int
    """Of all calls to this shard: it answers them in this order."""
    refs: list[Any]


@dataclass(slots=True, eq=False)
class Draws:
    """Draws asked of one shard for one request."""

    shard: int
    n: int
    params_version: int
    """The learner's newest when they were asked."""
    calls: list[_Call] = field(default_factory=list)
    """Those that may still bring them: more than one when some may be lost."""
    part: ShardSample | None = None


class ShardLine:
    """Questions to one shard and their answers; every wait ends.

    A call that Ray reports lost is made again; so is one that a later one has overtaken (the shard
    answers draws in the order in which they are asked), and the oldest one after a silence. Draws
    that come twice are draws like all others: the second answer is let go.
    """

    def __init__(
        self, index: int, shard: Any, spec: EnvironmentSpec, *, by_place: bool = False
    ) -> None:
        self._index, self._shard, self._spec = index, shard, spec
        self._by_place = by_place
        """Whether the learner keeps the shard's frames."""
        self._receipts = FrameReceipts(by_place=by_place)
        self.stats = NOTHING
        """The newest counters; without mass while the shard is gone."""
        self.priorities: list[bytes] = []
        """Messages of the blocks since the last request: sent together."""
        self.heard_s = time.monotonic()
        self._patience = Patience(LEAST_SILENCE_S, FIRST_SILENCE_S, MOST_SILENCE_S)
        self._silence_s = self._patience.seconds
        self._listened_s = self.heard_s
        self._n_calls = 0
        self._open: list[Draws] = []
        self._stats_refs: list[Any] = []
        """Calls that may still bring the counters: more than one when some may be lost."""
        self._stats_asked_s = 0.0
        self._updates: dict[Any, list[bytes]] = {}

    @property
    def is_there(self) -> bool:
        """Whether the shard is not known to be dead."""
        return self._shard is not None

    @property
    def has_told(self) -> bool:
        """Whether its counters were ever known; of one that is gone nothing more is expected."""
        return self.stats is not NOTHING or not self.is_there

    def replace(self, shard: Any) -> None:
        """Go on with another process, which answers everything that is open."""
        self._shard, self._stats_refs, self._updates = shard, [], {}
        self._receipts = FrameReceipts(by_place=self._by_place)
        self._heard()
        for draws in self._open:
            draws.calls.clear()
            self._call(draws)

    def ask(self, n_draws: int, params_version: int) -> Draws:
        """Ask for so many draws, of a learner whose newest parameters have that version."""
        if not self._open:
            self._heard()  # before that, the shard had nothing to say
        draws = Draws(self._index, n_draws, params_version)
        self._open.append(draws)
        self._call(draws)
        return draws

    def forget(self, draws: Draws) -> None:
        """The request that these belong to was given up."""
        if draws in self._open:
            self._open.remove(draws)

    def is_overtaken(self, draws: Draws) -> bool:
        """Whether they came and can no longer be trained on; see `FrameReceipts`."""
        return draws.part is not None and self._receipts.is_overtaken(draws.part)

    def used(self, draws: Draws) -> None:
        """The learner has trained on these, and keeps their new frames."""
        if draws.part is not None:
            self._receipts.take(draws.part)

    def ask_stats(self) -> None:
        """Ask for its counters, unless that is under way; once more when the answer is late."""
        now_s, n_calls = time.monotonic(), len(self._stats_refs)
        is_late = now_s - self._stats_asked_s > self._patience.seconds
        if self.is_there and (n_calls == 0 or (is_late and n_calls < MAX_CALLS)):
            self._stats_refs.append(self._shard.stats.remote())
            self._stats_asked_s = now_s

    def _call(self, draws: Draws) -> None:
        """Ask for `draws`; the answer travels inside the call unless it is large."""
        if not self.is_there:
            return
        n_pieces = pieces_for(shard_sample_bytes(self._spec, draws.n, by_place=self._by_place))
        refs = self._shard.sample.options(num_returns=n_pieces).remote(
            draws.n, n_pieces, draws.params_version, self._receipts.reader()
        )
        draws.calls.append(_Call(self._n_calls, [refs] if n_pieces == 1 else list(refs)))
        self._n_calls += 1

    def awaited(self) -> list[Any]:
        """One reference of each call that is open: a call's values come together."""
        refs = [call.refs[0] for draws in self._open for call in draws.calls]
        return [*refs, *self._stats_refs]

    def take(self, ref: Any) -> None:
        """Take the answer that `ref`, one of those awaited, is ready with."""
        if ref in self._stats_refs:
            self._stats_refs.remove(ref)
            stats = self._get([ref])
            if stats is not None:
                self._stats_refs = []
                self.stats = ReplayStats(*stats[0])
            return
        for draws in self._open:
            for call in draws.calls:
                if call.refs[0] == ref:
                    self._take_draws(draws, call)
                    return

    def _take_draws(self, draws: Draws, call: _Call) -> None:
        draws.calls.remove(call)
        silent_since_s = self.heard_s
        pieces = self._get(call.refs)
        if pieces is not None and pieces[0] is not None:
            draws.part = decode_shard_sample(join(pieces))
            self.stats = draws.part.stats
            self._open.remove(draws)
        elif self.is_there and not draws.calls:
            self._call(draws)  # lost, or held back
        if pieces is not None:
            self._patience.answered(self.heard_s - silent_since_s)
            self._silence_s = self._patience.seconds
            for other in self._open:
                newest = max((c.number for c in other.calls), default=call.number)
                if newest < call.number and len(other.calls) < MAX_CALLS:
                    self._call(other)

    def _get(self, refs: list[Any]) -> list[Any] | None:
        """What a call brought; None when it was lost, or the shard with it."""
        try:
            values = list(ray.get(refs, timeout=ANSWER_TIMEOUT_S))
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError):
            return None  # the call was lost, or its answer with the host that it was on
        except ray.exceptions.RayActorError:
            self._shard, self._updates = None, {}
            self.stats = self.stats._replace(size=0, mass=0.0)
            self._stats_refs = []
            return None
        self._heard()
        return values

    def _heard(self) -> None:
        self.heard_s = self._listened_s = time.monotonic()
        self._silence_s = self._patience.seconds

    @property
    def silence_ends_s(self) -> float:
        """When the oldest question is asked once more unless something is heard before."""
        return self._listened_s + self._silence_s if self._open else math.inf

    def ask_again_after_silence(self) -> None:
        """Ask the oldest question once more when nothing was heard for long.

        Raises:
            WaitTimeoutError: when nothing was heard for `ANSWER_TIMEOUT_S`.
        """
        now_s = time.monotonic()
        if not (self._open and self.is_there) or now_s - self._listened_s < self._silence_s:
            return
        if now_s - self.heard_s > ANSWER_TIMEOUT_S:
            raise WaitTimeoutError(
                f"learner waited {now_s - self.heard_s:.0f} s for a sample of replay shard "
                f"{self._index}"
            )
        self._listened_s, self._silence_s = now_s, min(LONGEST_SILENCE_S, 2 * self._silence_s)
        if len(self._open[0].calls) < MAX_CALLS:
            self._call(self._open[0])

    def send_priorities(self) -> None:
        """One call; the messages stay apart, so that each travels inside it."""
        messages, self.priorities = self.priorities, []
        if messages and self.is_there:
            self._update(messages)
        if len(self._updates) > UPDATES_UNDER_WAY:
            self._settle(list(self._updates), 0.0)
        while len(self._updates) > MOST_UPDATES_UNDER_WAY:
            if not self._settle(list(self._updates), ANSWER_TIMEOUT_S):
                raise WaitTimeoutError(
                    f"learner waited {ANSWER_TIMEOUT_S:.0f} s for replay shard {self._index} to "
                    "take new priorities"
                )

    def _update(self, messages: list[bytes]) -> None:
        self._updates[self._shard.update_priorities.remote(*messages)] = messages

    def _settle(self, refs: list[Any], timeout_s: float) -> bool:
        """Take what has come of these calls, or wait for one; those that were lost go again."""
        ready, _ = ray.wait(refs, num_returns=1 if timeout_s else len(refs), timeout=timeout_s)
        for ref in ready:
            messages = self._updates.pop(ref, None)
            if self._get([ref]) is None and messages is not None and self.is_there:
                self._update(messages)
        return bool(ready)
