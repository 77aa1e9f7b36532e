"""What the sections of a run must not say together, checked when its config is built."""

import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rayconf.search import MUTABLE, OF_POLICY, OF_SHAPE, Range, idle_fields
from rayconf.sections import ENCODERS, Section

if TYPE_CHECKING:
    from rayconf.run_config import RunConfig

PAIR = re.compile(r"[A-Za-z0-9][A-Za-z0-9.^=-]{0,15}/[A-Za-z0-9][A-Za-z0-9.^=-]{0,15}")

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def check_consistent(run: "RunConfig") -> None:
    """Check a run whose sections are sound by themselves.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    for field, pairs in (("data.pairs", run.data.pairs), ("universe.pairs", run.universe.pairs)):
        for pair in pairs:
            if not PAIR.fullmatch(pair) or len(set(pair.split("/"))) != 2:
                raise ValueError(f"{field}: {pair!r} is no pair; write two different tickers as AAA/BBB")
    tickers = () if run.universe.everything else run.universe.tickers
    for ticker in (*tickers, *run.universe.held_out):
        if not PAIR.fullmatch(f"{ticker}/A"):
            raise ValueError(f"universe: {ticker!r} is no ticker")
    if run.augment.noise and run.network.encoder != "mlp":
        raise ValueError(
            f"augment.noise: {run.augment.noise} needs network.encoder mlp; {run.network.encoder} reads a bar "
            "once for all accounts"
        )
    if not run.data.pairs or len(set(run.data.pairs)) != len(run.data.pairs):
        raise ValueError("data.pairs: give each pair once, at least one")
    for pair in run.data.transferred:
        if pair not in run.data.pairs:
            raise ValueError(f"data.transferred: {pair!r} is not in data.pairs")
    if run.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run.name):
        raise ValueError(f"name: {run.name!r} must be letters, digits, '.', '_' or '-'")
    if run.stages.pretrain and run.network.encoder == "mlp":
        raise ValueError(
            "stages.run: base and specialists train a market encoder, and network.encoder mlp has none; choose "
            f"{', '.join(ENCODERS)}"
        )
    if run.stages.share < 1 and run.augment.histories:
        raise ValueError("stages.share: needs augment.histories 0; resampled histories hold days of the whole span")
    if run.stages.pretrain and run.data.transferred:
        raise ValueError("stages.run: pairs cannot join a run with a pre-trained encoder (data.transferred)")
    if run.split.walk_forward and (run.stages.base is not None or run.data.transferred):
        what = "stages.base" if run.stages.base is not None else "data.transferred"
        raise ValueError(f"split.walk_forward: leave {what} out; what was trained before may have seen the tests")
    _check_terms(run)
    _check_pooled(run)
    if run.forecasts.wanted and run.augment.histories:
        raise ValueError("augment.histories: resampled histories have no forecasts; set 0, or leave forecasts out")
    if run.network.legs == "shared" and run.forecasts.wanted:
        _check_mirrored(run)
    for field in ("min_gain", "max_overfitting"):
        given = getattr(run.pbt, field) is not None
        if given and run.env.mapping != "residual" and run.pbt.fitness_over != "base":
            raise ValueError(
                f"pbt.{field}: falls back to a prior, which env.mapping residual alone has, or with "
                "pbt.fitness_over base to a base checkpoint"
            )
    if run.pbt.min_gain is not None and run.pbt.fitness_over == "cash":
        raise ValueError("pbt.min_gain: is a gain over prior or base; set pbt.fitness_over to one of them")
    _check_anchor(run)
    if run.pbt.on_drop == "freeze" and not run.network.hidden:
        raise ValueError("pbt.on_drop: freeze needs network.hidden with at least one layer")
    for name, space in run.search.items():
        _check_search(run, name, space)
    paths = [space.path for space in run.search.values()]
    for name, space in run.search.items():
        if paths.count(space.path) > 1:
            raise ValueError(f"search.{name}.path: {space.path!r} is moved by two names; keep one")


def _check_mirrored(run: "RunConfig") -> None:
    """Forecasts for legs that share their weights: each needs the one it becomes when the legs are swapped."""
    series, quantiles = run.forecasts.series, run.forecasts.quantiles
    if ("a" in series) != ("b" in series):
        raise ValueError(f"forecasts.series: {list(series)} must name both legs or none with network.legs shared")
    if "spread" in series and {f"{q:g}" for q in quantiles} != {f"{1 - q:g}" for q in quantiles}:
        raise ValueError(f"forecasts.quantiles: {list(quantiles)} must hold 1 - q for each q with network.legs shared")


def _check_pooled(run: "RunConfig") -> None:
    """What one population for all pairs cannot do."""
    if not run.pbt.pooled:
        return
    if not run.universe.given:
        raise ValueError(
            "pbt.pooled: one population for all pairs trains on what they share; give universe.tickers or "
            "universe.pairs, or set it to false"
        )
    if run.data.transferred:
        raise ValueError("pbt.pooled: pairs cannot join a population of others (data.transferred); start a new run")
    if "specialists" in run.stages.run:
        raise ValueError("pbt.pooled: leave specialists out of stages.run; they are encoders of one pair each")


def _check_terms(run: "RunConfig") -> None:
    """What a member's terms of trading may be beside the real ones."""
    if run.env.train_cost_bps is not None and run.env.train_cost_bps < run.costs.real_bps:
        raise ValueError(
            f"env.train_cost_bps: {run.env.train_cost_bps} is below the real cost {run.costs.real_bps} bps"
        )
    if run.env.leverage_cap is not None and run.env.leverage_cap > run.costs.leverage:
        raise ValueError(
            f"env.leverage_cap: {run.env.leverage_cap} is above the limit costs.leverage {run.costs.leverage}"
        )


