from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayconf import RunConfig, UserError, load_config
from rayconf.loading import field_paths, preset_names
from rayconf.plan import plan
from rayconf.run_config import default_search
from rayconf.session import Machine


def test_presets_have_the_stated_sizes() -> None:
    assert preset_names() == ["default", "demo", "log-pairs", "smoke", "study"]
    demo = plan(load_config("demo"), Machine(2))
    assert demo.env_steps == 2 * 8 * 8 * 3 * 32768
    assert (demo.pairs, demo.members, demo.generations, demo.batch) == (2, 16, 8, 32768)
    pooled = plan(load_config("default"), Machine(2))
    assert (pooled.members, pooled.generations, pooled.env_steps) == (4, 14, 4 * 14 * 8 * 512 * 84)
    smoke = plan(load_config("smoke"), Machine(2))
    assert smoke.env_steps == 2 * 4 * 3 * 1 * 16384
    assert load_config("smoke").pbt.replace_z == 0
    study = plan(load_config("study"), Machine(2))
    assert (study.pairs, study.members, study.generations, study.env_steps) == (1, 8, 8, 8 * 8 * 3 * 16384)


def test_log_pairs_trades_on_the_terms_of_the_log() -> None:
    run = load_config("log-pairs")
    assert run.data.pairs == ("AAPL/AMZN", "AMZN/MSFT", "NVDA/GOOGL")
    assert (run.costs.real_bps, run.costs.leverage, run.costs.borrow_rate) == (1.0, 1.5, 0.0675)
    assert run.costs.financing == "gross"
    assert run.backtest.cost_bps == (1.0, 5.0)


@pytest.mark.parametrize("preset", ["default", "demo", "log-pairs", "smoke", "study"])
def test_written_config_gives_the_same_config(preset: str, tmp_path: Path) -> None:
    settings = ["env.risk_measure=drawdown"]
    run = load_config(preset, flags={"name": "a", "seed": 7}, assignments=settings)
    written = tmp_path / "config.yaml"
    written.write_text(run.to_yaml())
    # Over any preset: what is written is complete, so nothing of the preset shows through.
    for base in preset_names():
        assert load_config(base, file=written) == run


@given(
    commission=st.floats(0, 50),
    slippage=st.floats(0, 50),
    lag=st.integers(1, 20),
    rate=st.floats(1e-9, 1),
    seed=st.integers(0, 2**63),
    measure=st.sampled_from(["variance", "downside", "drawdown"]),
)
def test_round_trip_keeps_every_digit(
    tmp_path_factory: pytest.TempPathFactory,
    commission: float,
    slippage: float,
    lag: int,
    rate: float,
    seed: int,
    measure: str,
) -> None:
    assignments = [
        f"costs.commission_bps={commission!r}",
        f"costs.slippage_bps={slippage!r}",
        f"env.lag={lag}",
        f"optimizer.learning_rate={rate!r}",
        f"seed={seed}",
        f"env.risk_measure={measure}",
    ]
    run = load_config("smoke", assignments=assignments)
    assert (run.costs.commission_bps, run.env.lag, run.seed) == (commission, lag, seed)
    assert run.optimizer.learning_rate == rate
    written = tmp_path_factory.mktemp("run") / "config.yaml"
    written.write_text(run.to_yaml())
    assert load_config("demo", file=written) == run


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("pbt: {population: 5, survivors: 2}\nseed: 1\nenv: {lag: 2}\n")
    assert load_config("smoke").pbt.population == 4
    assert load_config("smoke", file=file).pbt.population == 5
    run = load_config("smoke", file=file, flags={"pbt.population": 6, "seed": 2}, assignments=["pbt.population=7"])
    assert (run.pbt.population, run.seed, run.env.lag, run.pbt.survivors) == (7, 2, 2, 2)
    assert run.ppo.num_envs == 256  # the preset's, untouched


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("network.hidden=[128, 32]", "network.hidden", (128, 32)),
        ("data.pairs=[KO/PEP]", "data.pairs", ("KO/PEP",)),
        ("data.bars_per_year=null", "data.bars_per_year", None),
        ("features.calendar=false", "features.calendar", False),
        ("data.dir=a/b=c", "data.dir", "a/b=c"),
        ("costs.financing=gross", "costs.financing", "gross"),
    ],
)
def test_set_reads_values_as_they_look(assignment: str, path: str, value: object) -> None:
    found: object = load_config("smoke", assignments=[assignment])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_every_section_is_reached_by_set() -> None:
    sections = {path.partition(".")[0] for path in field_paths()}
    assert sections == set(RunConfig.model_fields)
    run = load_config("smoke")
    for path in field_paths():
        value: object = run
        for part in path.split("."):
            value = getattr(value, part)
        # The default, given back as text, is accepted and changes nothing.
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert load_config("smoke", assignments=[f"{path}={value!r}"]) == run, path


