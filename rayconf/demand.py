"""Asking a cluster's autoscaler for room."""

from collections.abc import Mapping
from typing import Any


class Demand:
    """Room that the autoscaler is asked for: placement groups that nobody will use.

    Ray's own ``request_resources`` stays in force when the process that called it dies, and a cluster that nobody
    uses would then cost money until somebody looks. Placement groups vanish with their driver. Ray must be joined.

    Args:
        bundle: What one unit of the room must hold on one node, such as ``{"CPU": 1}``.
    """

    def __init__(self, bundle: Mapping[str, float]) -> None:
        self._bundle = dict(bundle)
        self._groups: list[Any] = []

    def ask(self, units: int) -> None:
        """Ask for this many units more than the cluster has; fewer than before takes the rest back.

        A group that found its place has shown that the room is there, and leaves it at once to whoever wants it.
        """
        from ray.util import placement_group, placement_group_table, remove_placement_group

        states = {name: group["state"] for name, group in placement_group_table().items()} if self._groups else {}
        waiting = [group for group in self._groups if states.get(group.id.hex()) != "CREATED"][:units]
        for group in self._groups:
            if group not in waiting:
                remove_placement_group(group)
        self._groups = waiting
        while len(self._groups) < units:
            self._groups.append(placement_group([self._bundle]))

    def close(self) -> None:
        """Ask for nothing any more."""
        self.ask(0)
