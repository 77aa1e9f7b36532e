"""Knocking at nodes: one that listens, one that refuses, and one that says nothing at all."""

import socket
import threading
import time

import pytest

from pbt import knocker
from pbt.knocker import Knocker


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocker, "EVERY", 0.05)
    monkeypatch.setattr(knocker, "PATIENCE", 0.3)


def test_silence_is_told_from_an_answer(quick: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as full, socket.socket() as waiting:
        # A queue of one that somebody stands in already: its kernel takes no other connection and says nothing.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.connect(full.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as left:
            gone = left.getsockname()
        rounds = Knocker()
        try:
            rounds.watch({"there": there.getsockname(), "mute": full.getsockname(), "gone": gone})
            deadline = time.monotonic() + 30
            while rounds.silent() != {"mute", "gone"} and time.monotonic() < deadline:
                time.sleep(0.02)
            assert rounds.silent() == {"mute", "gone"}
            full.accept()[0].close()  # the queue moves on
            full.close()
            with socket.create_server(gone) as back:
                back.listen()
                while "gone" in rounds.silent() and time.monotonic() < deadline:
                    time.sleep(0.02)
                assert "gone" not in rounds.silent()
        finally:
            rounds.close()
    assert not any(thread.name == "knocker" for thread in threading.enumerate())
