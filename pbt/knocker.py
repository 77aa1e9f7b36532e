"""Knocking at the nodes of a cluster, since one that loses power or network says nothing, and Ray waits a minute."""

import socket
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

EVERY = 3.0
"""Seconds between two rounds."""
PATIENCE = 2.0
"""Seconds in which a node must take a connection; its kernel does that, however busy it is."""
MISSES = 2
"""Rounds in a row without an answer after which a node counts as silent."""
AT_ONCE = 32

Place = tuple[str, int]
"""Address and port of a node's raylet."""


class Knocker:
    """Rounds of knocks in a thread of their own, from ``watch`` to ``close``."""

    def __init__(self) -> None:
        self._places: Mapping[str, Place] = {}
        self._misses: Counter[str] = Counter()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, places: Mapping[str, Place]) -> None:
        """Knock at these nodes, by Ray's name, from the next round on."""
        self._places = dict(places)
        if self._thread is None:
            self._thread = threading.Thread(target=self._rounds, name="knocker", daemon=True)
            self._thread.start()

    def silent(self) -> set[str]:
        """Nodes that did not answer in the last rounds."""
        return {name for name, misses in self._misses.copy().items() if misses >= MISSES}

    def close(self) -> None:
        """Knock no more."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(2 * PATIENCE)

    def _rounds(self) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while not self._closed.wait(EVERY):
                places = dict(self._places)
                answers = dict(zip(places, pool.map(answers_at, places.values()), strict=True))
                self._misses = Counter({name: self._misses[name] + 1 for name, came in answers.items() if not came})


def answers_at(place: Place) -> bool:
    """Whether a node takes a connection."""
    try:
        socket.create_connection(place, timeout=PATIENCE).close()
    except OSError:
        return False
    return True
