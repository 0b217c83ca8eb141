"""Chunks on their way from one actor to its replay shard, each until it is acknowledged.

Called by the actor's Ray shell, in the thread that plays.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from qfleet.actors.plan import MAX_UNACKNOWLEDGED_CHUNKS
from qfleet.common.errors import WaitTimeoutError
from qfleet.common.messages import encode_chunk
from qfleet.common.patience import Patience
from qfleet.common.types import ChunkId, InsertAck, ParamsOffer, TransitionChunk

ANSWER_TIMEOUT_S = 60.0
"""A shard of which nothing at all is heard for so long is given up."""
SHARD_RETURN_TIMEOUT_S = 900.0
"""How long an actor waits for the shard that takes the place of one that died."""
POLL_S = 0.1
LEAST_QUESTION_S = 0.02
FIRST_QUESTION_S = 0.05
MOST_QUESTION_S = 0.1
"""A chunk whose acknowledgement is later than others were (the second while nothing is known) is
asked after; a question costs little: it goes without the chunk and is never held back."""
HELD_QUESTION_S = 0.2
LONGEST_QUESTION_S = 5.0
"""A chunk that the shard holds back is asked after again between these bounds. Whatever is repeated
comes each time after twice as long, up to the second: a slow network must not be filled."""
LEAST_WAIT_S = 0.001
OVERTAKEN_S = 0.02
"""The same when a later chunk of this actor was acknowledged: answers may change places."""


@dataclass(slots=True, eq=False)
class _Sent:
    """One chunk that is not acknowledged yet."""

    chunk_id: ChunkId
    data: bytes
    rows: int
    refs: list[Any]
    """Calls that may still bring its acknowledgement."""
    patience_s: float
    """After which it is asked after."""
    again_s: float
    """The same once it has been sent again."""
    sent_s: float
    asked_s: float = 0.0
    """When the chunk was last sent or asked after."""
    held_patience_s: float = HELD_QUESTION_S
    was_held: bool = False
    question: Any = None
    """A call that tells whether the shard holds it back."""

    def begin_anew(self, patience_s: float) -> None:
        """What was known of it holds for a shard that is gone."""
        self.refs, self.question = [], None
        self.patience_s = self.again_s = patience_s
        self.held_patience_s, self.was_held = HELD_QUESTION_S, False
        self.sent_s = time.monotonic()


class ChunkSender:
    """Sends chunks to one shard and takes acknowledgements, in whatever order they come.

    The shard keeps what it holds back, so a chunk is sent again only when it is lost: when Ray says
    so, or when the shard does not have it, asked after a silence or once a later chunk of this
    actor was acknowledged. A chunk that arrives twice is stored once: its id says so.
    When the shard dies, what it has not acknowledged waits for the one in its place.
    """

    def __init__(
        self,
        shard: Any,
        slot: int,
        *,
        credits: int,
        held_versions: Callable[[], tuple[int, int]],
        take_offer: Callable[[ParamsOffer], None],
    ) -> None:
        """Send to `shard` for actor `slot`, beginning with room for `credits` transitions.

        Args:
            shard: Handle of the replay shard.
            slot: Of the actor.
            credits: How many transitions the shard is thought to take before it holds one back.
            held_versions: Tells the versions of parameters and target that the actor holds.
            take_offer: Gets what an acknowledgement brings.
        """
        self._shard, self._slot = shard, slot
        self._held_versions, self._take_offer = held_versions, take_offer
        self._credits = credits
        self._sent: list[_Sent] = []
        self._patience = Patience(LEAST_QUESTION_S, FIRST_QUESTION_S, MOST_QUESTION_S)
        """For chunks that are not held back."""
        self._question_patience = Patience(LEAST_QUESTION_S, FIRST_QUESTION_S, LONGEST_QUESTION_S)
        self._heard_s = time.monotonic()
        self._is_there = True
        self._replacements: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._last: ChunkId | None = None
        self.refused = ""
        """The status of a chunk that the shard does not want: the actor was replaced."""

    @property
    def rows(self) -> int:
        """Transitions that are sent and not acknowledged."""
        return sum(sent.rows for sent in self._sent)

    def send(self, chunk: TransitionChunk) -> None:
        """Put a chunk on its way."""
        data, now_s = encode_chunk(chunk), time.monotonic()
        if not self._sent:
            self._heard_s = now_s  # before that, the shard had nothing to say
        patience_s = self._patience.seconds
        sent = _Sent(chunk.chunk_id, data, len(chunk), [], patience_s, patience_s, now_s)
        self._last = chunk.chunk_id
        self._sent.append(sent)
        self._call(sent)

    def replace_shard(self, shard: Any) -> None:
        """Another process serves the shard; from any thread, taken with the next `wait`."""
        self._replacements.put(shard)

    def _turn_to(self, shard: Any) -> None:
        """Send what was not acknowledged, and say first which chunks cannot be awaited."""
        self._shard, self._is_there, self._heard_s = shard, True, time.monotonic()
        if self._last is None:
            return
        first = self._sent[0].chunk_id.seq if self._sent else self._last.seq + 1
        # Not waited for: without it the shard awaits them for a while.
        shard.begin_at.remote(self._slot, self._last.incarnation, first)
        for sent in self._sent:
            sent.begin_anew(self._patience.seconds)
            self._call(sent)

    def _await_replacement(self, timeout_s: float) -> None:
        """While there is no shard.

        Raises:
            WaitTimeoutError: when none has come for `SHARD_RETURN_TIMEOUT_S`.
        """
        try:
            self._turn_to(self._replacements.get(timeout=timeout_s))
        except queue.Empty:
            away_s = time.monotonic() - self._heard_s
            if away_s > SHARD_RETURN_TIMEOUT_S:
                raise WaitTimeoutError(
                    f"actor {self._slot} waited {away_s:.0f} s for a replay shard in place of the "
                    "one that died"
                ) from None

    def _call(self, sent: _Sent) -> None:
        if not self._is_there:
            return
        sent.refs.append(self._shard.insert.remote(sent.data, self._held_versions()))
        sent.asked_s = time.monotonic()

    def has_room(self, next_rows: int) -> bool:
        """Whether a further chunk of so many rows may be sent.

        While the shard is about to hold the next one back, playing on would only make older
        transitions: then one at a time is on its way.
        """
        window = MAX_UNACKNOWLEDGED_CHUNKS if self._credits >= next_rows else 1
        return len(self._sent) < window

    def wait(self, timeout_s: float) -> None:
        """Wait for the next thing that the shard says, at most so long.

        Raises:
            WaitTimeoutError: when nothing was heard of the shard for `ANSWER_TIMEOUT_S`.
            RayError: what the shard raised.
        """
        while not self._replacements.empty():
            self._turn_to(self._replacements.get())
        if not self._is_there:
            self._await_replacement(timeout_s)
        if not self._sent or not self._is_there:
            return
        calls = {ref: sent for sent in self._sent for ref in sent.refs}
        questions = {sent.question: sent for sent in self._sent if sent.question is not None}
        next_question_s = min(sent.asked_s + sent.patience_s for sent in self._sent)
        timeout_s = min(timeout_s, max(LEAST_WAIT_S, next_question_s - time.monotonic()))
        for ref in _ready([*calls, *questions], timeout_s):
            if not self._is_there:
                return  # one of them brought the news; the rest would bring the same
            if ref in calls:
                self._answered(calls[ref], ref)
            else:
                self._told(questions[ref])
        self._ask_after_late_ones()

    def _answered(self, sent: _Sent, ref: Any) -> None:
        sent.refs.remove(ref)
        answer = self._get(ref)
        if sent not in self._sent:
            return  # a second call of the same chunk, both answered at once
        if answer is None:
            if not sent.refs:
                self._call(sent)
            return
        ack = InsertAck(*answer[0])
        self._credits = ack.credits
        if ack.status not in ("accepted", "duplicate"):
            self.refused = ack.status
        for earlier in self._sent[: self._sent.index(sent)]:
            earlier.patience_s = min(earlier.patience_s, OVERTAKEN_S)
        self._sent.remove(sent)
        if not sent.was_held:
            self._patience.answered(time.monotonic() - sent.sent_s)
        self._take_offer(ParamsOffer(*answer[1]))

    def _told(self, sent: _Sent) -> None:
        """The answer to a question: what is not held back has not come, or its answer was lost."""
        is_held, sent.question = self._get(sent.question), None
        if is_held is None:
            return  # the question was lost
        self._question_patience.answered(time.monotonic() - sent.asked_s)
        if is_held:
            sent.was_held, sent.patience_s = True, sent.held_patience_s
            sent.held_patience_s = min(LONGEST_QUESTION_S, 2 * sent.held_patience_s)
        else:
            self._call(sent)
            sent.again_s = min(LONGEST_QUESTION_S, 2 * sent.again_s)
            sent.patience_s = sent.again_s

    def _get(self, ref: Any) -> Any:
        """What a call brought; None when it was lost on its way."""
        try:
            answer = ray.get(ref, timeout=ANSWER_TIMEOUT_S)
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError):
            return None
        except ray.exceptions.RayActorError:
            self._is_there, self._heard_s = False, time.monotonic()
            return None
        self._heard_s = time.monotonic()
        return answer

    def _ask_after_late_ones(self) -> None:
        now_s = time.monotonic()
        if not self._is_there:
            return
        if self._sent and now_s - self._heard_s > ANSWER_TIMEOUT_S:
            raise WaitTimeoutError(
                f"actor {self._slot} waited {ANSWER_TIMEOUT_S:.0f} s for the replay server to "
                f"acknowledge a chunk of {self._sent[0].rows} transitions"
            )
        for sent in self._sent:
            if now_s - sent.asked_s >= sent.patience_s:
                least_s = self._question_patience.seconds
                if sent.question is not None:  # it is late, too
                    least_s = max(least_s, 2 * sent.patience_s)
                sent.question = self._shard.holds.remote(*sent.chunk_id)
                sent.asked_s, sent.patience_s = now_s, min(LONGEST_QUESTION_S, least_s)

    def drain(self, seconds: float) -> None:
        """At the end: acknowledgements that come soon are taken, the rest stay counted."""
        deadline_s = time.monotonic() + seconds
        while self._sent and time.monotonic() < deadline_s:
            self.wait(POLL_S)


def _ready(refs: list[Any], timeout_s: float) -> list[Any]:
    """All of them that are ready now, in order; when none is, the first within the time."""
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
    if not ready and timeout_s > 0.0:
        ready, _ = ray.wait(refs, timeout=timeout_s)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
    return [ref for ref in refs if ref in ready]
