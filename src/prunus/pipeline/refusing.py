"""A plan that does not verify: the groups that break the model are found, left whole, and listed."""

from __future__ import annotations

from torch import nn

from ..errors import VerificationError
from ..graph import plan_from
from ..surgery import apply
from ..types import Cut, Graph, Plan, Refusal


def apply_what_holds(model: nn.Module, graph: Graph, plan: Plan) -> tuple[nn.Module, Plan, list[Refusal]]:
    """Apply the largest part of a plan that verifies, found by trying each coupled set of groups alone.

    Returns:
        The cut model, the plan that was applied, and the refused groups with the reason.

    Raises:
        VerificationError: the groups verify one by one, but not together.
    """
    keep: dict[str, tuple[int, ...]] = {}
    refused: list[Refusal] = []
    for together in _sets(graph, plan.cuts):
        part = {cut.group: cut.keep for cut in together}
        try:
            apply(model, plan_from(graph, part, plan.criterion))
        except VerificationError as error:
            refused += [
                Refusal(name, f"cutting it changes the model: {error}", remedy="protect it with keep=") for name in part
            ]
        else:
            keep.update(part)
    held = plan_from(graph, keep, plan.criterion)
    return apply(model, held), held, refused


def _sets(graph: Graph, cuts: tuple[Cut, ...]) -> list[list[Cut]]:
    """Cuts of groups that must shrink together stand in one list."""
    lists: list[list[Cut]] = []
    left = {cut.group: cut for cut in cuts}
    for coupled in graph.coupled:
        members = [left.pop(name) for name in coupled.steps if name in left]
        if members:
            lists.append(members)
    return lists + [[cut] for cut in left.values()]
