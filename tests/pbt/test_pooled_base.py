"""Fitness over the base of a population that is pooled: each pair is measured against the base's account on itself."""

from pathlib import Path

import numpy as np

from envs.market import load_markets
from envs.universe import with_universe
from pbt import fitness
from pbt.base import BASE, base_state
from pbt.generation import base_returns, evaluate, train_segment, training_key, untrained_state
from pbt.survivors import policy_from_state
from rayconf import RunConfig, load_config
from tests.pbt.conftest import TINY

LEADER, OTHER = PAIRS = ("SYNA/SYNB", "SYNC/SYND")


def pooled_run(*more: str) -> RunConfig:
    settings = ("pbt.pooled=true", "universe.pairs=SYNA/SYNB,SYNC/SYND", "optimizer.warmup_fraction=0")
    assert load_config("smoke").data.pairs == PAIRS
    return load_config("smoke", assignments=[*TINY, *settings, *more])


def test_nothing_learned_is_nothing_gained_on_every_pair(ray_session: None, tmp_path: Path) -> None:
    run = pooled_run("optimizer.learning_rate=0.01", "pbt.fitness_over=cash")
    markets = with_universe(load_markets(run), run)
    market, others = markets[LEADER], [markets[OTHER]]
    key = training_key(run, LEADER, "m00", 1)
    learned = train_segment(run, market, {}, untrained_state(run, market, BASE), key, 1, init_key=0, others=others)
    policy = policy_from_state(learned.state, run, market.scaler.names)
    policy.save(tmp_path)
    recorded = evaluate(run, market, policy, 1, others).net_returns
    assert set(recorded) == set(PAIRS)
    assert not np.array_equal(recorded[LEADER], recorded[OTHER])

    still, free = (
        pooled_run(f"optimizer.learning_rate={rate}", "pbt.fitness_over=base", f"stages.base={tmp_path}")
        for rate in (1e-12, 0.01)
    )
    start = base_state(still, market, tmp_path)
    weights = {name.removeprefix("anchor/"): t for name, t in start.items() if name.startswith("anchor/")}
    for pair, each in markets.items():
        assert np.array_equal(base_returns(still, each, weights), recorded[pair]), pair
    same, other = (
        train_segment(one, market, {}, start, key, 1, init_key=0, others=others).evaluation for one in (still, free)
    )
    assert (same.figures["fitness"], same.figures["fitness_se"]) == (0.0, 0.0)
    assert all(np.array_equal(same.net_returns[pair], recorded[pair]) for pair in PAIRS)

    accounts = []
    for pair, each in markets.items():
        span, ours = each.splits["validation"], other.net_returns[pair]
        dates, per_year = each.dates[span.start : span.stop - 1], each.sessions_per_year
        accounts.append(fitness.Account(ours, np.ones(len(ours)), dates, per_year, False, over=recorded[pair]))
    gain = fitness.evaluate_each(accounts, free.pbt, free.seed, LEADER, 1)
    assert (other.figures["fitness"], other.figures["fitness_se"]) == (gain.value, gain.se)
    assert gain.value != 0
