"""The search space on every scale: drawn, moved, mapped to unit space, shown; mistakes are named."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from pbt import launch
from pbt.manifest import Observation
from pbt.pb2 import Bandit
from pbt.search import draw, explore, from_unit, initial_values, space_lines, to_unit
from rayconf import UserError, load_config
from rayconf.loading import load_file
from rayconf.run_config import RunConfig
from rayconf.search import MUTABLE, Range

SPACES = {
    "log": Range(path="x", low=0.5, high=40.0, step=2.0),
    "linear": Range(path="x", low=0.0, high=40.0, scale="linear", step=3.0),
    "logit": Range(path="x", low=0.6, high=0.9999, scale="logit", step=1.5),
    "integer": Range(path="x", low=2, high=9, scale="integer", step=3),
    "categorical": Range(path="x", scale="categorical", choices=(64, 128, 1000, 4096)),
}
CONTINUOUS = ("log", "linear", "logit")


def ladder(space: Range) -> list[float]:
    """Every value of a discrete range."""
    low, high = space.bounds
    return list(space.choices) or [float(v) for v in range(int(low), int(high) + 1)]


def odds(share: float) -> float:
    return share / (1 - share)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(share=st.floats(0, 1), scale=st.sampled_from(sorted(SPACES)))
def test_unit_space_and_back(share: float, scale: str) -> None:
    space = SPACES[scale]
    low, high = space.bounds
    value = from_unit(share, space)
    assert low <= value <= high
    assert type(value) is float
    position = to_unit(value, space)
    assert from_unit(position, space) == pytest.approx(value, rel=1e-9, abs=1e-12)
    if scale in CONTINUOUS:
        assert position == pytest.approx(share, abs=1e-9)
    else:
        values = ladder(space)
        assert position == pytest.approx(values.index(value) / (len(values) - 1), abs=1e-12)
        assert from_unit(position, space) == value
    assert (to_unit(low, space), to_unit(high, space)) == (0.0, 1.0)


def test_even_positions_are_even_draws_of_what_is_discrete() -> None:
    for scale in ("integer", "categorical"):
        space = SPACES[scale]
        found = Counter(from_unit((i + 0.5) / 8000, space) for i in range(8000))
        assert sorted(found) == ladder(space)
        assert set(found.values()) == {8000 // len(found)}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(key=st.integers(), share=st.floats(0, 1))
def test_moves_stay_inside_and_within_a_step(key: int, share: float) -> None:
    old = {scale: from_unit(share, space) for scale, space in SPACES.items()}
    new = explore(old, SPACES, draw(key))
    assert new == explore(old, SPACES, draw(key))
    for scale, space in SPACES.items():
        low, high = space.bounds
        assert low <= new[scale] <= high
        assert type(new[scale]) is float
    assert 1 / 2.0000001 <= new["log"] / old["log"] <= 2.0000001
    assert abs(new["linear"] - old["linear"]) <= 3 + 1e-9
    assert 1 / 1.5000001 <= odds(new["logit"]) / odds(old["logit"]) <= 1.5000001
    assert abs(new["integer"] - old["integer"]) <= 3
    assert new["integer"] == round(new["integer"])
    assert new["categorical"] in SPACES["categorical"].choices


def test_what_is_discrete_moves_and_moves_evenly() -> None:
    moves = Counter(explore({"x": 5.0}, {"x": SPACES["integer"]}, draw(i))["x"] - 5 for i in range(3000))
    assert set(moves) == {-3, -2, -1, 1, 2, 3}, "never nothing"
    assert min(moves.values()) > 400
    steps = Counter(explore({"x": 128.0}, {"x": SPACES["categorical"]}, draw(i))["x"] for i in range(4000))
    share = {value: count / 4000 for value, count in steps.items()}
    # a quarter is drawn anew over four choices, the rest are neighbours
    assert share == pytest.approx({64: 0.4375, 128: 0.0625, 1000: 0.4375, 4096: 0.0625}, abs=0.03)
    at_end = Counter(explore({"x": 64.0}, {"x": SPACES["categorical"]}, draw(i))["x"] for i in range(2000))
    assert at_end[64] / 2000 == pytest.approx(0.4375, abs=0.04)


def test_log_and_linear_moves_are_what_they_always_were() -> None:
    """To the bit: runs with the default search repeat."""
    search = {name: SPACES[name] for name in ("linear", "log")}
    rng = draw("x")
    first, second = 2 * rng.random() - 1, 2 * rng.random() - 1
    assert explore({"log": 7.0, "linear": 9.0}, search, draw("x")) == {
        "linear": 9.0 + 3.0 * first,
        "log": 7.0 * 2.0**second,
    }


def test_pb2_proposes_what_there_is() -> None:
    """It learns the best choice and the best whole number, and is asked only about positions that have a value."""
    search = {name: SPACES[name] for name in ("categorical", "integer", "logit")}
    rng, rows = np.random.default_rng(0), []
    for i in range(60):
        values = {name: from_unit(float(rng.random()), space) for name, space in search.items()}
        shares = {name: to_unit(values[name], space) for name, space in search.items()}
        gain = -8 * (shares["categorical"] - 1 / 3) ** 2 - 8 * (shares["integer"] - 1) ** 2
        rows.append(Observation(1 + i // 8, f"m{i % 8:02d}", values, gain + 0.05 * rng.standard_normal()))
    bandit = Bandit(search, 9, rows, [])
    found = [bandit({}, draw(i)) for i in range(4)]
    for values in found:
        assert values["categorical"] in search["categorical"].choices
        assert values["integer"] in ladder(search["integer"])
        assert 0.6 <= values["logit"] <= 0.9999
        positions = [to_unit(values[name], space) for name, space in sorted(search.items())]
        assert any(np.allclose(pending[1:], positions, atol=1e-9) for pending in bandit._pending)
    assert Counter(values["categorical"] for values in found).most_common(1)[0][0] == 128
    assert all(values["integer"] >= 8 for values in found)


EVERY = (
    "search.gamma={path: ppo.gamma, low: 0.9, high: 0.995, scale: logit}",
    "search.epochs={path: ppo.epochs, low: 1, high: 6, scale: integer, step: 1}",
    "search.rows={path: ppo.minibatch_size, scale: categorical, choices: [2048, 4096, 8192]}",
    "search.entropy={path: ppo.entropy_coeff, low: 0.001, high: 0.01}",
    "search.cap={path: env.leverage_cap, low: 0.5, high: 1.5, scale: linear, step: 0.2}",
)


def test_whole_numbers_are_restored_in_the_config_and_survive_a_file(tmp_path: object) -> None:
    run = load_config("smoke", assignments=EVERY)
    first = initial_values(run, "A/B", 0)
    assert {name: first[name] for name in ("gamma", "epochs", "rows", "entropy", "cap")} == {
        "gamma": pytest.approx(0.95), "epochs": 4.0, "rows": 4096.0, "entropy": 0.001, "cap": 1.5,
    }  # fmt: skip
    assert all(type(value) is float for value in first.values())
    moved = run.with_values(initial_values(run, "A/B", 3))
    assert (type(moved.ppo.epochs), type(moved.ppo.minibatch_size)) == (int, int)
    assert RunConfig.model_validate(moved.model_dump(mode="json")) == moved
    assert run.env.leverage_cap is None
    written = tmp_path / "config.yaml"  # type: ignore[operator]
    written.write_text(run.to_yaml())
    assert load_config("demo", file=written) == run
    assert load_file(written)["search"]["rows"]["low"] is None


def test_the_table_shows_where_the_first_member_starts() -> None:
    lines = space_lines(load_config("smoke", assignments=EVERY))
    assert lines[0].split() == ["name", "field", "scale", "low", "high", "step", "or", "choices", "start"]
    cells = {line.split()[0]: line.split() for line in lines[1:]}
    assert len(cells) == 5 + len(EVERY)
    assert cells["gamma"] == ["gamma", "ppo.gamma", "logit", "0.9", "0.995", "odds", "x", "2", "0.95"]
    assert cells["epochs"] == ["epochs", "ppo.epochs", "integer", "1", "6", "+-", "1", "4"]
    assert cells["rows"][2:] == ["categorical", "2048", "8192", "2048", "|", "4096", "|", "8192", "4096"]
    assert cells["learning_rate"][-4:] == ["0.003", "x", "2", "0.0003"]
    assert lines[-2].endswith("0.001 (the run's own 0 is outside)")
    assert cells["cap"][-1] == "1.5"


def test_a_dry_run_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [word for assignment in EVERY for word in ("--set", assignment)]
    assert launch.main(["--preset", "smoke", "--dry-run", *chosen]) == 0
    printed = capsys.readouterr().out.splitlines()
    table = printed[printed.index("search space") + 1 :]
    assert table == [f"  {line}" for line in space_lines(load_config("smoke", assignments=EVERY))]


@pytest.mark.parametrize(("arm", "told"), [("fixed", "unused"), ("random", "keeps its first draw")])
def test_a_dry_run_says_where_nothing_moves(arm: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--preset", "smoke", "--dry-run", "--set", f"pbt.arm={arm}"]) == 0
    (title,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("search space")]
    assert f"pbt.arm {arm}" in title
    assert told in title


def test_the_registry_names_fields_that_there_are() -> None:
    run = load_config("smoke")
    for path in MUTABLE:
        section, field = path.split(".")
        value = getattr(getattr(run, section), field)
        assert isinstance(value, int | float) or path == "env.leverage_cap"
    assert len(set(MUTABLE)) == len(MUTABLE)


MISTAKES = [
    ("{path: ppo.gamma, low: 0.9, high: 1.2, scale: linear}", ["search.x.high", "1.2", "ppo.gamma", "less than"]),
    ("{path: ppo.gamma, low: 0.9, high: 1.0, scale: logit}", ["search.x", "high 1.0", "between 0 and 1"]),
    ("{path: ppo.gamma, low: 0.99, high: 0.9}", ["search.x", "low 0.99 must be below high 0.9"]),
    ("{path: ppo.gamma, low: 0.9, high: 0.9}", ["search.x", "low 0.9 must be below high 0.9"]),
    ("{path: ppo.gamma, low: 0.0, high: 0.9}", ["search.x", "low 0.0", "log scale"]),
    ("{path: ppo.gamma, low: 0.1, high: 0.9, step: 1.0}", ["search.x", "step 1.0", "above 1"]),
    ("{path: ppo.gamma, low: 0.1, high: 0.9, scale: logit, step: 0.5}", ["search.x", "step 0.5", "above 1"]),
    ("{path: ppo.gamma, high: 0.9}", ["search.x", "low: missing"]),
    ("{path: ppo.gamma, low: 0.1, high: 0.9, scale: cubic}", ["search.x.scale", "cubic", "categorical"]),
    ("{path: ppo.gae_lambda, low: 0.5, high: 1.5, scale: linear}", ["search.x.high", "1.5", "ppo.gae_lambda"]),
    ("{path: network.dropout, low: 0, high: 1, scale: linear}", ["search.x.high", "1", "network.dropout"]),
    ("{path: ppo.epochs, low: 1, high: 4}", ["search.x.scale", "ppo.epochs", "integer or categorical"]),
    ("{path: ppo.epochs, low: 0, high: 4, scale: integer}", ["search.x.low", "0", "ppo.epochs"]),
    ("{path: ppo.epochs, low: 1.5, high: 4, scale: integer}", ["search.x", "low 1.5", "whole number"]),
    ("{path: ppo.epochs, low: 1, high: 4, scale: integer, step: 0.5}", ["search.x", "step 0.5", "whole number"]),
    ("{path: ppo.epochs, scale: categorical, choices: [1, 2.5]}", ["search.x.choices", "2.5", "ppo.epochs"]),
    ("{path: ppo.epochs, scale: categorical, choices: [4]}", ["search.x", "choices [4.0]", "two or more"]),
    ("{path: ppo.epochs, scale: categorical, choices: [4, 2]}", ["search.x", "choices [4.0, 2.0]", "rise"]),
    ("{path: ppo.epochs, scale: categorical, choices: [1, 2], low: 1}", ["search.x", "low", "choices instead"]),
    ("{path: ppo.epochs, low: 1, high: 2, choices: [1, 2]}", ["search.x", "choices", "scale categorical"]),
    (
        "{path: ppo.minibatch_size, scale: categorical, choices: [4096, 32768]}",
        ["search.x.choices", "32768", "exceeds the batch", "16384"],
    ),
    ("{path: env.leverage_cap, low: 0.5, high: 2}", ["search.x.high", "2.0", "costs.leverage 1.5"]),
    ("{path: env.lag, low: 1, high: 2, scale: integer}", ["search.x.path", "env.lag", "ppo.gamma"]),
    ("{path: optimizer.learning_rate, low: 0.1, high: 0.2}", ["search", ".path", "moved by two names"]),
]


@pytest.mark.parametrize(("text", "named"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_ranges_that_cannot_be_are_refused_in_one_line(text: str, named: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        load_config("smoke", assignments=[f"search.x={text}"])
    message = str(refusal.value)
    assert "\n" not in message
    assert [part for part in named if part not in message] == [], message


def test_other_mistakes_of_the_space() -> None:
    for assignment, said in [
        ('search={"a b": {"path": "ppo.gamma", "low": 0.1, "high": 0.9}}', "'a b'"),
        ("env.leverage_cap=1.6", "env.leverage_cap: 1.6 is above the limit costs.leverage 1.5"),
    ]:
        with pytest.raises(UserError) as refusal:
            load_config("smoke", assignments=[assignment])
        assert said in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"dropout 0\.1 needs hidden"):
        load_config("smoke", assignments=["network.dropout=0.1", "network.hidden=[]"])
