"""The ladder over walk-forward folds: what is kept, what may be seen, and that its figures are what they say."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from algos.policy import Policy
from analysis.bootstrap import resampled_indices
from benchmarks import generalisation
from benchmarks.cells import Job, average, market_of, work
from benchmarks.folds import VALIDATION, Period, Prices
from benchmarks.generalisation import choose, report
from benchmarks.ladder import BASE, ROWS, Ladder, Row
from benchmarks.ladder_table import BLOCK, RESAMPLES, block_of, figures, gap, returns_of, strung
from benchmarks.measuring import Benchmark, measure
from benchmarks.nested import cells_of, choices
from pbt.generation import evaluate, initial_key, train_segment, training_key
from pbt.simulator import fitness_shares
from pbt.survivors import policy_from_state
from rayconf.errors import UserError
from rayconf.loading import load_config

PAIRS = ("AAA/BBB", "CCC/DDD")
PERIODS = (Period("2010", "2010-01-01", "2010-12-31"), Period("2011", "2011-01-01", "2011-12-31"))
SMALL = (
    "ppo.num_envs=64",
    "ppo.rollout_steps=16",
    "ppo.minibatch_size=512",
    "network.hidden=[8, 8]",
    "pbt.bootstrap=99",
)
VOL_TARGET = next(row for row in ROWS if row.name == "vol_target")
TOGETHER = Row("together", "universe", snapshot="last")
WHOLE = ("pbt.arm=fixed", "pbt.archive_of=last", "backtest.cost_bps=[]", "resources.cpus=1")
POOLED = Row("pooled", "run", (*WHOLE, "pbt.pooled=true", "universe.tickers=['*']"))
LEASHED = Row(
    "leashed", "run", (*WHOLE, "stages.base=.", "pbt.fitness_over=base", "pbt.min_gain=100"), of="together", looks=1
)
WEIGHTED = Row("ppo_weighted", "weighted", of="ppo")
LADDER = Ladder(rows=(*ROWS, TOGETHER, POOLED, LEASHED, WEIGHTED), base=(*BASE, *SMALL), budget=2 * 4096, seeds=2)
NAMES = ("equal_weight", "vol_target", "ppo", "ppo_ensemble")
QUIET = Console(file=io.StringIO())


def write_prices(folder: Path, *, changed_from: str | None = None) -> Path:
    """Random walks of four tickers over the weekdays of 2004 to 2011; other ones from ``changed_from`` on."""
    dates = pd.bdate_range("2004-01-01", "2011-12-30")
    folder.mkdir()
    for number, ticker in enumerate(("AAA", "BBB", "CCC", "DDD")):
        rng = np.random.default_rng(number)
        steps = 0.0003 + 0.012 * rng.standard_normal((len(dates), 2))
        if changed_from is not None:
            later = dates >= changed_from
            steps[later] = 0.02 * np.random.default_rng(100 + number).standard_normal((int(later.sum()), 2))
        path = 50 * np.exp(np.cumsum(steps.ravel())).reshape(steps.shape)
        frame = pd.DataFrame({"date": dates.strftime("%Y-%m-%d"), "open": path[:, 0], "close": path[:, 1]})
        frame["high"], frame["low"] = frame[["open", "close"]].max(axis=1) * 1.002, frame[["open", "close"]].min(axis=1)
        frame["volume"] = rng.integers(100_000, 900_000, len(dates))
        frame.to_csv(folder / f"{ticker}.csv", index=False)
    return folder


def benchmark_on(data: Path, out: Path, periods: tuple[Period, ...] = PERIODS) -> Benchmark:
    prices = Prices(data, PAIRS, out / "prices")
    return Benchmark(LADDER, out, tuple(prices.fold(period) for period in periods), PAIRS)


def rows(*names: str) -> list[Row]:
    return [LADDER.row(name) for name in names]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prices(tmp_path_factory.mktemp("prices") / "daily")


@pytest.fixture(scope="module")
def measured(ray_session: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Every kind of row but the universe, on two pairs, two folds and two seeds."""
    benchmark = benchmark_on(data, tmp_path_factory.mktemp("ladder"))
    assert measure(benchmark, rows(*NAMES), QUIET) == 3 * 4 + 8
    return benchmark


