"""A user's own ``analysis.py`` beside the command must not stand in for ours."""

from importlib.util import find_spec
from pathlib import Path

from rayconf.errors import UserError

ROOMS = ("rayconf", "envs", "algos", "pbt", "analysis")

HOME = Path(__file__).resolve().parents[1]
"""The folder that holds the five rooms: the checkout, or ``site-packages``."""


def check_origins() -> None:
    """Check that all five rooms would be imported from one installation; imports none of them.

    ``python -m`` looks into the current folder first, so a file there named like a room wins. Call this
    before importing any room other than ``rayconf``.

    Raises:
        UserError: naming the file or folder that shadows a room, and the cure.
    """
    for room in ROOMS:
        spec = find_spec(room)
        if spec is None:
            raise UserError(f"{room}: missing from the installation in {HOME}; install pairpbt again")
        # A folder without __init__.py has no origin; it never wins over a package further down the path.
        found = Path(spec.origin).resolve() if spec.origin else Path(next(iter(spec.submodule_search_locations or [])))
        if found != HOME / room / "__init__.py":
            raise UserError(
                f"{found} shadows the package {room!r} of pairpbt in {HOME}; start with `python -P -m pbt.launch` "
                "or the console script `pairpbt`, or from another folder"
            )
