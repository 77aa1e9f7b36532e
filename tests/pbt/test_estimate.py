"""Hours and cost before a run: the arithmetic, and a measurement by the real command."""

import re
from pathlib import Path

import pytest

from pbt.estimate import Pace, estimate_lines, training_hours
from rayconf import load_config
from rayconf.plan import plan
from rayconf.session import Machine
from tests.commands import launch, tiny


@pytest.mark.parametrize(
    ("pairs", "slots", "rounds"),
    [
        ("[A/B]", 1, 8),
        ("[A/B]", 3, 3),  # the third round has two members: a lone pair waits for it
        ("[A/B,C/D,E/F]", 3, 8),  # other pairs fill the gap
        ("[A/B,C/D]", 16, 1),
    ],
)
def test_a_lone_pair_needs_whole_rounds(pairs: str, slots: int, rounds: float) -> None:
    run = load_config("demo", assignments=[f"data.pairs={pairs}"])
    hours = training_hours(run, plan(run, Machine(slots)), Pace(1e4, 36.0, slots), slots)
    assert hours == pytest.approx(rounds * run.pbt.generations / 100)


def test_prices_are_of_what_members_occupy() -> None:
    settings = ["resources.cpus_per_member=2", "resources.usd_per_cpu_hour=0.05", "resources.usd_per_gpu_hour=0.6"]
    run = load_config("demo", assignments=settings)
    cluster = Machine(8, nodes=((8.0, 0.0),), joined=True)
    pace = Pace(1e4, 450.0, 4)  # 8 generations an hour
    speed, few, many = estimate_lines(run, plan(run, cluster), pace)
    assert "10,000 steps/s a slot, measured on 4 members side by side" in speed
    # 16 members x 8 generations x 450 s are 16 member-hours, of two CPUs each, wherever they are spent.
    assert "4.0 h of training on 4 slots, 32.00 CPU-hours; about $1.60" in few
    assert "60 min of training on 16 slots, 32.00 CPU-hours; about $1.60" in many
    shared = load_config("demo", assignments=[*settings, "resources.gpus_per_member=0.25"])
    (_, line) = estimate_lines(shared, plan(shared, Machine(8, 1)), pace)
    assert "4.00 GPU-hours; about $2.40" in line
    unpriced = load_config("demo")
    assert "set resources.usd_per_cpu_hour" in estimate_lines(unpriced, plan(unpriced, Machine(4)), pace)[1]


def test_a_measured_dry_run_times_real_updates_and_writes_nothing(tmp_path: Path) -> None:
    done = launch(*tiny(tmp_path, "--dry-run", "--measure", "--set", "resources.cpus=2"))
    assert done.returncode == 0, done.stderr
    (speed,) = re.findall(r"^speed +([\d,]+) steps/s a slot, measured on 2 members side by side$", done.stdout, re.M)
    assert int(speed.replace(",", "")) > 100
    assert re.search(r"^time +about .* on 2 slots, [\d.]+ CPU-hours; set resources.usd", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
    alone = launch(*tiny(tmp_path, "--measure"))
    assert (alone.returncode, alone.stderr) == (2, "pairpbt: --measure: give it with --dry-run\n")