def daily(cell: Path) -> pd.DataFrame:
    return pd.read_parquet(cell / "daily.parquet")


def test_cells_that_are_there_are_not_computed_again(measured: Benchmark) -> None:
    ppo = LADDER.row("ppo")
    cells = measured.found(ppo)
    assert len(cells) == 8
    before = {cell: (cell / "daily.parquet").stat().st_mtime_ns for cell in cells.values()}
    assert measure(measured, rows(*NAMES, "ppo_last"), QUIET) == 0  # the last snapshots came with the best
    lost = cells["CCC/DDD", "2011", 1]
    kept = daily(lost)
    torn = lost.with_name(f"{lost.name}.{2**30}")  # as a process leaves it that is killed while it writes
    lost.rename(torn)
    assert measure(measured, rows(*NAMES), QUIET) == 1
    pd.testing.assert_frame_equal(daily(lost), kept, check_exact=True)
    assert all((cell / "daily.parquet").stat().st_mtime_ns == at for cell, at in before.items() if cell != lost)
    assert not torn.exists()


def test_folds_end_where_they_say(measured: Benchmark, data: Path) -> None:
    for fold, period in zip(measured.folds, PERIODS, strict=True):
        run = LADDER.run(LADDER.row("ppo"), fold, PAIRS, 0)
        market = market_of(run, "AAA/BBB")
        assert market.dates[-1] <= np.datetime64(period.last)
        train, validation, test = (market.splits[name] for name in ("train", "validation", "test"))
        assert market.dates[test.start - 21] == pd.bdate_range(period.first, period.last)[0]
        assert validation.stop - validation.start == VALIDATION
        assert (validation.start - train.stop, test.start - validation.stop) == (21, 21)
        source = pd.read_csv(data / "AAA.csv", parse_dates=["date"]).set_index("date").loc[: period.last]
        np.testing.assert_array_equal(market.fill[:, 0], source.open)


def test_prices_after_the_end_of_a_fold_change_nothing(measured: Benchmark, tmp_path: Path) -> None:
    other = benchmark_on(write_prices(tmp_path / "daily", changed_from="2011-01-01"), tmp_path / "out")
    first, second = (dict(fold.digests) for fold in other.folds)
    assert first == measured.folds[0].digests
    assert second != measured.folds[1].digests
    other = replace(other, folds=other.folds[:1], pairs=PAIRS[:1])
    measure(other, rows("vol_target", "ppo"), QUIET)
    for name in ("vol_target", "ppo"):
        for key, cell in other.found(LADDER.row(name)).items():
            pd.testing.assert_frame_equal(daily(cell), daily(measured.found(LADDER.row(name))[key]), check_exact=True)


def test_an_ensemble_of_equal_members_is_the_member(measured: Benchmark, tmp_path: Path) -> None:
    (job,) = [
        job for job in measured.jobs(LADDER.row("ppo_ensemble")) if [*job.cells] == ["AAA/BBB"] and job.fold == "2010"
    ]
    one, two = job.members["AAA/BBB"]
    work(Job(job.row, job.fold, job.run, {"AAA/BBB": tmp_path / "same"}, {"AAA/BBB": (one, one)}))
    pd.testing.assert_frame_equal(daily(tmp_path / "same"), daily(one), check_exact=True)
    mean = daily(job.cells["AAA/BBB"])
    assert all((mean.net_return - daily(member).net_return).abs().max() > 1e-6 for member in (one, two))


