"""Where every transition of a run went, from the roles' counters; pure, called by the session."""

from __future__ import annotations

from qfleet.fleets.fleet import FleetReport
from qfleet.run_files.summary import Accounting


def account(
    report: FleetReport, produced_base: int, gone_produced: int, rolled_back: int
) -> Accounting:
    """The identity produced = resident + evicted + rejected + lost + in flight.

    Args:
        report: The counters of all living roles.
        produced_base: Transitions that earlier processes or restarts of the run produced.
        gone_produced: What actors that died had told of.
        rolled_back: Transitions that a restart from the last cut undid: they are lost.

    An actor that died may have delivered more than it had told of, or less; what it had told of and
    did not arrive is lost too.
    """
    resident = sum(s.size for s in report.shards)
    evicted = sum(s.evicted for s in report.shards)
    rejected = sum(s.rejected_transitions for s in report.shards)
    in_flight = sum(a.unsent for a in report.actors)
    arrived = resident + evicted + rejected
    produced = produced_base + gone_produced + sum(a.produced for a in report.actors)
    lost = rolled_back
    if gone_produced:
        produced = max(produced, arrived + in_flight + rolled_back)
        lost = produced - arrived - in_flight
    return Accounting(
        produced=produced,
        resident=resident,
        evicted=evicted,
        rejected=rejected,
        lost=lost,
        in_flight=in_flight,
    )
