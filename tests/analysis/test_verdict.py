"""What a verdict says, how often it is wrong without skill, and how often it finds skill."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from analysis.frames import KEYS, evidence_schema, frame_path, read_frame, write_frame
from analysis.statistics import evidence, evidence_of, evidence_rows, weigh
from analysis.verdict import ABOVE, BARS, BELOW, IDLE, NOISE, SHORT, Difference, Evidence, judged
from benchmarks import verdicts
from benchmarks.verdicts import NULLS, SKILLS, STRONG, TESTS, World, rates
from tests.analysis.frames_made import make_run

RNG = np.random.default_rng(12)


def made(sharpe: float = 1.5, sessions: int = 1000, looks: int = 1, trials: int = 6, **baselines: float) -> Evidence:
    """Evidence on an account of a given Sharpe ratio against baselines of given ones (0 where not named)."""
    rng = np.random.default_rng(4)

    def stream(ratio: float, size: int = sessions) -> np.ndarray:
        z = rng.normal(size=size)
        return 0.01 * ((z - z.mean()) / z.std() + ratio / np.sqrt(252))

    test = {"ensemble": stream(sharpe), "survivor-1": stream(sharpe), "cash": np.zeros(sessions)}
    test |= {name: stream(baselines.get(name, 0.0)) for name in ("equal_weight", "vol_target", "static_gross")}
    seen = np.stack([stream(sharpe, 500) for _ in range(trials)], axis=1)
    return weigh("A/B", test, {"survivor-1": seen[:, 0]}, [seen], looks=looks)


def verdict(found: Evidence) -> Evidence:
    return judged([found])[0]


def test_claims_and_their_words() -> None:
    above = verdict(made(5.0, trials=1))
    assert above.claim == ABOVE
    sentence = above.sentence()
    assert sentence.startswith("above cash, equal weight and vol-targeted EW: Sharpe 5.00, 95 % interval ")
    assert sentence.endswith("validation deflated Sharpe > 0.99 over 1 effective of 1 trials")
    noise = verdict(made(0.3, equal_weight=1.0))
    assert noise.claim == NOISE
    assert noise.sentence().startswith("not distinguishable from equal weight: Sharpe 0.30, 95 % interval -")
    assert "difference to equal weight -0.70, 95 % interval -" in noise.sentence()
    below = verdict(made(-3.0, equal_weight=3.0))
    assert below.claim == BELOW
    assert below.sentence().startswith("below equal weight: Sharpe -3.00")
    timer = verdict(made(1.0, vol_target=5.0, equal_weight=0.8))  # a volatility timer is a bar to beat like any other
    assert timer.claim == NOISE
    assert timer.sentence().startswith("below vol-targeted EW: ")
    rival = verdict(made(5.0, trials=1, static_gross=12.0))
    assert rival.sentence().startswith("above cash, equal weight and vol-targeted EW, but below static same gross: ")


def test_luck_in_selection_looks_pairs_idleness_and_short_spans_forbid_a_claim() -> None:
    raw = made(3.0, trials=1)
    assert verdict(raw).claim == ABOVE
    lucky = verdict(replace(raw, deflated_sharpe=0.94))
    assert lucky.claim == NOISE
    assert lucky.sentence().startswith("not distinguishable from the luck of selection, though above cash, ")
    assert verdict(replace(raw, deflated_sharpe=None)).claim == NOISE  # no validation, no claim
    often = verdict(replace(raw, looks=200))
    assert often.claim == NOISE
    assert (
        "not distinguishable from equal weight after correction for 1 pair and 200 looks at test" in (often.sentence())
        or "vol-targeted EW after correction for 1 pair and 200 looks" in often.sentence()
    )
    nothing = made(0.0)
    many = judged([raw, *[replace(nothing, pair=f"C/{i}") for i in range(120)]])
    assert many[0].claim == NOISE
    assert many[0].p == pytest.approx(min(1.0, 121 * (verdict(raw).p or 0)))
    idle = verdict(replace(raw, idle=True))
    assert (idle.claim, idle.sentence().split(":")[0]) == (IDLE, "no policy beat cash on validation")
    short = verdict(made(3.0, sessions=15))
    assert (short.claim, short.p) == (SHORT, 1.0)
    assert short.sentence().startswith("not distinguishable from anything over 15 sessions: Sharpe 3.00; ")
    alone = verdict(replace(raw, against={}))
    assert (alone.claim, alone.binding()) == (NOISE, None)


def test_every_baseline_must_be_beaten_and_the_worst_is_named() -> None:
    raw = verdict(made(4.0, trials=1))
    for name in BARS:
        tie = Difference(0.5, -0.1, 1.1, 0.1)
        found = verdict(replace(raw, against={**raw.against, name: tie}))
        assert (found.claim, found.binding()) == (NOISE, name)
        missing = {other: difference for other, difference in raw.against.items() if other != name}
        assert verdict(replace(raw, against=missing)).claim == NOISE


def test_no_sentence_claims_what_its_interval_does_not_allow() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        bars = {name: float(rng.normal(0, 2)) for name in ("equal_weight", "vol_target")}
        found = verdict(made(float(rng.normal(1, 2)), sessions=int(rng.integers(60, 500)), trials=1, **bars))
        sentence = found.sentence()
        if sentence.startswith("above"):
            assert all((found.against[name].low or 0) > 0 for name in BARS)
            assert (found.deflated_sharpe or 0) >= 0.95
        elif sentence.startswith("below"):
            assert any((found.against[name].high or 0) < 0 for name in BARS)
        else:
            assert sentence.startswith("not distinguishable from ")
        assert sentence.isascii()


def test_without_skill_claims_come_at_most_at_the_nominal_rate() -> None:
    """More than a thousand panels over the nulls, the least favourable among them."""
    for world, runs in zip(NULLS, (300, 50, 300, 50, 20, 100, 100), strict=True):
        above, below = rates(world, runs)
        assert above <= binom.ppf(0.9995, runs, 0.025 * 1.2), world.name
        assert below <= binom.ppf(0.9995, runs, 0.025 * 1.2), world.name
    # The bound is not met by claiming nothing: where one baseline ties and the others are beaten it is reached.
    loose = World("tie", headline=3, vol_target=3, equal_weight=-6, correlation=0.9, **STRONG)
    assert rates(loose, 100)[0] >= 1


def test_planted_skill_is_found_with_the_power_computed_beforehand() -> None:
    for world, runs in zip(SKILLS, (150, 150, 100, 50, 50), strict=True):
        planned, found = world.planned(), rates(world, runs)[0]
        slack = 0.08  # t(5) returns, few resamples, and normal approximations of a test in the tails
        assert binom.ppf(0.001, runs, max(planned - slack, 0)) <= found, world.name
        assert found <= binom.ppf(0.999, runs, min(planned + slack, 1)), world.name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("evidence"))


def test_evidence_comes_from_frames_alone_and_repeats(run: Path) -> None:
    found = evidence(run)
    assert list(found) == ["AAA/BBB", "CCC/DDD"]
    again = evidence(run)
    for pair, one in found.items():
        assert json.dumps(one.as_dict(), allow_nan=False) == json.dumps(again[pair].as_dict(), allow_nan=False)
        assert (one.pair, one.policy, one.sessions, one.looks, one.pairs) == (pair, "ensemble", 300, 1, 2)
        assert one.trials == 12
        assert 1 <= one.effective_trials <= 12
        assert set(one.deflated) == {"ensemble", "survivor-1", "survivor-2"}
        assert set(one.against) == {"cash", "equal_weight", "vol_target", "hold_a", "hold_b", "zscore", "static_gross"}
        assert set(one.between) == {"survivor-1 less survivor-2"}
        assert one.overfitting is not None
        assert one.detectable is not None
    summary = read_frame(frame_path(run, "summary"), split="test", scenario="base", policy="ensemble").to_pylist()
    for row in summary:
        interval = found[row["pair"]].sharpe
        assert (row["annualised_sharpe"], row["sharpe_ci_low"], row["sharpe_ci_high"]) == (
            interval.value,
            interval.low,
            interval.high,
        )


def test_looks_trials_and_idleness_are_read_from_the_frames(run: Path) -> None:
    names = ("daily", "validation", "lineage", "events")
    daily, validation, lineage, events = (read_frame(frame_path(run, name)) for name in names)
    rows = lineage.to_pylist()
    rows.append({**rows[-1], "member": "m99"})  # a trial whose stream is lost was a trial all the same
    looked = events.to_pylist()
    looked += [{"kind": "look", "pair": "AAA/BBB"}] * 2 + [{"kind": "look", "pair": None}]
    gross = daily.column("gross").to_numpy().copy()
    still = np.array([policy.startswith("survivor-") for policy in daily.column("policy").to_pylist()])
    still &= np.array(daily.column("pair").to_pylist()) == "CCC/DDD"
    gross[still] = 0.04
    index = daily.schema.get_field_index("gross")
    daily = daily.set_column(index, daily.schema.field(index), pa.array(gross))
    found = evidence_of(daily, validation, rows, looked, thorough=False)
    assert [one.looks for one in found.values()] == [4, 2]
    assert [one.trials for one in found.values()] == [12, 13]
    assert [one.idle for one in found.values()] == [False, True]
    assert found["CCC/DDD"].sentence().startswith("no policy beat cash on validation: Sharpe ")
    once = evidence_of(daily, validation, rows, events.to_pylist(), thorough=False)
    for name, difference in once["AAA/BBB"].against.items():
        assert found["AAA/BBB"].against[name].p == min(1.0, 4 * (difference.p or 0)), name


def test_the_frame_holds_every_figure(run: Path, tmp_path: Path) -> None:
    found = evidence(run)
    table = write_frame(
        evidence_rows(found, "made"), evidence_schema(), KEYS["evidence"], tmp_path / "evidence.parquet"
    )
    rows = {
        (row["pair"], row["policy"], row["statistic"], row["other"]): row
        for row in read_frame(tmp_path / "evidence.parquet").to_pylist()
    }
    assert len(rows) == table.num_rows
    for pair, one in found.items():
        row = rows[pair, "ensemble", "sharpe_difference", "vol_target"]
        bar = one.against["vol_target"]
        assert (row["value"], row["low"], row["high"], row["p"]) == (bar.value, bar.low, bar.high, bar.p)
        assert rows[pair, "survivor-2", "deflated_sharpe", ""]["value"] == one.deflated["survivor-2"]
        assert rows[pair, "survivor-1", "sharpe_difference", "survivor-2"]["p"] is not None
        assert rows[pair, "ensemble", "trials", ""]["value"] == 12
        verdicts = [key for key in rows if key[0] == pair and key[2] == "verdict"]
        assert [rows[key]["detail"] for key in verdicts] == [one.sentence()]


def test_the_benchmark_prints_rates_with_intervals_and_power_beside_the_plan(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts.main(["--draws", "2"])
    text = capsys.readouterr().out
    for name in (*[test[0] for test in TESTS], *[world.name for world in (*NULLS, *SKILLS)]):
        assert f"\n{name}" in text
    assert text.count("planned ") == len(SKILLS) + 1
    assert verdicts.share(0, 10)[1:] == pytest.approx((0.0, 1 - 0.025**0.1))
    verdicts.main(["--runs", str(run)])
    text = capsys.readouterr().out
    assert text.count("made ") == 2
    assert "AAA/BBB pbt: mean " in text