def test_setting_one_bound_keeps_the_rest_of_the_search() -> None:
    before = load_config("smoke").search
    after = load_config("smoke", assignments=["search.learning_rate.high=1e-3"]).search
    assert after["learning_rate"].high == 1e-3
    assert after["learning_rate"].low == before["learning_rate"].low
    assert {name: space for name, space in after.items() if name != "learning_rate"} == {
        name: space for name, space in before.items() if name != "learning_rate"
    }


STAGED = ("stages.run=[base,population]", "network.encoder=conv")


def test_a_tuned_encoder_has_a_learning_rate_factor_of_its_own() -> None:
    """In the search unless told otherwise, and nowhere else; the run's own value lies inside."""
    plain, staged = load_config("smoke").search, load_config("smoke", assignments=STAGED).search
    assert {name: space for name, space in staged.items() if name != "encoder_lr_factor"} == plain
    factor = staged["encoder_lr_factor"]
    assert (factor.path, factor.low, factor.high) == ("optimizer.encoder_lr_factor", 0.03, 3.0)
    slow = load_config("smoke", assignments=[*STAGED, "optimizer.encoder_lr_factor=0.001"])
    low, high = slow.search["encoder_lr_factor"].bounds
    assert low < slow.value_of("encoder_lr_factor") < high
    assert load_config("smoke", assignments=[*STAGED, "stages.encoder=frozen"]).search == plain
    assert load_config("smoke", assignments=["network.encoder=conv"]).search == plain
    own = "search={rate: {path: optimizer.learning_rate, low: 1e-4, high: 1e-3}}"
    assert set(load_config("smoke", assignments=[*STAGED, own]).search) == {"rate"}


def test_what_is_added_to_the_search_is_added_to_that_of_the_whole_run() -> None:
    """Wherever it stands among the assignments: the default search follows from the others."""
    more = "search.gamma={path: ppo.gamma, low: 0.9, high: 0.99, scale: logit}"
    runs = [load_config("smoke", assignments=order) for order in ([more, *STAGED], [*STAGED, more])]
    assert runs[0] == runs[1]
    assert {"gamma", "encoder_lr_factor"} < set(runs[0].search)
    frozen = load_config("smoke", assignments=[more, *STAGED, "stages.encoder=frozen"])
    assert "encoder_lr_factor" not in frozen.search
    alone = "search={rate: {path: optimizer.learning_rate, low: 1e-4, high: 1e-3}}"
    assert set(load_config("smoke", assignments=[more, alone]).search) == {"rate"}
    assert set(load_config("smoke", assignments=[alone, more]).search) == {"rate", "gamma"}


def test_search_never_trains_below_the_real_cost() -> None:
    run = load_config("smoke", assignments=["costs.commission_bps=4", "costs.slippage_bps=3"])
    assert run.search["train_cost_bps"].low == 7
    assert run.env.train_cost_bps == 7
    free = load_config("smoke", assignments=["costs.commission_bps=0", "costs.slippage_bps=0"])
    assert "train_cost_bps" not in free.search
    assert default_search(free.env, free.costs) == free.search


def test_with_values_sets_named_hyperparameters_only() -> None:
    run = load_config("smoke")
    moved = run.with_values({"learning_rate": 1e-3, "risk_penalty": 2.0, "cvar_weight": 0.01})
    assert (moved.value_of("learning_rate"), moved.value_of("risk_penalty")) == (1e-3, 2.0)
    assert moved.env.cvar_weight == 0.01
    assert moved.value_of("turnover_penalty") == run.value_of("turnover_penalty")
    back = moved.with_values({name: run.value_of(name) for name in ("learning_rate", "risk_penalty", "cvar_weight")})
    assert back == run


