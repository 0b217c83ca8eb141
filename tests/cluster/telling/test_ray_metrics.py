"""Gauges by role and by run, against a class that notes what it is given."""

from __future__ import annotations

from qfleet.cluster.telling.ray_metrics import RayMetrics
from qfleet.run_files.summary import RoleRow


def test_roles_and_the_runs_own_values_are_gauges_and_a_role_that_is_gone_has_the_rate_0():
    values, made = {}, []

    class Gauge:
        def __init__(self, name, tag_keys):
            made.append((name, tag_keys))
            self.name, self.keys = name, tag_keys

        def set(self, value, tags):
            assert tuple(tags) == self.keys
            values[(self.name, *tags.values())] = value

    def row(role, rate, unit, host="h1", waits_for=""):
        return RoleRow(role=role, host=host, pid=1, rate=rate, unit=unit, waits_for=waits_for)

    metrics = RayMetrics("my-run", Gauge)
    metrics.tell(
        {"learner/loss": 0.5},
        [
            row("learner", 900.0, "updates/s", waits_for="actors"),
            row("replay-0", 50.0, "inserts/s"),
            row("actor-0", 70.0, "env steps/s", host="h2"),
            row("actor-1", 0.0, "", host="", waits_for="room"),
        ],
    )
    assert values == {
        ("qfleet_learner_loss", "my-run"): 0.5,
        ("qfleet_updates_per_s", "my-run", "learner", "h1"): 900.0,
        ("qfleet_inserts_per_s", "my-run", "replay-0", "h1"): 50.0,
        ("qfleet_env_steps_per_s", "my-run", "actor-0", "h2"): 70.0,
        ("qfleet_role_waits", "my-run", "learner", "h1"): 1.0,
        ("qfleet_role_waits", "my-run", "replay-0", "h1"): 0.0,
        ("qfleet_role_waits", "my-run", "actor-0", "h2"): 0.0,
    }
    metrics.tell({}, [row("actor-0", 60.0, "env steps/s")])
    assert values["qfleet_env_steps_per_s", "my-run", "actor-0", "h1"] == 60.0
    assert values["qfleet_env_steps_per_s", "my-run", "actor-0", "h2"] == 0.0
    assert values["qfleet_updates_per_s", "my-run", "learner", "h1"] == 0.0
    assert len(made) == len({name for name, _ in made}) == 5
