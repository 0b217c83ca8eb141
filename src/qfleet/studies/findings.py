"""Sentences about the arms, computed from their figures: nothing is said that was not measured.

Called by the report page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qfleet.run_files.metrics import LEARNER_Q_MEAN
from qfleet.studies.comparison import Arm, Figures, budget_learner_steps, gain
from qfleet.studies.words import Words

ENOUGH_SEEDS = 5
"""The bootstrap of two values spans them, which holds the true median half of the time."""


def findings(
    arms: Sequence[Arm], found: Sequence[Figures], threshold: float | None, words: Words
) -> list[str]:
    """One line for each arm, what each gains on the first, and whether their scores differ.

    Between the two what makes the arms unlike beyond what was meant to differ. Returns of different
    environments are not compared.
    """
    lines = [_of_arm(arm, each, threshold, words) for arm, each in zip(arms, found, strict=True)]
    if {"mse", "huber"} <= _losses_of_td_errors(arms):
        lines.append(words("loss_gradients"))
    if len({run.config.get("env.id") for arm in arms for run in arm.runs}) > 1:
        return lines
    end = budget_learner_steps(list(arms))
    lines += [line for arm in arms[1:] if (line := _gain(arm, arms[0], end, words))]
    verdict = _verdict(found, words)
    if verdict is None:
        return lines
    fewest = min(each.score.n for each in found if each.score is not None)
    few = [words("few_seeds", n=fewest)] if fewest < ENOUGH_SEEDS else []
    return [*lines, verdict, *few]


def _losses_of_td_errors(arms: Sequence[Arm]) -> set[str]:
    """`learner.loss` where it counts: a distribution has its own."""
    configs = [run.config for arm in arms for run in arm.runs]
    return {
        str(config.get("learner.loss"))
        for config in configs
        if config.get("network.distribution", "none") == "none"
    }


def _gain(arm: Arm, base: Arm, end: float, words: Words) -> str | None:
    """Over training, not at its end: there CartPole's limit of 500 steps hides what differs."""
    found = gain(arm, base, end)
    if found is None or found.n < 2:
        return None
    value, low, high = (f"{x:+.1f}" for x in (found.value, found.low, found.high))
    return words("gained", arm=arm.name, base=base.name, value=value, low=low, high=high, n=found.n)


def _of_arm(arm: Arm, found: Figures, threshold: float | None, words: Words) -> str:
    parts = []
    n = found.n_complete
    if threshold is not None and n:
        text = words("reached_in", threshold=f"{threshold:g}", reached=found.reached, n=n)
        if found.learner_steps_to_threshold is not None:
            text += " " + words("after", steps=f"{found.learner_steps_to_threshold:,.0f}")
        parts.append(text)
    if found.score is not None:
        score = found.score
        value, low, high = (f"{x:.1f}" for x in (score.value, score.low, score.high))
        key = "scored" if score.n == n else "scored_few"
        parts.append(words(key, value=value, low=low, high=high, k=score.n))
    elif n:
        parts.append(words("no_score"))
    if arm.diverged:
        steps = np.median([run.learner_steps for run in arm.diverged])
        parts.append(words("diverged_in", diverged=len(arm.diverged), n=n, steps=f"{steps:,.0f}"))
    largest = _largest_q(arm)
    if largest is not None:
        parts.append(words("q_grew", value=f"{largest:,.4g}"))
    joined = ("、" if words.language == "ja" else ", ").join(parts)
    return f"{arm.name}: {joined}" if joined else arm.name


def _largest_q(arm: Arm) -> float | None:
    values = [run.traces[LEARNER_Q_MEAN][1] for run in arm.complete]
    peaks = [float(np.abs(each).max()) for each in values if len(each)]
    return max(peaks, default=None)


def _verdict(found: Sequence[Figures], words: Words) -> str | None:
    """Whether the best and the worst arm's intervals are apart; None with fewer than two."""
    scored = [
        (each.score, each.arm) for each in found if each.score is not None and each.score.n > 1
    ]
    if len(scored) < 2:
        return None
    best = max(scored, key=lambda pair: pair[0].value)
    worst = min(scored, key=lambda pair: pair[0].value)
    if best[0].low > worst[0].high:
        return words("apart", best=best[1], worst=worst[1])
    return words("not_apart")
