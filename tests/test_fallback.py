"""A run whose policies correct a prior, trained on a universe: where validation does not speak for them, the prior is
what it trades, says and keeps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algos.policy import Policy
from analysis.overfitting import archive_overfitting
from pbt.backtest import main as backtest
from pbt.base import Base
from pbt.fallback import why_fallback
from pbt.manifest import Population, Snapshot
from pbt.replay import main as replay
from pbt.survivor import load_policy
from rayconf.errors import UserError
from rayconf.loading import build_config, load_file, merge
from rayconf.run_config import RunConfig
from tests.commands import launch, tiny

pytestmark = pytest.mark.usefixtures("alone")

PAIR = "SYNA/SYNB"


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fallen")
    settings = ("env.mapping=residual", "universe.pairs=SYNA/SYNB,SYNC/SYND", "pbt.min_gain=3", f"data.pairs={PAIR}")
    done = launch(*tiny(folder), *[word for text in settings for word in ("--set", text)])
    assert done.returncode == 0, done.stderr
    assert "universe: trains on" in done.stdout
    return folder / "tiny"


def test_the_prior_is_traded_and_said_to_be(fallen: Path) -> None:
    entry = json.loads((fallen / "summary.json").read_text())["pairs"][PAIR]
    assert [(s["rank"], s["member"], s["generation"], s["fitness"]) for s in entry["survivors"]] == [(1, "prior", 0, 0)]
    assert entry["verdict"].startswith("trades its prior, because the best gain over it on validation, ")
    assert "is below pbt.min_gain 3; not distinguishable from" in entry["verdict"]
    events = pd.read_parquet(fallen / "frames" / "events.parquet")
    assert events.query("kind == 'fallback'").pair.tolist() == [PAIR]
    daily = pd.read_parquet(fallen / "frames" / "daily.parquet").query("scenario == 'base' and split == 'test'")
    by_policy = daily.pivot(index="date", columns="policy", values="target_weight_a")
    np.testing.assert_allclose(by_policy["ensemble"], by_policy["vol_target"], atol=1.01e-4)
    assert by_policy["ensemble"].nunique() > 10


def test_what_comes_after_a_run_takes_the_prior_as_its_survivor(
    fallen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = load_policy(fallen, PAIR)
    assert np.ptp(policy.decide(None)) == 0, "equal weight in both legs"
    assert Policy.load(fallen / "survivors" / "SYNA_SYNB" / "1").action_map.mapping == "residual"
    assert replay([str(fallen), "--pair", PAIR]) == 2
    assert "trades its prior, which nothing trained" in capsys.readouterr().err
    assert backtest([str(fallen), "--grid", "costs=2"]) == 0
    run = build_config(merge(load_file(fallen / "config.yaml"), {"data": {"pairs": ["SYNC/SYND"]}}))
    one = fallen / "survivors" / "SYNA_SYNB" / "1"
    (warning,) = Base({"SYNC/SYND": one}).warnings(run)[1:]
    assert "brings its scale of features to SYNC/SYND, though its universe gave each pair one of its own" in warning
    assert Base({PAIR: one}).warnings(build_config(load_file(fallen / "config.yaml"))) == []


def snapshots(*scores: float) -> Population:
    found = [Snapshot(str(i), "m00", i, s, 0.1, s, False, {}) for i, s in enumerate(scores, start=1)]
    return Population(PAIR, len(scores), "complete", {}, tuple(found))


def residual(**pbt: float) -> RunConfig:
    return build_config({"env": {"mapping": "residual"}, "pbt": pbt})


def test_the_prior_takes_over_below_the_least_gain_and_above_the_most_overfitting() -> None:
    assert why_fallback(residual(), snapshots(-2.0), None) is None
    idle = replace(snapshots(0.3).archive[0], idle=True)
    assert (
        why_fallback(residual(min_gain=0), replace(snapshots(), archive=(idle,)), None)
        == "every snapshot idles on validation"
    )
    assert why_fallback(residual(min_gain=0.2), snapshots(0.1, 0.2), None) is None
    assert "0.15 less one error, is below" in str(why_fallback(residual(min_gain=0.2), snapshots(0.15), None))
    noise = 0.01 * np.random.default_rng(0).standard_normal((500, 12))
    skilled = noise + np.linspace(0, 0.01, 12)
    assert archive_overfitting(skilled) < 0.05 < 0.2 < archive_overfitting(noise)
    assert why_fallback(residual(max_overfitting=0.2), snapshots(1.0), skilled) is None
    assert "on validation is above pbt.max_overfitting 0.2" in str(
        why_fallback(residual(max_overfitting=0.2), snapshots(1.0), noise)
    )


@pytest.mark.parametrize("field", ["min_gain", "max_overfitting"])
def test_only_what_has_a_prior_can_fall_back_to_it(field: str) -> None:
    with pytest.raises(UserError, match=rf"pbt.{field}: falls back to a prior, which env.mapping residual alone has"):
        build_config({"pbt": {field: 0.1}})