def _check_anchor(run: "RunConfig") -> None:
    """What needs the weights that the run started from must know them, and one policy that they make."""
    needs = [f"search.{name}.path" for name, space in run.search.items() if space.path == "optimizer.pull"]
    needs += ["optimizer.pull"] if run.optimizer.pull else []
    needs += ["pbt.fitness_over"] if run.pbt.fitness_over == "base" else []
    if needs and not run.stages.fine_tunes:
        raise ValueError(
            f"{needs[0]}: needs the weights of a base checkpoint; name one in stages.base (--base-checkpoint), "
            "without the stages base and specialists"
        )
    if needs and run.data.transferred:
        raise ValueError(
            f"data.transferred: pairs cannot join a run that holds on to its base ({needs[0]}); launch them from "
            "that base in a run of their own"
        )
    for name, space in run.search.items():
        if run.pbt.fitness_over == "base" and space.path in OF_POLICY:
            raise ValueError(
                f"search.{name}.path: {space.path} is part of the base's policy, which pbt.fitness_over base "
                "compares with; leave it as the base has it"
            )


def _check_search(run: "RunConfig", name: str, space: Range) -> None:
    """Refuse what the field itself would refuse: the run is checked with every corner of the range in its place."""
    if not NAME.fullmatch(name):
        raise ValueError(f"search: {name!r} names columns and must be letters, digits and '_'")
    if space.path in OF_SHAPE:
        raise ValueError(
            f"search.{name}.path: {space.path!r} cannot be mutated: weights of another shape cannot be copied between "
            "members; set it for the whole run"
        )
    if space.path not in MUTABLE:
        raise ValueError(f"search.{name}.path: {space.path!r} cannot be mutated; choose one of {', '.join(MUTABLE)}")
    if why := idle_fields(run.algo, run.direct.objective).get(space.path):
        raise ValueError(f"search.{name}.path: {space.path!r} changes nothing while {why}")
    if space.path == "optimizer.encoder_lr_factor" and run.stages.freezes:
        raise ValueError(f"search.{name}.path: {space.path!r} changes nothing while stages.encoder is frozen")
    section, _, field = space.path.partition(".")
    owner: Section = getattr(run, section)
    whole = isinstance(getattr(owner, field), int)
    if whole and space.scale not in ("integer", "categorical"):
        raise ValueError(
            f"search.{name}.scale: {space.path} is a whole number and cannot move on the {space.scale} scale; use "
            "integer or categorical"
        )
    for label, value in space.corners:
        try:
            changed = type(owner).model_validate({**owner.model_dump(), field: value})
            _check_terms(run.model_copy(update={section: changed}))
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"search.{name}.{label}: {value:g} cannot be {space.path}: {why}") from error
        except ValueError as error:
            raise ValueError(f"search.{name}.{label}: {error}") from error
