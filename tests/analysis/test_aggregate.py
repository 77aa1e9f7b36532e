"""Aggregation over runs: copies of one real run under other names, seeds and settings."""

import csv
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.aggregate import main
from analysis.comparison import name_of, seed_difference
from analysis.frames import frame_path
from rayconf.loading import assign

Make = Callable[..., Path]

PAIRS = ["SYNA/SYNB", "SYNC/SYND"]


@pytest.fixture
def make(undisturbed: Path, tmp_path: Path) -> Make:
    """Copies of the real run below ``runs``: another seed, other settings, a shifted Sharpe ratio of the headline."""

    def copy(name: str, seed: int = 7, shift: float = 0.0, **settings: object) -> Path:
        run = tmp_path / "runs" / name
        (run / "frames").mkdir(parents=True)
        for part in ("summary.json", "config.yaml", "summary.csv"):
            shutil.copy(undisturbed / part, run)
        config = yaml.safe_load((run / "config.yaml").read_text())
        for path, value in {"seed": seed, "name": name, **settings}.items():
            assign(config, path, value)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        table = pq.read_table(frame_path(undisturbed, "summary"))
        frame = table.to_pandas()
        headline = frame["policy"] == "ensemble"
        frame.loc[headline, ["annualised_sharpe", "sharpe_ci_low", "sharpe_ci_high"]] += shift
        pq.write_table(pa.Table.from_pandas(frame, table.schema, preserve_index=False), frame_path(run, "summary"))
        return run

    return copy


class Page(HTMLParser):
    """Tags, references to elsewhere, text, and the rows of tables of a page; void and SVG tags close themselves."""

    VOID = ("meta", "link", "line", "circle")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.outside: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") and value not in ("data:,", "#main")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def page_of(folder: Path) -> Page:
    page = Page((folder / "comparison.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.outside == []
    return page


def bytes_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_log_table_is_the_headline_on_test_and_parquet_equals_csv(
    undisturbed: Path, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("b", seed=8)
    make("deeper/a")
    before = bytes_below(tmp_path / "runs")
    out = tmp_path / "new" / "results"
    assert main([str(tmp_path / "runs"), "-o", str(out)]) == 0
    assert "aggregated 2 runs" in capsys.readouterr().out
    assert bytes_below(tmp_path / "runs") == before, "runs are only read"

    table = pd.read_csv(out / "aggregate.csv")
    assert (out / "aggregate.csv").read_text().splitlines()[0] == (
        "run,pair,days,avg_daily_return,annualized_return,cumulative_return"
    )
    assert list(zip(table.run, table.pair, strict=True)) == [(run, pair) for run in ("b", "deeper/a") for pair in PAIRS]
    # Recomputed from the bars, not read from the summary that the command reads.
    daily = pd.read_parquet(frame_path(undisturbed, "daily")).query(
        "split == 'test' and scenario == 'base' and policy == 'ensemble'"
    )
    returns = [own.net_return.to_numpy() for _, own in daily.groupby("pair")] * 2
    assert table.days.tolist() == [len(own) for own in returns]
    np.testing.assert_allclose(table.avg_daily_return, [own.mean() for own in returns], rtol=1e-12)
    np.testing.assert_allclose(table.annualized_return, [(1 + own.mean()) ** 252 - 1 for own in returns], rtol=1e-9)
    np.testing.assert_allclose(table.cumulative_return, [np.prod(1 + own) - 1 for own in returns], rtol=1e-9)

    for name in ("aggregate", "summary"):
        stored = pq.read_table(out / f"{name}.parquet")
        with open(out / f"{name}.csv", encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in stored.to_pylist()] == rows
    full = pd.read_parquet(out / "summary.parquet")
    own = pd.read_parquet(frame_path(undisturbed, "summary"))
    assert list(full.columns) == ["run", "identity", "seed", *own.columns[1:]]
    part = full[full.run == "deeper/a"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part.drop(columns=["run", "seed", "identity"]), own.drop(columns="run"))
    assert set(full.identity) == set(own.run)
    assert full.groupby("run").seed.unique().map(list).to_dict() == {"b": [8], "deeper/a": [7]}


def test_same_runs_give_the_same_bytes_and_an_existing_folder_is_written_again(make: Make, tmp_path: Path) -> None:
    make("a")
    make("b", seed=8)
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "one")]) == 0
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "two")]) == 0
    (tmp_path / "two" / "mine.txt").write_text("kept")
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "two")]) == 0
    two = {path.name: content for path, content in bytes_below(tmp_path / "two").items()}
    assert two.pop("mine.txt") == b"kept"
    assert two == {path.name: content for path, content in bytes_below(tmp_path / "one").items()}
    assert len(two) == 5


