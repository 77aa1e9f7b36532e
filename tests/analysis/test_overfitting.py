import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analysis import overfitting
from analysis.frames import KEYS, frame_block, validation_schema, write_frame
from analysis.metrics import sharpe
from benchmarks.verdicts import null_overfitting
from tests.analysis.frames_made import make_run

RNG = np.random.default_rng(6)


def slow_probability(streams: np.ndarray, pieces: int) -> float:
    """Steps of the paper, one split at a time."""
    parts = np.array_split(streams, pieces)
    below = []
    for chosen in itertools.combinations(range(pieces), pieces // 2):
        inside = np.concatenate([parts[piece] for piece in chosen])
        outside = np.concatenate([parts[piece] for piece in range(pieces) if piece not in chosen])
        first, second = ([sharpe(column) for column in half.T] for half in (inside, outside))
        rank = 1 + sum(value < second[int(np.argmax(first))] for value in second)
        share = rank / (streams.shape[1] + 1)
        below.append(1.0 if share < 0.5 else 0.5 if share == 0.5 else 0.0)
    return float(np.mean(below))


@pytest.mark.parametrize(("sessions", "count", "pieces"), [(160, 7, 8), (240, 12, 8), (64, 5, 6)])
def test_it_is_the_papers_procedure(sessions: int, count: int, pieces: int) -> None:
    streams = RNG.standard_t(4, (sessions - sessions % pieces, count)) * 0.01
    assert overfitting.probability_of_overfitting(streams, pieces) == pytest.approx(slow_probability(streams, pieces))
    logits = overfitting.overfitting_logits(streams, pieces)
    assert len(logits) == len(list(itertools.combinations(range(pieces), pieces // 2)))


def test_without_skill_it_is_one_half_on_average() -> None:
    values = null_overfitting(120, 400, 32, 0.6)
    assert values.mean() == pytest.approx(0.5, abs=4 * values.std() / np.sqrt(len(values)))
    assert values.std() > 0.1  # one archive alone says little


def test_planted_skill_is_found_again_and_scale_does_not_matter() -> None:
    streams = RNG.normal(size=(800, 40)) * 0.01
    streams[:, 7] += 0.003
    assert overfitting.probability_of_overfitting(streams) < 0.01
    scaled = streams * RNG.uniform(0.1, 5, 40)
    assert overfitting.probability_of_overfitting(scaled) == overfitting.probability_of_overfitting(streams)
    # A trend that turns in the middle makes the best of one half the worst of the other.
    turning = RNG.normal(size=(800, 40)) * 0.01
    drift = np.where(np.arange(800) < 400, 1, -1)[:, None] * RNG.normal(size=40) * 0.01
    assert overfitting.probability_of_overfitting(turning + drift, 2) > 0.95


def test_copies_and_short_spans() -> None:
    stream = RNG.normal(size=(320, 1))
    assert overfitting.probability_of_overfitting(np.repeat(stream, 5, axis=1)) == 0.5
    assert overfitting.archive_overfitting(stream) is None
    assert overfitting.archive_overfitting(RNG.normal(size=(31, 4))) is None
    with pytest.raises(ValueError, match="at least 2 over 32"):
        overfitting.overfitting_logits(stream)
    places = overfitting.spaced(1001)
    assert (len(places), places[0], places[-1]) == (200, 0, 1000)
    assert set(np.diff(places)) == {5, 6} or set(np.diff(places)) == {5}


def test_arms_are_read_from_finished_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = overfitting.arms_overfitting([run, run])
    assert [(one.run, one.arm, one.pair, one.snapshots, one.sessions) for one in found[:2]] == [
        ("made", "pbt", "AAA/BBB", 12, 260),
        ("made", "pbt", "CCC/DDD", 12, 260),
    ]
    assert found[:2] == found[2:]
    assert all(0 <= (one.probability or 0) <= 1 for one in found)
    # A ruined account has no ratio to rank and was never eligible.
    dates = np.arange(np.datetime64("2020-01-01"), np.datetime64("2020-01-01") + 40).astype("datetime64[us]")
    broken = np.append(np.zeros(39), np.nan)
    where = {"window": 0, "pair": "A/B", "member": "m00"}
    blocks = [
        frame_block(validation_schema(), {**where, "generation": generation}, {"date": dates, "net_return": values})
        for generation, values in ((1, RNG.normal(size=40)), (2, broken), (3, RNG.normal(size=40)))
    ]
    table = write_frame(pa.concat_tables(blocks), validation_schema(), KEYS["validation"], tmp_path / "v.parquet")
    assert overfitting.snapshot_streams(table)[0, "A/B"].shape == (40, 2)


def test_the_random_arm_calibrates() -> None:
    assert overfitting.calibrated(0.5, [0.3, 0.5]) == pytest.approx(0.1 / (0.1 * np.sqrt(2) * np.sqrt(1.5)))
    rng = np.random.default_rng(1)
    scores = [overfitting.calibrated(values[0], values[1:]) for values in rng.normal(size=(2000, 20))]
    assert np.std(scores) == pytest.approx(1.0, abs=0.12)