# What the user wrote, and what the one line must name: the field, the value, and what would be right.
MISTAKES = [
    ("env.lag=0", ["env.lag", "0", "greater than or equal to 1"]),
    ("costs.leverage=0", ["costs.leverage", "0", "greater than 0"]),
    ("costs.commission_bps=-1", ["costs.commission_bps", "-1", "greater than or equal to 0"]),
    ("pbt.population=many", ["pbt.population", "many", "integer"]),
    ("pbt.population=2.5", ["pbt.population", "2.5", "integer"]),
    ("optimizer.learning_rate=nan", ["optimizer.learning_rate", "nan", "finite"]),
    ("costs.borrow_rate=inf", ["costs.borrow_rate", "inf", "finite"]),
    ("optimizer.kind=sgd", ["optimizer.kind", "sgd", "muon_mix"]),
    ("pbt.populaton=4", ["pbt.populaton", "4", "pbt.population"]),
    ("population=4", ["population", "4", "pbt.population"]),
    ("costs.nothing_like_it=1", ["costs.nothing_like_it", "1", "did you mean costs."]),
    ("nonsense", ["nonsense", "path.to.key=value"]),
    ("data.pairs=[AAPLAMZN]", ["data.pairs", "AAPLAMZN", "AAA/BBB"]),
    ("data.pairs=[../etc/passwd]", ["data.pairs", "../etc/passwd", "AAA/BBB"]),
    ("data.pairs=[KO/KO]", ["data.pairs", "KO/KO", "two different"]),
    ("data.pairs=[]", ["data.pairs", "at least one"]),
    ("name=../up", ["name", "../up"]),
    ("pbt.interval=2", ["interval 2", "iterations 3"]),
    ("ppo.minibatch_size=1000000", ["minibatch_size 1000000", "16384"]),
    ("env.train_cost_bps=1", ["env.train_cost_bps", "1.0", "2.0"]),
    ("split.fractions=[0.5, 0.2, 0.2]", ["split", "sum to 1"]),
    ("search.learning_rate.path=costs.leverage", ["search.learning_rate.path", "costs.leverage"]),
    ("search.train_cost_bps.low=0.5", ["search.train_cost_bps.low", "0.5", "2.0"]),
    *(
        (f"search.x={{path: network.{field}, low: 1, high: 2}}", ["search.x.path", field, "another shape", "whole run"])
        for field in ("hidden", "layer_norm", "legs", "encoder", "encoder_width", "encoder_window")
    ),
    ("search.x={path: network.activation, low: 1, high: 2}", ["search.x.path", "network.activation", "choose one of"]),
    ("network.hidden=[64", ["network.hidden", "[64", "YAML"]),
]


@pytest.mark.parametrize(("assignment", "named"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_mistakes_are_refused_in_one_line(assignment: str, named: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        load_config("smoke", assignments=[assignment])
    message = str(refusal.value)
    assert "\n" not in message
    assert [part for part in named if part.lower() not in message.lower()] == [], message


def test_a_file_alone_lies_on_the_defaults_of_the_fields(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("seed: 3\n")
    assert load_config(None, tmp_path / "short.yaml") == RunConfig(seed=3)
    assert load_config("default", tmp_path / "short.yaml").algo == "direct"


def test_wrong_presets_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"smok.*default, demo, log-pairs, smoke"):
        load_config("smok")
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_config("smoke", file=tmp_path / "none.yaml")
    for text, said in [("[1, 2]", "mapping"), ("a: [", "YAML"), ("pbt: {popluation: 3}", "popluation")]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=said) as refusal:
            load_config("smoke", file=tmp_path / "bad.yaml")
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["network.encoder=transformer", "network.encoder_heads=5"], "encoder_heads 5 must divide encoder_width 32"),
        (
            ["network.encoder=transformer", "network.encoder_window=2"],
            "encoder_layers 2 must be below encoder_window 2",
        ),
        (["network.encoder=factored", "network.hidden=[]"], "hidden must name at least one layer"),
        (["network.encoder=lstm"], "network.encoder"),
        (["network.encoder=gru", "network.layer_norm=true"], "layer_norm needs encoder mlp; gru has none"),
        (["network.hidden=[8, 1]", "network.layer_norm=true"], "layer_norm needs hidden layers of two or more units"),
        (["network.encoder_window=1"], "network.encoder_window"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("smoke", assignments=assignments)