def test_a_weighted_ensemble_follows_what_validation_said_of_its_members(measured: Benchmark, tmp_path: Path) -> None:
    (job,) = [
        job for job in measured.jobs(LADDER.row("ppo_weighted")) if [*job.cells] == ["AAA/BBB"] and job.fold == "2010"
    ]
    members = job.members["AAA/BBB"]
    told = [pd.read_parquet(cell / "fitness.parquet").query("best").iloc[0] for cell in members]
    shares = fitness_shares([(row.smoothed, row.fitness_se) for row in told])
    weighted = average(job, "AAA/BBB", "best")
    assert weighted.shares is not None
    assert weighted.shares == pytest.approx([share / sum(shares) for share in shares])
    better = int(np.argmax([row.smoothed for row in told]))
    assert weighted.shares[better] == max(weighted.shares) > 0.5
    work(job)
    plain = daily(measured.cell(LADDER.row("ppo_ensemble"), measured.folds[0], "AAA/BBB", 0))
    assert (daily(job.cells["AAA/BBB"]).net_return - plain.net_return).abs().max() > 1e-6


def test_a_member_trains_as_in_a_run_and_the_best_on_validation_is_kept(measured: Benchmark) -> None:
    """One algorithm trained on and on gives what a fresh one per generation gives."""
    run = LADDER.run(LADDER.row("ppo"), measured.folds[0], PAIRS[:1], 1)
    market, state, fitness = market_of(run, "AAA/BBB"), None, []
    for generation in range(1, run.pbt.generations + 1):
        key = training_key(run, "AAA/BBB", "m00", generation)
        start = initial_key(run, "AAA/BBB", "m00")
        trained = train_segment(run, market, {}, state, key, generation, init_key=start)
        state = trained.state
        fitness.append(trained.evaluation.figures["fitness"])
    cell = measured.found(LADDER.row("ppo"))["AAA/BBB", "2010", 1]
    table = pd.read_parquet(cell / "fitness.parquet")
    assert table.fitness.tolist() == fitness
    assert state is not None
    expected = policy_from_state(state, run, market.scaler.names).actor_parameters()
    for name, value in Policy.load(cell / "last").actor_parameters().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    smoothed = pd.Series(fitness).ewm(alpha=1 - run.pbt.fitness_smoothing, adjust=False).mean()
    np.testing.assert_allclose(table.smoothed, smoothed)
    assert table.best.tolist() == (smoothed == smoothed.max()).tolist()
    assert table["last"].tolist() == [*[False] * (run.pbt.generations - 1), True]


def test_figures_are_those_of_the_strung_test_spans(measured: Benchmark) -> None:
    found, target, equal = (measured.found(LADDER.row(name)) for name in ("ppo", "vol_target", "equal_weight"))
    row = figures(found, "best", target, equal, ["cost10"])

    def ratio(cells: dict[tuple[str, str, int], Path], pair: str, seed: int, policy: str, scenario: str) -> float:
        parts = []
        for fold in ("2010", "2011"):
            frame = daily(cells[pair, fold, seed])
            chosen = (frame.policy == policy) & (frame.split == "test") & (frame.scenario == scenario)
            parts.append(frame.net_return[chosen].to_numpy())
        returns = np.concatenate(parts)
        assert 440 < len(returns) < 500
        return float(np.sqrt(252) * np.mean(returns) / np.std(returns))

    for column, scenario in (("sharpe_out", "base"), ("sharpe_cost10", "cost10")):
        means = [np.mean([ratio(found, pair, seed, "best", scenario) for seed in (0, 1)]) for pair in PAIRS]
        assert row[column] == pytest.approx(np.median(means))
    differences = [
        np.mean([ratio(found, pair, seed, "best", "base") for seed in (0, 1)]) - ratio(target, pair, 0, "rule", "base")
        for pair in PAIRS
    ]
    assert row["difference"] == pytest.approx(np.median(differences))
    assert row["difference_low"] < row["difference"] < row["difference_high"]

    def book(cells: dict[tuple[str, str, int], Path], seed: int, policy: str) -> float:
        """Sharpe ratio of the account that holds both pairs in equal parts."""
        parts = []
        for pair in PAIRS:
            frame = pd.concat([daily(cells[pair, fold, seed]) for fold in ("2010", "2011")])
            frame = frame[(frame.policy == policy) & (frame.split == "test") & (frame.scenario == "base")]
            parts.append(frame.set_index("date").net_return)
        returns = sum(parts).dropna().to_numpy() / 2
        return float(np.sqrt(252) * returns.mean() / returns.std())

    own_book = np.mean([book(found, seed, "best") for seed in (0, 1)])
    assert row["sharpe_book"] == pytest.approx(own_book)
    assert row["book_difference"] == pytest.approx(own_book - book(target, 0, "rule"))
    assert row["book_low"] < row["book_difference"] < row["book_high"]
    spreads = [np.std([ratio(found, pair, seed, "best", "base") for seed in (0, 1)], ddof=1) for pair in PAIRS]
    assert row["seed_sd"] == pytest.approx(np.median(spreads))
    assert row["cells"] == 8
    itself = figures(equal, "rule", target, equal, [])
    assert (itself["alpha"], itself["beta"]) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
    assert itself["drawdown_matched"] == pytest.approx(itself["max_drawdown"])


