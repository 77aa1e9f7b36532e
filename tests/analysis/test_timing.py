"""Where the time went, against timelines made by hand: every second is known beforehand."""

import numpy as np
import pandas as pd
import pytest

from analysis.timing import WORK, actor_times, first_gradient, time_line, time_split

PER_GENERATION = 3
START = 1.7e9


def timeline(pid: int, born: float, generations: int, rng: np.random.Generator) -> tuple[list[dict], float, float]:
    """Rows of one actor as the clock goes on, the moment of its first step, and that of its first gradient step."""
    clock, rows = born, []
    first = gradient = 0.0
    for generation in range(generations):
        for index in range(PER_GENERATION):
            row: dict = {"host": "here", "actor_pid": pid, "switch_seconds": None, "wait_seconds": None}
            if index == 0:
                switch = rng.uniform(1, 2)
                clock += switch
                if generation == 0:
                    row["startup_seconds"] = switch
                    first = clock
                else:
                    row |= {"switch_seconds": switch, "wait_seconds": 0.25 * switch}
            worked = WORK if index == PER_GENERATION - 1 else WORK[:3]
            row |= {f"{part}_seconds": rng.uniform(0.1, 1) for part in worked}
            if not rows:
                gradient = clock + row["env_seconds"] + row["policy_seconds"]
            clock += sum(row[f"{part}_seconds"] for part in worked)
            rows.append({**row, "wall_time": clock})
    return rows, first, gradient


@pytest.fixture(scope="module")
def run() -> tuple[list[dict], list[tuple[int, float, float]], float]:
    rng = np.random.default_rng(3)
    rows, actors, gradients = [], [], []
    for pid, born in ((40, START + 0.5), (41, START), (50, START + 60)):
        own, first, gradient = timeline(pid, born, 6, rng)
        rows += own
        actors.append((pid, first, own[-1]["wall_time"]))
        gradients.append(gradient)
    rng.shuffle(rows)
    return rows, sorted(actors, key=lambda actor: actor[1]), min(gradients)


def test_an_actors_columns_fill_its_time(run) -> None:
    rows, actors, gradient = run
    found = actor_times(rows)
    assert [actor.pid for actor in found] == [pid for pid, _, _ in actors]
    for actor, (_, first, last) in zip(found, actors, strict=True):
        np.testing.assert_allclose([actor.began, actor.ended], [first, last], atol=1e-5, rtol=0)
        assert actor.seconds == pytest.approx(last - first, abs=1e-5)
    assert first_gradient(rows) == pytest.approx(gradient, abs=1e-5)


def test_a_column_that_lost_time_is_seen(run) -> None:
    rows, actors, _ = run
    ends = [min(row["wall_time"] for row in rows if row["actor_pid"] == pid) for pid, _, _ in actors]
    for column in ("learner_seconds", "switch_seconds", "evaluation_seconds"):
        # An actor's first step is told by its first row, which therefore stays as it is.
        dropped = [row if row["wall_time"] in ends else {**row, column: 0.0} for row in rows]
        assert all(a.seconds < 0.97 * (a.ended - a.began) for a in actor_times(dropped))


def test_the_split_is_the_sum_of_the_columns(run) -> None:
    rows, _, _ = run
    table = pd.DataFrame(rows).groupby("actor_pid").sum(numeric_only=True).sum()
    split = time_split(rows)
    for part in WORK:
        assert split[part] == pytest.approx(table[f"{part}_seconds"])
    assert split["start-up"] == pytest.approx(table.startup_seconds)
    assert split["waiting"] == pytest.approx(table.wait_seconds)
    assert split["waiting"] + split["switch"] == pytest.approx(table.switch_seconds)
    halves = [time_split(part) for part in (rows[:20], rows[20:])]
    assert {name: sum(half[name] for half in halves) for name in split} == pytest.approx(split)


def test_one_line_of_shares() -> None:
    split = {"learner": 62.0, "policy": 25.4, "env": 12.2, "switch": 0.4, "waiting": 0.0}
    assert time_line(split) == "time: learner 62 %  policy 25 %  env 12 %"
    assert time_line(split, 1) == "time: learner 62 %"
    assert time_line(time_split([])) == "time: ?"
