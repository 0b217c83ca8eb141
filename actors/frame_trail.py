"""What an actor remembers of its frames: their numbers, and those that a chunk may still name.

Called by the actor's core where observations are stacks. Each frame is numbered when it is first
seen and travels once; the n-step windows and the transitions hold numbers in place of pictures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from qfleet.common.errors import InvariantError
from qfleet.common.pixels.frame_run import FrameRun
from qfleet.common.types import NEXT_OBSERVATION, OBSERVATION, Array, Capture, Columns
from qfleet.common.vector_envs import StepResult


class FrameTrail:
    """Frames of E sub-environments in the order of their numbers; owned by one actor.

    Kept are those from `keep_from` of the last run on: all that a pending transition, an open
    window or a stack of the present may name.
    """

    def __init__(self, n_envs: int, depth: int, n_step: int) -> None:
        self._numbers = np.zeros((n_envs, depth), dtype=np.int64)
        self._oldest: deque[int] = deque(maxlen=n_step)
        """Oldest number in a stack before each of the last n steps: open windows go no further."""
        self._kept: list[Array] = []
        """Frames in order, [n, H, W] each."""
        self._first_kept = 0
        self._sent = 0
        self._next = 0

    @property
    def numbers(self) -> Array:
        """int64 [E, K]: the frames of the stacks that the next actions are chosen from."""
        return self._numbers

    @property
    def keep_from(self) -> int:
        """No transition that is completed from now on names a frame below this."""
        return min([int(self._numbers.min()), *self._oldest])

    def start(self, stacks: Array) -> None:
        """Episodes begin everywhere with `stacks` uint8 [E, K, H, W]; open windows are given up."""
        self._oldest.clear()
        self._numbers = self._added(stacks[:, -1])[:, None].repeat(stacks.shape[1], axis=1)

    def follow(self, result: StepResult) -> StepResult:
        """`result` with numbers in place of stacks; its new frames are added.

        A sub-environment that was reset by its end within the step shows two new frames, the final
        one and the next episode's first.
        """
        self._oldest.append(int(self._numbers.min()))
        new = self._added(result.next_observations[:, -1])
        successors = np.concatenate([self._numbers[:, 1:], new[:, None]], axis=1)
        begins = ~result.is_transition
        successors[begins] = new[begins, None]
        numbers = successors
        if result.observations is not result.next_observations:
            ended = result.terminated | result.truncated
            numbers = successors.copy()
            numbers[ended] = self._added(result.observations[ended, -1])[:, None]
        self._numbers = numbers
        return result._replace(next_observations=successors, observations=numbers)

    def _added(self, frames: Array) -> Array:
        """Their numbers, int64 [n]."""
        # A copy: the stack that a frame is a view of would be kept with it.
        self._kept.append(np.array(frames))
        numbers = np.arange(self._next, self._next + len(frames))
        self._next += len(frames)
        return numbers

    def stacks(self, numbers: Array) -> Array:
        """uint8 [n, K, H, W] for `numbers` [n, K] of frames that are kept."""
        if numbers.size and not self._first_kept <= numbers.min() <= numbers.max() < self._next:
            raise InvariantError(f"frames {numbers.min()}…{numbers.max()} are not kept")
        return self._joined().take(numbers - self._first_kept, axis=0)

    def unfold(self, columns: Mapping[str, Array]) -> Columns:
        """Transitions with stacks uint8 [n, K, H, W] in place of numbers."""
        stacks = {name: self.stacks(columns[name]) for name in (OBSERVATION, NEXT_OBSERVATION)}
        return {**columns, **stacks}

    def _joined(self) -> Array:
        if len(self._kept) != 1:
            self._kept = [np.concatenate(self._kept)]
        return self._kept[0]

    def take_run(self) -> FrameRun:
        """The frames since the last run, for the chunk that is being made."""
        keep_from = self.keep_from
        frames = self._joined()
        run = FrameRun(self._sent, keep_from, frames[self._sent - self._first_kept :])
        self._sent = self._next
        # Copies: a view would keep the whole array in memory.
        self._kept = [frames[keep_from - self._first_kept :].copy()]
        self._first_kept = keep_from
        return run

    def send_again(self) -> None:
        """The next run begins with the oldest frame kept: its receiver knows none of them."""
        self._sent = self._first_kept

    def capture(self) -> Capture:
        """Numbers and the frames kept."""
        meta = {
            "oldest": list(self._oldest),
            "first_kept": self._first_kept,
            "sent": self._sent,
            "next": self._next,
        }
        return Capture(meta, {"numbers": self._numbers.copy(), "frames": self._joined().copy()})

    def restore(self, capture: Capture) -> None:
        """The inverse of `capture`."""
        meta = capture.meta
        self._numbers = capture.arrays["numbers"].copy()
        self._oldest = deque(meta["oldest"], maxlen=self._oldest.maxlen)
        self._kept = [capture.arrays["frames"].copy()]
        self._first_kept, self._sent, self._next = meta["first_kept"], meta["sent"], meta["next"]

    def check_valid(self) -> None:
        """Raise `InvariantError` unless all that may be named is kept, without a gap."""
        kept = sum(map(len, self._kept))
        if self._first_kept + kept != self._next:
            raise InvariantError(
                f"{kept} frames from {self._first_kept} do not end at {self._next}"
            )
        if not self._first_kept <= min(self.keep_from, self._sent) <= self._next:
            raise InvariantError(f"frames from {self.keep_from} on are needed and not kept")