def test_the_interval_resamples_all_pairs_and_both_rows_alike(measured: Benchmark) -> None:
    found, target = (measured.found(LADDER.row(name)) for name in ("ppo", "vol_target"))
    block = block_of(found)
    own = returns_of(strung(found, block, "last"))
    other = returns_of(strung(target, replace(block, seeds=(0,)), "rule"))
    mine, rule = own.to_numpy().reshape(len(own), 2, 2), other.to_numpy()  # [D, pair, seed], [D, pair]
    drawn = []
    for indices in resampled_indices(len(own), BLOCK, RESAMPLES):
        for chosen in indices:
            one, two = (np.sqrt(252) * part[chosen].mean(axis=0) / part[chosen].std(axis=0) for part in (mine, rule))
            drawn.append(np.median(one.mean(axis=1) - two))
    found_gap = gap(own, other, 252)
    assert (found_gap.low, found_gap.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_an_unfinished_row_is_compared_on_what_is_whole(measured: Benchmark) -> None:
    cells = dict(measured.found(LADDER.row("ppo")))
    del cells["CCC/DDD", "2011", 1]
    block = block_of(cells)
    assert (block.pairs, block.folds, block.seeds) == (PAIRS, ("2010", "2011"), (0,))
    del cells["CCC/DDD", "2010", 0]
    block = block_of(cells)
    assert (block.pairs, block.folds, block.seeds) == (PAIRS[:1], ("2010", "2011"), (0, 1))


def test_the_universe_is_one_learner_chosen_on_all_its_pairs(measured: Benchmark) -> None:
    benchmark = replace(measured, folds=measured.folds[:1], ladder=replace(LADDER, seeds=1))
    assert measure(benchmark, [TOGETHER], QUIET) == 1
    cells = benchmark.found(TOGETHER)
    one, two = (Policy.load(cells[pair, "2010", 0] / "last") for pair in PAIRS)
    for name, value in one.actor_parameters().items():
        assert torch.equal(value, two.actor_parameters()[name])
    run = benchmark.ladder.run(TOGETHER, benchmark.folds[0], PAIRS, 0)
    table = pd.read_parquet(cells["CCC/DDD", "2010", 0] / "fitness.parquet")
    last = int(table.generation.iloc[-1])
    values = [evaluate(run, market_of(run, pair), one, last).figures["fitness"] for pair in PAIRS]
    assert table.fitness.iloc[-1] == np.mean(values)


def test_a_whole_run_is_evaluated_as_the_learner_that_it_trains(measured: Benchmark) -> None:
    """A pooled population of one is the universe's learner; a leash that gains too little leaves it as it was."""
    benchmark = replace(measured, folds=measured.folds[:1], ladder=replace(LADDER, seeds=1))
    assert measure(benchmark, [LEASHED, POOLED, TOGETHER], QUIET) <= 1 + 1 + 2
    learner = benchmark.found(TOGETHER)
    for row in (POOLED, LEASHED):
        cells = benchmark.found(row)
        assert cells.keys() == learner.keys()
        for key, cell in cells.items():
            expected, own = daily(learner[key]), daily(cell)
            expected = expected[expected.policy == "last"].reset_index(drop=True)
            assert set(own.policy) == {"headline"}
            pd.testing.assert_frame_equal(own.drop(columns="policy"), expected.drop(columns="policy"), check_exact=True)


def test_choice_sees_no_bar_from_2010_on(ray_session: None, data: Path, tmp_path: Path) -> None:
    changed = write_prices(tmp_path / "daily", changed_from="2010-01-01")
    tables = []
    for number, folder in enumerate((data, changed)):
        out = tmp_path / str(number)
        fold = Prices(folder, PAIRS, out / "prices").choice()
        benchmark = Benchmark(replace(LADDER, seeds=1), out, (fold,), PAIRS[:1])
        for file in fold.folder.iterdir():
            assert pd.read_parquet(file).date.max() == pd.Timestamp("2009-12-31")
        tables.append(choose(benchmark, LADDER.row("ppo"), [(), ("optimizer.learning_rate=0.01",)], QUIET))
        assert not (out / "looks.jsonl").exists()
        splits = {split for cell in out.glob("cells/*/*") for split in daily(cell).split.unique()}
        assert splits == {"train", "validation"}
        market = market_of(benchmark.jobs(LADDER.row("ppo"))[0].run, PAIRS[0])
        assert market.dates[market.splits["train"].stop - 1] == np.datetime64("2007-12-31")
    assert tables[0] == tables[1]
    assert tables[0][0]["validation"] != tables[0][1]["validation"]


def test_a_whole_run_is_chosen_among_learners_by_the_same_gain(ray_session: None, data: Path, tmp_path: Path) -> None:
    fold = Prices(data, PAIRS, tmp_path / "prices").choice()
    benchmark = Benchmark(replace(LADDER, seeds=1), tmp_path, (fold,), PAIRS)
    (whole,), (learner,) = (choose(benchmark, row, [()], QUIET) for row in (POOLED, TOGETHER))
    apart = {"row", "fitness"}
    assert {k: v for k, v in whole.items() if k not in apart} == {k: v for k, v in learner.items() if k not in apart}
    assert math.isnan(whole["fitness"])
    market, rule = ([daily(benchmark.cell(row, fold, pair, 0)) for pair in PAIRS] for row in (TOGETHER, VOL_TARGET))
    ratios = []
    for own, other in zip(market, rule, strict=True):
        one = own[(own.policy == "last") & (own.split == "validation")].net_return
        two = other[other.split == "validation"].net_return
        ratios.append(math.sqrt(252) * (one.mean() / one.std() - two.mean() / two.std()))
    assert learner["difference"] == pytest.approx(np.mean(ratios), abs=0.02)  # sessions per year are counted
    assert learner["low"] < learner["gain"] < learner["difference"]


def test_the_preset_default_is_the_row_of_that_name(measured: Benchmark) -> None:
    """But for data and terms that the ladder fixes, what no direct learner reads, and what no fixed arm moves."""
    row = Ladder().run(LADDER.row("default"), measured.folds[0], PAIRS, 0).model_dump(mode="json")
    shipped = load_config("default").model_dump(mode="json")
    different = {section for section in row if not isinstance(row[section], dict) and row[section] != shipped[section]}
    for section in {section for section in row if isinstance(row[section], dict)}:
        ours, theirs = row[section], shipped[section]
        different |= {f"{section}.{name}" for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
    assert {name for name in different if name.split(".")[0] not in ("data", "split", "search", "resources")} == {
        "ppo.num_envs",
        "ppo.minibatch_size",
        "pbt.survivors",
        "universe.tickers",
        "backtest.cost_bps",
        "tracking.tensorboard",
    }


def test_a_fold_takes_what_validation_liked_best_up_to_then(measured: Benchmark, tmp_path: Path) -> None:
    """Two candidates whose validation is made up: one gains first, then the other by more."""
    benchmark = replace(measured, out=tmp_path)
    one, two, prior = LADDER.row("ppo"), LADDER.row("residual"), VOL_TARGET
    extra = {(one, 0): 4e-3, (one, 1): -6e-3, (two, 0): -1e-3, (two, 1): 9e-3, (prior, 0): 0.0, (prior, 1): 0.0}
    for (row, number), gain in extra.items():
        for pair in PAIRS:
            fold = measured.folds[number]
            source = daily(measured.cell(VOL_TARGET, fold, pair, 0))
            made = benchmark.cell(row, fold, pair, 0)
            made.mkdir(parents=True)
            validation = (source.split == "validation").to_numpy()
            table = source.assign(policy=row.policy, net_return=source.net_return + gain * validation)
            table.loc[source.split == "test", "turnover"] = number + 10 * (row is one)
            table.to_parquet(made / "daily.parquet", index=False)
            pd.DataFrame([{"policy": row.policy, "env_steps": 0}]).to_parquet(made / "cell.parquet", index=False)
    first, second = choices(benchmark, [one, two, LADDER.row("universe")])
    assert (first.row, second.row) == (one, two)
    assert set(first.gains) == {"ppo", "residual"}
    assert choices(benchmark, [two])[0].row == prior
    cells = cells_of(benchmark, [first, second])
    for number, (row, fold) in enumerate(zip((one, two), measured.folds, strict=True)):
        frame = daily(cells["CCC/DDD", fold.name, 0])
        assert set(frame.policy) == {"chosen"}
        assert set(frame[frame.split == "test"].turnover) == {number + 10 * (row is one)}
    with pytest.raises(UserError, match="chosen is among universe"):
        choices(benchmark, [LADDER.row("universe")])


def test_too_few_prices_are_named_with_row_and_fold(ray_session: None, data: Path, tmp_path: Path) -> None:
    early = Period("2007", "2007-01-01", "2007-12-31")  # the prices begin in 2004
    benchmark = benchmark_on(data, tmp_path, (early,))
    with pytest.raises(UserError, match=r"^ppo 2007: (AAA/BBB|CCC/DDD): \d+ bars are too few: train has"):
        measure(benchmark, rows("ppo"), QUIET)


def test_the_report_names_its_looks(measured: Benchmark) -> None:
    before = (measured.out / "looks.jsonl").read_text().splitlines()
    assert any('"row":"ppo"' in line and '"what":"evaluation"' in line for line in before)
    table = report(measured, rows(*NAMES, "zscore"), QUIET).set_index("row")
    after = (measured.out / "looks.jsonl").read_text().splitlines()
    assert [line.count('"what":"report"') for line in after[len(before) :]] == [1] * len(NAMES)
    looks = pd.read_csv(measured.out / "looks.csv", index_col="row")
    assert looks.reports.to_dict() == {
        name: sum(f'"{name}"' in x and "report" in x for x in after) for name in looks.index
    }
    assert set(NAMES) <= set(looks.index)
    saved = pd.read_csv(measured.out / "ladder.csv", index_col="row")
    pd.testing.assert_frame_equal(saved, table, check_dtype=False)
    assert table.cells.to_dict() == {"equal_weight": 4, "vol_target": 4, "ppo": 8, "ppo_ensemble": 4, "zscore": 0}
    assert table.difference["vol_target"] == 0
    run = measured.ladder.run(LADDER.row("ppo"), measured.folds[0], PAIRS, 0)
    steps = 2 * run.pbt.iterations * run.env_steps_per_update / 1e6  # of both pairs
    assert table.steps.to_dict() == pytest.approx(
        dict.fromkeys(NAMES, 0.0) | {"ppo": steps, "zscore": np.nan}, nan_ok=True
    )
    assert len((measured.out / "ladder.md").read_text().splitlines()) > len(NAMES) + 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "nothing"], "--rows: 'nothing' is no row"),
        (["--seeds", "0"], "--seeds: 0 must be 1 or more"),
        (["--choose", "--rows", "vol_target"], "--choose: name one row that learns"),
        (["--choose", "--rows", "leashed"], "--choose: name one row that learns"),
        (["--choose", "--rows", "ppo", "--candidate", "ppo.gama=0.9"], "--candidate: 'ppo.gama' is no field"),
        ([], "has no AAPL.csv"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments:
        monkeypatch.setattr(generalisation, "PAIRS", PAIRS)
    data = write_prices(tmp_path / "daily")
    out = tmp_path / "out"
    assert generalisation.main(["--data-dir", str(data), "--out", str(out), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
