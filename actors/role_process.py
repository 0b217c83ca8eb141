"""What the process of a role that plays does first; called by the shells of actor and evaluator."""

from __future__ import annotations

import os

from qfleet.common import user_code
from qfleet.common.plan_json import PlanT, plan_from_json


def enter_role(kind: type[PlanT], plan_json: str, import_paths: list[str]) -> PlanT:
    """What a role that plays does first: import paths of the driver, and its plan."""
    user_code.enter(import_paths)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    return plan_from_json(kind, plan_json)
