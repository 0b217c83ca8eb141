"""Roles by hand, for what watches over them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster import answers, polled_call
from qfleet.fleets.watches import actor_watch, evaluation_watch, run_call, shard_watch


@pytest.fixture
def ray(hand_ray):
    """A Ray by hand in every module that a watch calls."""
    return hand_ray(polled_call, answers, actor_watch, evaluation_watch, run_call, shard_watch)


@pytest.fixture
def by_hand(ray, new_handle):
    """Two actors, a learner and an evaluator; `made` are those created since, and fences."""

    class Roles:
        def __init__(self):
            self.actors = {0: new_handle(), 1: new_handle()}
            self.learner = new_handle()
            self.plans = SimpleNamespace(cluster=SimpleNamespace(wait_for_resources_s=60.0))
            self.made, self.lack, self.ladders = [], None, {}
            self.told, self.differing = {}, ""
            self.evaluator, self.evaluator_name = new_handle(), "evaluator-1"
            self.places = SimpleNamespace(
                of=self.told.get, differing=lambda role: self.differing, check_versions=lambda: None
            )
            self.logs = SimpleNamespace(collect=lambda now_s: None)

        def tells_place(self, role, handle, told):
            self.told[role] = told

        def gone(self, role):
            self.told.pop(role, None)

        def shard_of(self, slot):
            def fence(slot, incarnation):
                self.made.append(("fence", slot, incarnation))
                return ray.put(None)

            return SimpleNamespace(fence=SimpleNamespace(remote=fence))

        def lack_of_room(self):
            return self.lack

        def table_of_needs(self):
            return "a table"

        def create_actor(self, slot, incarnation, ladder):
            self.made.append(("actor", slot, incarnation))
            self.ladders[slot] = ladder
            self.actors[slot] = new_handle()

        def create_evaluator(self):
            self.made.append("evaluator")
            ray.kill(self.evaluator, no_restart=True)
            self.evaluator = new_handle()

    return Roles()
