"""A run whose roles are lost begins again from its last cut, a bounded number of times.

Called by the runtimes on Ray.
"""

from __future__ import annotations

from collections.abc import Callable

from qfleet.common.errors import ClusterLostError, RoleLostError, WaitTimeoutError
from qfleet.run.outcome import Outcome
from qfleet.run_files.resume import find_point
from qfleet.session.session import Session


def with_restarts(
    session: Session,
    outcome: Outcome,
    run_once: Callable[[Session, Outcome], None],
    settle: Callable[[], None],
) -> None:
    """`run_once`, again from the last cut when a role is lost, while the budget lasts.

    A restart after which the run gets further than before is paid back: only a role that keeps
    dying at the same point ends the run. `settle` raises when the whole cluster is gone.

    Raises:
        ClusterLostError: nothing is left to restart a role in.
        RoleLostError: with the last reason, after `run.max_role_restarts` in vain.
    """
    in_vain, furthest = 0, -1
    while True:
        try:
            run_once(session, outcome)
            return
        except ClusterLostError:
            raise
        except (RoleLostError, WaitTimeoutError) as error:
            settle()
            progressed = session.learner_steps > furthest
            furthest = max(furthest, session.learner_steps)
            in_vain = 1 if progressed else in_vain + 1
            limit = session.config.run.max_role_restarts
            if in_vain > limit or session.stop.name is not None:
                raise RoleLostError(f"{error} (run.max_role_restarts = {limit})") from error
            outcome.role_restarts += 1
            session.counters.accounts.ended_unheard()
            outcome.point = find_point(session.directory)
            where = (
                "from the beginning: there is no checkpoint yet"
                if outcome.point is None
                else f"from learner step {outcome.point.checkpoint.learner_step:,}"
            )
            session.incident(f"{error}; all roles start again {where}")
