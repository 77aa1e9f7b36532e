"""How long a run stood still for a lost machine, read from what Ray and the run wrote down."""

import datetime
import json
from pathlib import Path

import pandas as pd


class Loss:
    """The seconds from a machine's power cut on: the run's notice, Ray's, and every surviving slot at work again."""

    def __init__(self, run: Path, host: str, off: float, nodes: str) -> None:
        """Read the files of a finished run.

        Args:
            run: Its directory.
            host: Name of the machine.
            off: Unix time when it went.
            nodes: What ``ray list nodes --detail --format json`` printed, among other lines.
        """
        events = pd.read_parquet(run / "frames" / "events.parquet")
        self.noticed = float(events[events.kind == "node_lost"].wall_time.min()) - off
        (listed,) = (json.loads(line) for line in nodes.splitlines() if line.startswith('[{"node_id"'))
        (dead,) = (node for node in listed if node["state"] == "DEAD")
        self.dead = datetime.datetime.fromisoformat(dead["end_time_ms"]).timestamp() - off
        progress = pd.read_parquet(run / "frames" / "progress.parquet")
        after = progress[(progress.wall_time > off) & (progress.host != host)]
        retried = after[after.attempt > 1]
        self.retried = sorted({f"{row.pair} {row.member} g{row.generation}" for row in retried.itertuples()})
        firsts = after[after.wall_time > off + self.noticed].groupby(["host", "actor_pid"]).wall_time.min()
        self.slots = {f"{name}:{pid}": when - off for (name, pid), when in firsts.items()}

    def __str__(self) -> str:
        slots = "".join(f"\n  next result of {slot:24s} {seconds:6.1f} s" for slot, seconds in self.slots.items())
        return (
            f"from the power cut to\n  node_lost of the run {self.noticed:6.1f} s\n"
            f"  Ray calls the node dead {self.dead:6.1f} s{slots}\nretried: {', '.join(self.retried)}"
        )
