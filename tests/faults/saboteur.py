"""The real launch with one planted fault: ``python -m tests.faults.saboteur FAULT ARGUMENTS-OF-LAUNCH``.

Each fault replaces one function by one that does its harm at an exact call and is otherwise the original. Nothing in
the product knows of it. Faults of a member's own process travel as a subclass of its trainable.
"""

import contextlib
import functools
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pbt.pipeline
import pbt.population
import pbt.recovery
import pbt.training
from pbt.manifest import Population
from pbt.member import PairMember
from pbt.population import PairPopulation
from pbt.store import StateStore

PAIR = "SYNA/SYNB"
DRIVER = "SABOTEUR_DRIVER_PID"
RAYLET = "SABOTEUR_RAYLET_PID"


def die() -> None:
    """End this process at once, as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def around(owner: Any, name: str, harm: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``harm``, whose first argument is the original."""
    setattr(
        owner,
        name,
        functools.partialmethod(_call, harm, getattr(owner, name))
        if isinstance(owner, type)
        else functools.partial(harm, getattr(owner, name)),
    )


def _call(self: Any, harm: Callable[..., Any], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return harm(original, self, *args, **kwargs)


def before_the_first_barrier() -> None:
    """The first result of the run is in; no generation is committed."""

    def harm(original: Any, self: PairPopulation, *args: Any) -> None:
        original(self, *args)
        die()

    around(PairPopulation, "report", harm)


class DiesInASave(PairMember):
    """Kills the driver and itself half way through writing the state of a generation."""

    def step(self) -> dict[str, Any]:
        """One generation, whose save ends in the middle."""

        def half(original: Any, path: Path, content: bytes) -> None:
            torn = path.parent.name == "states"
            original(path, bytes(content)[: len(content) // 2] if torn else content)
            if torn:
                os.kill(int(os.environ[DRIVER]), signal.SIGKILL)
                die()

        around(Path, "write_bytes", half)
        return super().step()


def inside_a_save() -> None:
    """A member's state is half written."""
    os.environ[DRIVER] = str(os.getpid())
    pbt.training.PairMember = DiesInASave


def between_save_and_commit() -> None:
    """All members of a pair are saved and journaled; the manifest is not written."""

    def harm(original: Any, self: Population, path: Path) -> None:
        if self.generation:
            die()
        original(self, path)

    around(Population, "write", harm)


def at_a_barrier() -> None:
    """A manifest is written; old states are not swept and no ticket is handed out."""

    def harm(original: Any, self: StateStore, *args: Any) -> None:
        die()

    around(StateStore, "discard", harm)
    around(StateStore, "sweep", lambda original, self, *args: None)  # a resume would die of it at once


def in_the_backtest() -> None:
    """Tasks of the backtest run."""
    import ray

    def harm(original: Any, *args: Any, **kwargs: Any) -> Any:
        get = ray.get

        def first(references: Any, **options: Any) -> Any:
            found = get(references, **options)
            die()
            return found

        ray.get = first
        return original(*args, **kwargs)

    around(pbt.pipeline, "backtest", harm)


def in_the_report() -> None:
    """All frames are there; the report is half written."""
    import analysis.report

    def harm(original: Any, path: Path, text: str) -> None:
        path.with_name(f".{path.name}.tmp").write_text(text[: len(text) // 2])
        die()

    around(analysis.report, "write_text", harm)


def a_member_hangs() -> None:
    """The process of the second member that reports is stopped, without a word to anyone."""
    seen: list[int] = []

    def harm(original: Any, self: PairPopulation, member: str, result: dict[str, Any]) -> None:
        seen.append(result["iterations"][0]["actor_pid"])
        if len(seen) == 2:
            os.kill(seen[-1], signal.SIGSTOP)
        original(self, member, result)

    around(PairPopulation, "report", harm)


def a_state_rots() -> None:
    """The commit of generation 2 is followed by damage to a state that a member starts generation 3 from."""
    rotten: list[str] = []

    def harm(original: Any, self: Population, path: Path) -> None:
        original(self, path)
        newest = path.parent.name == "state"
        if newest and self.pair == PAIR and self.generation == 2 and not rotten:
            rotten.append(str(self.members["m02"].state))
            flip(path.parent.parent / "members" / "states" / f"{rotten[0]}.pt")

    around(Population, "write", harm)


def flip(path: Path) -> None:
    """Invert some bytes in the middle of a file: more than the padding between two tensors."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 256] = bytes(byte ^ 0xFF for byte in content[middle : middle + 256])
    path.write_bytes(content)


def the_disk_fills() -> None:
    """Right after the first commit somebody else's file takes all that the disk has left."""
    filled: list[bool] = []

    def harm(original: Any, self: Population, path: Path) -> None:
        original(self, path)
        if path.parent.name == "state" and self.generation and not filled:
            filled.append(True)
            with contextlib.suppress(OSError), open(path.parents[2] / "ballast", "wb", buffering=0) as stream:
                for size in (1 << 20, 1 << 12, 1):
                    with contextlib.suppress(OSError):
                        while stream.write(bytes(size)):
                            pass

    around(Population, "write", harm)


def a_node_goes() -> None:
    """The first commit is followed by the death of the raylet that the environment names."""
    gone: list[int] = []

    def harm(original: Any, self: Population, path: Path) -> None:
        original(self, path)
        if path.parent.name == "state" and self.generation and not gone:
            gone.append(int(os.environ[RAYLET]))
            os.kill(gone[0], signal.SIGKILL)

    around(Population, "write", harm)


def an_interrupt_is_lost() -> None:
    """The first manifest is written and SIGINT comes in a weakref's callback: Python drops what its handler raises."""

    def harm(original: Any, self: Population, path: Path) -> None:
        original(self, path)
        if self.pair == PAIR:
            passing = {PAIR}
            watched = weakref.ref(passing, lambda _: time.sleep(120))
            del passing
            assert watched() is None

    around(Population, "write", harm)


class Poisoned(PairMember):
    """One member of each pair, whose weights turn NaN before its second generation."""

    def step(self) -> dict[str, Any]:
        """One generation."""
        place = self._ticket
        if (place["member"], place["generation"]) == ("m01", 1):
            assert self._start is not None
            self._start = {n: t * torch.nan if n.startswith("module/") else t for n, t in self._start.items()}
        return super().step()


def a_loss_is_nan() -> None:
    """A member of each pair trains on NaN."""
    pbt.training.PairMember = Poisoned


class OnOtherCode(PairMember):
    """Finds that the driver's sources are others than its own."""

    def setup(self, config: Any, standard: Any = None, **given: Any) -> None:
        """Build the algorithm."""
        super().setup(config, standard=(standard[0], "0123456789ab"), **given)


def a_node_differs() -> None:
    """The nodes that train have other sources than the driver, as when a cluster was updated under a run."""
    pbt.training.PairMember = OnOtherCode


FAULTS = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        before_the_first_barrier,
        inside_a_save,
        between_save_and_commit,
        at_a_barrier,
        in_the_backtest,
        in_the_report,
        a_member_hangs,
        a_state_rots,
        the_disk_fills,
        a_node_goes,
        an_interrupt_is_lost,
        a_loss_is_nan,
        a_node_differs,
    )
}

if __name__ == "__main__":
    from pbt.launch import main
    from tests.faults import saboteur  # classes that travel must not live in __main__

    saboteur.FAULTS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