def test_what_is_left_out_is_named_with_its_reason_and_nothing_complete_is_lost(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    make("good")
    (make("killed") / "summary.json").unlink()
    partial = make("partial") / "summary.json"
    partial.write_text(partial.read_text().replace('"complete"', '"partial"'))
    (make("foreign") / "summary.json").write_text("[1, 2]")
    frame_path(make("no-frame"), "summary").unlink()
    frame_path(make("torn"), "summary").write_bytes(b"PAR1 torn")
    (make("no-seed") / "config.yaml").write_text("name: x\n")
    old = frame_path(make("old-schema"), "summary")
    pq.write_table(pq.read_table(old).replace_schema_metadata({"pairpbt.schema": "0"}), old)
    bare = frame_path(make("no-test"), "summary")
    pq.write_table(pq.read_table(bare, filters=[("split", "!=", "test")]), bare)
    (runs / "notes").mkdir()
    shutil.copytree(runs / "good", runs / ".hidden")
    (runs / "circle").symlink_to(runs, target_is_directory=True)

    assert main([str(runs), "-o", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out ")]
    told = dict(line.removeprefix("left out ").split(": ", 1) for line in lines)
    wanted = {
        "killed": "no summary.json",
        "partial": "status is partial",
        "foreign": "not that of a run",
        "no-frame": "missing",
        "torn": "cannot be read",
        "no-seed": "names no seed",
        "old-schema": "schema 0",
        "no-test": "no test results",
    }
    assert set(told) == set(wanted)
    assert all(part in told[name] for name, part in wanted.items()), told
    assert set(pd.read_csv(tmp_path / "out" / "aggregate.csv").run) == {"good"}
    words = "".join(page_of(tmp_path / "out").words)
    assert all(f"Left out: {name}" in words for name in wanted)


def test_mistakes_end_in_one_line_and_write_nothing(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("a")
    runs, out = tmp_path / "runs", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dead").mkdir()
    shutil.copytree(run, tmp_path / "dead" / "x")
    (tmp_path / "dead" / "x" / "summary.json").unlink()
    before = bytes_below(tmp_path)
    for arguments, part in (
        ([tmp_path / "none"], "no such folder"),
        ([tmp_path / "empty"], "no complete run"),
        ([tmp_path / "dead"], "x: not finished"),
        ([runs, "-o", tmp_path / "file"], "is a file"),
        ([runs, "-o", tmp_path / "file" / "below"], "is a file"),
        ([runs, "-o", run], "lies in the run a"),
        ([runs, "-o", run / "frames"], "lies in the run a"),
        ([runs, "-o", runs], "folder of the runs"),
        ([runs, "--reference", "b"], "choose from a"),
        ([runs, "--nonsense"], "--nonsense"),
    ):
        given = [str(argument) for argument in arguments]
        given += [] if "-o" in given else ["-o", str(out)]
        assert main(given) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("pairpbt: ")
        assert part in told.err
        assert len(told.err.splitlines()) == 1
    assert bytes_below(tmp_path) == before
    assert not out.exists()


def test_configurations_are_grouped_without_the_seed_and_paired_by_it(make: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shifts = {arm: rng.normal(better, 0.3, 6) for arm, better in (("pbt", 0.7), ("random", 0.0))}
    for arm, values in shifts.items():
        for seed, shift in enumerate(values):
            # Where it ran makes no other configuration of it.
            make(f"{arm}-{seed}", seed=seed, shift=shift, **{"pbt.arm": arm, "resources.cpus": 1 + seed})
    make("pbt-3-again", seed=3, shift=9.0)
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "out"), "--reference", "random-0"]) == 0
    page = page_of(tmp_path / "out")
    words = "".join(page.words)
    assert "13 runs, 2 configurations, 2 pairs" in words
    assert "Seeds are not certainty: they share the prices" in words
    assert "count nowhere: pbt-3-again" in words
    assert ["pbt.arm", "random", "pbt"] in page.rows

    full = pd.read_parquet(tmp_path / "out" / "summary.parquet")
    head = full.query("policy == 'ensemble' and split == 'test' and scenario == 'base' and run != 'pbt-3-again'")
    sharpe = {arm: head[head.run.str.startswith(arm)].pivot(index="seed", columns="pair", values="annualised_sharpe")
              for arm in shifts}  # fmt: skip
    for arm, label in (("random", "A (pbt.arm=random)"), ("pbt", "B (pbt.arm=pbt)")):
        found = [row for row in page.rows if row and row[0] == label]
        for row, pair in zip(found, PAIRS, strict=True):
            own = sharpe[arm][pair]
            assert row[1:5] == ["6", f"{own.mean():.2f}", f"{own.std():.2f}", f"{own.min():.2f} .. {own.max():.2f}"]
    difference = sharpe["pbt"] - sharpe["random"]
    raw = [stats.wilcoxon(difference[pair]).pvalue for pair in PAIRS]
    assert max(raw) < 0.2, "small enough for Holm to show"
    adjusted = multipletests(raw, method="holm")[1]
    for pair, p, holm_p in zip(PAIRS, raw, adjusted, strict=True):
        own = difference[pair]
        (row,) = [row for row in page.rows if row[:2] == ["B less A", pair]]
        assert [*row[2:4], *row[5:]] == [
            "6", f"{own.mean():+.2f}", f"{(own > 0).sum()} of 6", f"{p:.3f}", f"{holm_p:.3f}"
        ]  # fmt: skip
        low, high = (float(end) for end in row[4].strip("[]").split(","))
        assert low < own.mean() < high
    assert page.tags.count("svg") == 2
    assert page.tags.count("circle") == 2 * 12
    verdicts = json.loads((tmp_path / "runs" / "pbt-0" / "summary.json").read_text())["pairs"]
    assert [row[-1] for row in page.rows if row and row[0] == "pbt-0"] == [verdicts[pair]["verdict"] for pair in PAIRS]


def test_runs_on_other_prices_are_not_paired(make: Make, tmp_path: Path) -> None:
    make("a", seed=1)
    make("b", seed=1, **{"split.fractions": [0.5, 0.2, 0.3]})
    make("c", seed=1, **{"costs.commission_bps": 3.0})
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "out")]) == 0
    page = page_of(tmp_path / "out")
    assert "Not compared with A: configuration B, tested on other prices." in "".join(page.words)
    assert {row[0] for row in page.rows if row and " less " in row[0]} == {"C less A"}


