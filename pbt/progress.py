"""What a person sees while a run trains: a live table in a terminal, one plain line per generation elsewhere."""

import statistics
import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from analysis.timing import time_line, time_split
from pbt.decisions import Decision
from pbt.population import PairPopulation
from rayconf.run_config import RunConfig

REPAINTS_PER_SECOND = 4
NAMED_PARTS = 4
"""Parts of the time that one plain line has room for."""


class ProgressView:
    """Per pair: generation, best and median fitness, hyperparameters of the best; speed, time left, where time goes."""

    def __init__(
        self, run: RunConfig, populations: Mapping[str, PairPopulation], console: Console, window: str = ""
    ) -> None:
        self._run, self._populations, self._console, self._window = run, populations, console, window
        self._rows: dict[str, tuple[float, float, Mapping[str, float]]] = {}
        done = sum(p.generation * len(p.committed.members) for p in populations.values())
        self._total = run.pbt.generations * sum(len(p.committed.members) for p in populations.values()) - done
        self._finished = 0
        self._failures = 0
        self._steps = 0
        self._seconds: Counter[str] = Counter()
        self._began = time.monotonic()
        self._first: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=REPAINTS_PER_SECOND)
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def __call__(self, event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        """Listen to the scheduler."""
        if event == "result":
            if self._first is None:  # the first generation started with the first actor; count from its result
                self._first = time.monotonic()
            self._finished += 1
            run = self._run
            self._steps += run.pbt.interval * run.env_steps_per_update
        elif event == "failure":
            self._failures += 1
        elif event == "barrier":
            if population.complete:  # perhaps before its time
                unused = self._run.pbt.generations - population.generation
                self._total -= unused * len(population.committed.members)
            self._settle(population)
            if self._live is None:
                self._console.print(self._line(population), highlight=False, soft_wrap=True)

    def _settle(self, population: PairPopulation) -> None:
        rows = [row for row in population.journaled if row.get("fitness") is not None]
        best = max(rows, key=lambda row: (row["fitness"], row["member"]))
        values = {name: best[f"hp_{name}"] for name in self._run.search}
        self._seconds.update(time_split(population.journaled))
        self._rows[population.pair] = (best["fitness"], statistics.median(r["fitness"] for r in rows), values)

    @property
    def _speed(self) -> float:
        return self._steps / max(1e-9, time.monotonic() - self._began)

    def _left(self) -> str:
        if not self._finished:
            return "?"
        seconds = (time.monotonic() - self._began) * (self._total - self._finished) / self._finished
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def _line(self, population: PairPopulation) -> str:
        best, median, values = self._rows[population.pair]
        numbers = ", ".join(f"{name} {value:.2g}" for name, value in values.items())
        return (
            f"{self._window}{population.pair}  generation {population.generation}/{self._run.pbt.generations}  "
            f"fitness best {best:+.2f} median {median:+.2f}  ({numbers})  "
            f"{self._speed / 1e3:.0f}k steps/s  {self._left()} left  {time_line(self._seconds, NAMED_PARTS)}"
        )

    def _table(self) -> Table:
        failures = f"  {self._failures} retried" if self._failures else ""
        table = Table(
            title=f"{self._run.name or ''}  {self._window}{self._speed / 1e3:.0f}k steps/s  {self._left()} left"
            f"{failures}",
            title_justify="left",
            caption=time_line(self._seconds) if self._seconds else None,
            caption_justify="left",
        )
        table.add_column("pair")
        for column in ("generation", "best fitness", "median"):
            table.add_column(column, justify="right")
        table.add_column("hyperparameters of the best")
        for pair, population in self._populations.items():
            generation = f"{population.generation}/{self._run.pbt.generations}"
            if pair in self._rows:
                best, median, values = self._rows[pair]
                numbers = "  ".join(f"{name} {value:.2g}" for name, value in values.items())
                table.add_row(pair, generation, f"{best:+.2f}", f"{median:+.2f}", numbers)
            else:
                table.add_row(pair, generation, "", "", "")
        return table
