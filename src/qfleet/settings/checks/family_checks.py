"""Which improvements of the DQN family go together, and what each needs.

Called by `config_checks.check_config` with its other rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qfleet.settings.config import Config
from qfleet.settings.config_auto import learning_rate_end
from qfleet.settings.problems import Problem


def _check_own_head(config: Config) -> Iterator[Problem]:
    network = config.network
    if network.factory is None:
        return
    for key, default in (("dueling", False), ("noisy", False), ("distribution", "none")):
        if getattr(network, key) != default:
            yield Problem(
                f"network.{key}",
                getattr(network, key),
                "is of the built-in networks; a network.factory builds its own head",
                "remove it, or network.factory",
            )


def _check_distribution(config: Config) -> Iterator[Problem]:
    network, distribution = config.network, config.network.distribution
    if distribution == "none":
        if network.atoms is not None:
            yield Problem(
                "network.atoms",
                network.atoms,
                "is for a network.distribution, which is none",
                "remove it, or set network.distribution",
            )
        return
    if config.learner.loss == "mse":
        yield Problem(
            "learner.loss",
            "mse",
            f"is of Q-values; network.distribution {distribution} has a loss of its own",
            "set it to huber, whose huber_delta is the quantiles' κ",
        )
    if distribution == "iqn" and network.kind == "mlp" and len(network.hidden_sizes) < 2:
        yield Problem(
            "network.hidden_sizes",
            list(network.hidden_sizes),
            "must be at least two layers with network.distribution iqn: fractions enter between "
            "the last two",
            "add one",
        )


def _check_atoms(config: Config) -> Iterator[Problem]:
    network = config.network
    if network.distribution != "c51":
        return
    if network.n_atoms < 2:
        yield Problem("network.atoms", network.atoms, "must be at least 2 with c51", "raise it")
    low, high = network.value_min, network.value_max
    for key, value in (("value_min", low), ("value_max", high)):
        if value is None:
            yield Problem(
                f"network.{key}",
                value,
                "is needed by network.distribution c51, whose atoms lie between the smallest and "
                "the largest discounted return",
                "set it, or use network.distribution qr, which finds the range itself",
            )
    if low is not None and high is not None and low >= high:
        yield Problem("network.value_min", low, f"must be below value_max ({high:g})", "lower it")


def _check_munchausen(config: Config) -> Iterator[Problem]:
    if not config.learner.munchausen:
        return
    for key, value, wanted, why in (
        ("actors.n_step", config.actors.n_step, 1, "its bonus is of a single action"),
        ("learner.double_q", config.learner.double_q, False, "its policy takes the best's place"),
        ("network.distribution", config.network.distribution, "none", "it is made of Q-values"),
    ):
        if value != wanted:
            yield Problem(
                key,
                value,
                f"must be {str(wanted).lower()} with learner.munchausen: {why}",
                f"set it to {str(wanted).lower()}",
            )


def _check_learning_rate(config: Config) -> Iterator[Problem]:
    learner = config.learner
    if learner.learning_rate_schedule != "constant":
        if learning_rate_end(config) is None:
            yield Problem(
                "learner.learning_rate_end_learner_steps",
                learner.learning_rate_end_learner_steps,
                "is the budget of updates, or what one of env steps pays for at a set "
                "samples_per_insert, or of episodes at learner.updates_per_episode; here is none",
                "set it, or run.max_learner_steps",
            )
        return
    for key, unset in (
        ("learning_rate_end", (0.0,)),
        ("learning_rate_end_learner_steps", ("auto", None)),
    ):
        if getattr(learner, key) not in unset:
            yield Problem(
                f"learner.{key}",
                getattr(learner, key),
                "is of a schedule, and learner.learning_rate_schedule is constant",
                "remove it, or set learner.learning_rate_schedule linear or cosine",
            )


FAMILY_RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _check_own_head,
    _check_distribution,
    _check_atoms,
    _check_munchausen,
    _check_learning_rate,
)