def test_a_market_that_follows_the_seed_is_no_other_configuration(make: Make, tmp_path: Path) -> None:
    for seed in (1, 2):
        make(f"s{seed}", seed=seed, **{"synthetic.seed": seed})
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "out")]) == 0
    words = "".join(page_of(tmp_path / "out").words)
    assert "2 runs, 1 configuration, 2 pairs" in words
    assert "Every seed has a synthetic market of its own" in words
    assert "Seeds are not certainty" not in words


def test_runs_of_other_versions_fit_together(make: Make, tmp_path: Path) -> None:
    """Other search spaces, columns that only one of them has, and no field of the config taken for granted."""
    make("a")
    other = make("b", seed=8)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["search"] = {"gamma": {"path": "ppo.gamma", "low": 0.9, "high": 0.99, "scale": "logit"}}
    del config["tracking"], config["env"]["leverage_cap"]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    table = pq.read_table(frame_path(other, "summary"))
    table = table.drop_columns(["deflated_sharpe"]).append_column("new", pa.array([1.5] * table.num_rows))
    pq.write_table(table, frame_path(other, "summary"))
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "out")]) == 0
    full = pd.read_parquet(tmp_path / "out" / "summary.parquet").set_index("run")
    assert full.loc["a", "new"].isna().all()
    assert (full.loc["b", "new"] == 1.5).all()
    assert len(full.loc["a"]) == len(full.loc["b"])
    page = page_of(tmp_path / "out")
    differing = {row[0] for row in page.rows if len(row) == 3}
    assert {"search.gamma.low", "search.learning_rate.low", "env.leverage_cap"} <= differing


def test_names_are_text_and_never_markup(make: Make, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'"
    run = make(evil.replace("/", ""), seed=1, **{"tracking.wandb_project": evil})
    told = json.loads((run / "summary.json").read_text())
    told["pairs"]["SYNA/SYNB"]["verdict"] = f"{evil} verdict"
    (run / "summary.json").write_text(json.dumps(told))
    (make("<b>bold", seed=1, **{"pbt.arm": evil}) / "summary.json").unlink()
    make("plain", seed=1, **{"data.dir": evil})
    (tmp_path / "runs").rename(tmp_path / "<b>runs")
    assert main([str(tmp_path / "<b>runs"), "-o", str(tmp_path / "out")]) == 0
    page = page_of(tmp_path / "out")
    assert not {"img", "b", "script"} & set(page.tags)
    words = "".join(page.words)
    assert words.count(f"{evil} verdict") == 1
    assert "Left out: <b>bold: not finished" in words


def test_one_run_is_aggregated_by_its_own_name(undisturbed: Path, tmp_path: Path) -> None:
    assert main([str(undisturbed), "-o", str(tmp_path / "out")]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "aggregate.csv").run) == {"tiny"}
    assert "All runs have one configuration" in "".join(page_of(tmp_path / "out").words)


def test_paired_differences_where_little_can_be_said(make: Make, tmp_path: Path) -> None:
    """A single seed has no test, seeds that only one side has are not paired, and equal results differ by nothing."""
    assert seed_difference({1: 1.0}, {2: 1.0}) is None
    every = seed_difference(dict.fromkeys(range(5), 1.0), {seed: -0.1 * seed for seed in range(6)})
    assert every is not None
    assert (every[0].seeds, every[1]) == (5, 5)
    assert every[0].wilcoxon_p == pytest.approx(2.0**-4), "the smallest p of five seeds"

    make("a", seed=1)
    make("a2", seed=2)
    make("b", seed=1, shift=0.5, **{"pbt.arm": "random"})
    make("c", seed=2, **{"pbt.arm": "fixed"})
    make("d", seed=3, **{"pbt.arm": "random"})
    assert main([str(tmp_path / "runs"), "-o", str(tmp_path / "out")]) == 0
    rows = [row for row in page_of(tmp_path / "out").rows if row and " less " in row[0]]
    assert rows == [
        [name, pair, "1", value, "-", better, "-", "-"]
        for name, value, better in (("B less A", "+0.50", "1 of 1"), ("C less A", "+0.00", "0 of 1"))
        for pair in PAIRS
    ]


def test_labels_go_on_after_z() -> None:
    assert [name_of(index) for index in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]
