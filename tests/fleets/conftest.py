"""Roles by hand, for what watches over them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster import polled_call, roles
from qfleet.fleets import actor_watch, evaluation_watch


@pytest.fixture
def ray(hand_ray):
    """A Ray by hand in every module that a watch calls."""
    return hand_ray(polled_call, roles, actor_watch, evaluation_watch)


@pytest.fixture
def by_hand(ray, new_handle):
    """Two actors, a learner and an evaluator; `made` are those created since, and fences."""

    class Roles:
        def __init__(self):
            self.actors = {0: new_handle(), 1: new_handle()}
            self.learner = new_handle()
            self.plans = SimpleNamespace(actor=SimpleNamespace(num_cpus=0.5))
            self.made, self.lack = [], None
            self.evaluator = new_handle()

        def shard_of(self, slot):
            def fence(slot, incarnation):
                self.made.append(("fence", slot, incarnation))
                return ray.put(None)

            return SimpleNamespace(fence=SimpleNamespace(remote=fence))

        def lack_of_cpus(self, num_cpus):
            return self.lack

        def create_actor(self, slot, incarnation):
            self.made.append(("actor", slot, incarnation))
            self.actors[slot] = new_handle()

        def create_evaluator(self):
            self.made.append("evaluator")
            ray.kill(self.evaluator, no_restart=True)
            self.evaluator = new_handle()

    return Roles()
