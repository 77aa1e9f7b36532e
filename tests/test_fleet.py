"""The simulation of fleets against what can be said without one, and its command on measured costs."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import fleet, workers
from benchmarks.fleet_costs import driver_costs, measure_driver, start_seconds
from benchmarks.fleet_model import DRIVER_REQUESTS, SLOT_GETS, SLOT_PUTS, VISITS, Costs, Fleet, Outcome, simulate

TIMES = np.random.default_rng(3).uniform(0.5, 1.5, 200)
FREE = Costs(TIMES, turn=0.0)
"""Nothing but training takes time."""


def whole(outcome: Outcome) -> float:
    return sum(outcome.buckets.values())


def test_one_slot_takes_the_sum_of_all_times() -> None:
    found = simulate(Fleet(1, 1, members=6, per_pair=3, generations=5), FREE)
    assert found.seconds.shape == (5, 6)
    assert found.wall == pytest.approx(found.seconds.sum())
    assert found.efficiency == pytest.approx(1)
    costs = dataclasses.replace(FREE, rebuilds=np.array([0.2]), pointer=0.05, round_trip=0.01, visit=0.003)
    found = simulate(Fleet(1, 1, members=6, per_pair=3, generations=5, storage=0.1), costs)
    # a step after the first is rebuilt, and restored from the second generation on
    steps, first = 5 * 6, 6
    visits = VISITS * steps - first - 1
    handling = (0.2 + SLOT_GETS * 0.1) * (steps - 1) + 0.01 * visits + (0.05 + SLOT_PUTS * 0.1) * steps
    driver = 0.003 * visits + 5 * 2 * DRIVER_REQUESTS * 0.1
    assert found.wall == pytest.approx(found.seconds.sum() + handling + driver)


def test_with_a_slot_for_everyone_a_generation_takes_its_slowest_member() -> None:
    found = simulate(Fleet(3, 4, members=12, per_pair=12, generations=6), FREE)
    assert found.wall == pytest.approx(found.seconds.max(axis=1).sum())
    # pairs do not wait for one another
    found = simulate(Fleet(3, 4, members=12, per_pair=4, generations=6), FREE)
    pairs = found.seconds.reshape(6, 3, 4).max(axis=2).sum(axis=0)
    assert found.wall == pytest.approx(pairs.max())
    # and a pair that is alone is given its slots one turn after the other
    slow = simulate(
        Fleet(3, 4, members=12, per_pair=12, generations=6), dataclasses.replace(FREE, turn=0.1, pointer=9.0)
    )
    assert slow.wall > found.wall


def test_a_driver_that_everything_passes_serves_one_over_its_cost() -> None:
    cost = 0.002
    busy = Costs(0.01 * TIMES, visit=cost, barrier_per_member=VISITS * cost)
    found = simulate(Fleet(20, 16, members=640, per_pair=8, generations=6), busy)
    assert found.bottleneck == "driver"
    assert found.utilisation == pytest.approx(1, abs=0.01)
    assert len(found.results) / found.wall == pytest.approx(
        1 / (2 * VISITS * cost), rel=0.06
    )  # the first are restored not
    grown = dataclasses.replace(busy, visit=0.0, visit_per_trial=cost / 640 / 2, visit_per_slot=cost / 320 / 2)
    assert simulate(Fleet(20, 16, 640, 8, 6), grown).wall == pytest.approx(found.wall)


def test_every_second_of_every_slot_is_in_one_bucket() -> None:
    costs = Costs(TIMES, 0.1 * TIMES, 5 * TIMES, visit=1e-3, barrier_per_member=1e-3, pointer=0.02, round_trip=0.001)
    for terms in (
        {},
        {"losses_per_hour": 200.0, "detection": 2.0, "replacement": 8.0, "joining": 3.0, "storage": 0.05},
    ):
        found = simulate(Fleet(8, 4, members=72, per_pair=8, generations=10, **terms), costs)
        assert min(found.buckets.values()) >= 0
        assert whole(found) == pytest.approx(32 * found.wall)
        assert found.buckets["busy"] == pytest.approx(found.seconds.sum())  # what lasts, and nothing twice
        assert (found.losses > 3) == bool(terms)
        assert (found.buckets["node loss"] > 0) == bool(terms)
        assert len(found.results) >= found.seconds.size


def test_the_same_seed_gives_the_same_run() -> None:
    costs = Costs(TIMES, 0.1 * TIMES, 5 * TIMES, visit=1e-3)
    where = Fleet(4, 4, members=40, per_pair=8, generations=6, losses_per_hour=100, detection=2, replacement=8)
    one, same, other = (simulate(where, costs, seed) for seed in (1, 1, 2))
    assert one.buckets == same.buckets
    assert np.array_equal(one.results, same.results)
    assert one.wall != other.wall


def test_a_lost_node_costs_at_most_the_generation_in_progress() -> None:
    slots, seen = 4, 0
    for seed in range(20):
        where = Fleet(2, slots, members=16, per_pair=8, generations=8, losses_per_hour=120.0)
        found = simulate(where, FREE, seed)
        # detected and replaced at once, so that nothing but work is lost
        assert found.buckets["busy"] == pytest.approx(found.seconds.sum())
        assert found.buckets["node loss"] <= found.losses * slots * TIMES.max() + 1e-9
        assert found.buckets["node loss"] > 0 or found.losses == 0
        seen += found.losses
    assert seen > 5


def test_the_generation_that_is_said_to_be_needed_keeps_the_slots_busy() -> None:
    costs = dataclasses.replace(FREE, visit=0.001, rebuilds=np.array([0.05]))
    where = Fleet(5, 16, members=160, per_pair=8, generations=8)
    needed = fleet.needed_seconds(where, costs, seed=0)
    enough, short = (simulate(where, fleet.scaled(costs, f * needed)).steady for f in (1.1, 0.7))
    assert enough >= fleet.BUSY > short
    lockstep = Fleet(1, 2, members=2, per_pair=2, generations=8)  # waits for the slower of two, however long they train
    assert fleet.needed_seconds(lockstep, FREE, seed=0) == np.inf


def test_ratios_of_a_round_divide_workers_by_loops() -> None:
    speeds = {("loop", 1): 50.0, ("loop", 2): 80.0, ("population", 1): 40.0, ("population", 2): 60.0}
    rows = [
        {"round": r, "arm": arm, "workers": n, "slots": n, "steps_per_second": (1 + r) * speed, "load": 1.0}
        for r in range(3)
        for (arm, n), speed in speeds.items()
    ]
    found = workers.ratios(pd.DataFrame(rows))
    np.testing.assert_allclose(found[["loop", "population", "figure"]], [[1.6, 1.5, 1.5 / 1.6]] * 3)
    assert "not every worker" not in workers.report(pd.DataFrame(rows))
    rows[3]["slots"] = 1
    assert "round 1: not every worker trained" in workers.report(pd.DataFrame(rows))


@pytest.mark.launch
def test_fleet_is_fed_by_real_runs(undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    ray.shutdown()
    driver = measure_driver(sizes=((20, 1), (40, 2)))
    assert (driver[["thread_ms_per_result", "barrier_ms_per_member", "round_trip_ms", "work_ms"]] > 0).all(axis=None)
    assert (driver.switch_ms > driver.wait_ms).all()
    assert driver_costs(driver).visit_seconds(40, 2) > 0
    assert start_seconds(driver, 10_000) >= start_seconds(driver, 20) > 0
    driver.to_parquet(tmp_path / "driver.parquet")
    frames = []
    for out in (tmp_path / "one", tmp_path / "two"):
        fed = ["--run", str(undisturbed), "--driver", str(tmp_path / "driver.parquet")]
        assert fleet.main([*fed, "--nodes", "1", "10", "--generations", "3", "--out", str(out)]) == 0
        frames.append(pd.read_parquet(out / "fleet.parquet"))
    rows, again = frames
    pd.testing.assert_frame_equal(rows, again)
    assert list(zip(rows.nodes, rows.slots, rows.members, strict=True)) == [
        *((1, 16, 32), (10, 160, 320)),
        *((1, 1, 2), (10, 10, 20)),
        (10, 160, 160),
    ]
    np.testing.assert_allclose(rows.filter(like="share_").sum(axis=1), 1)
    np.testing.assert_allclose(rows.share_busy, rows.efficiency)
    checks = pd.read_parquet(tmp_path / "one" / "fleet_validation.parquet")
    assert list(checks.run) == ["tiny", "thin members", "thin members"]
    assert (checks[["real_seconds", "predicted_seconds"]] > 0).all(axis=None)
    printed = capsys.readouterr().out
    assert "bottleneck" in printed


def test_fleet_names_the_file_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fleet.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "progress.parquet is missing" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.launch
def test_workers_are_measured_beside_plain_loops(tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    workers.main(["--quick", "--rounds", "1", "--seconds", "0.1", "--out", str(tmp_path)])
    runs = pd.read_parquet(tmp_path / "workers.parquet")
    assert sorted(zip(runs.arm, runs.workers, strict=True)) == [
        *(("loop", 1), ("loop", 2)),
        *(("population", 1), ("population", 2)),
    ]
    assert (runs.steps_per_second > 0).all()
    assert (runs.slots <= runs.workers).all()
