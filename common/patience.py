"""How long an answer may take before it is asked for again, learnt from the answers that came.

Used by whoever asks another process again and again: actors, learner, publisher and driver. Pure:
it is told times and reads no clock.
"""

from __future__ import annotations

_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4
_DEVIATIONS = 4.0


class Patience:
    """The smoothed time of answers plus four times its mean deviation, within bounds.

    Ray says only after two seconds that a call was lost; an answer that normally takes three
    milliseconds need not be waited for so long.

    Source: RFC 6298, section 2. Differs: the bounds; an answer to a question that was repeated
    counts too, from the first call on, so that a role that has become slow is soon believed; and
    whoever asks doubles the time for each repetition (section 5.5) until an answer has come.
    """

    def __init__(self, least_s: float, first_s: float, most_s: float) -> None:
        """Wait `first_s` while no answer has come; never less nor more than the other two."""
        self._least_s, self._most_s = least_s, most_s
        self._smoothed_s: float | None = None
        self._deviation_s = 0.0
        self.seconds = first_s
        """How long to wait for the next answer before asking again."""

    def answered(self, took_s: float) -> None:
        """An answer came `took_s` after its question was first asked."""
        if self._smoothed_s is None:
            self._smoothed_s, self._deviation_s = took_s, took_s / 2
        else:
            error_s = abs(self._smoothed_s - took_s)
            self._deviation_s += _DEVIATION_GAIN * (error_s - self._deviation_s)
            self._smoothed_s += _GAIN * (took_s - self._smoothed_s)
        margin_s = max(self._least_s, _DEVIATIONS * self._deviation_s)
        self.seconds = min(self._most_s, self._smoothed_s + margin_s)
