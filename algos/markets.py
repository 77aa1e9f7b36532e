"""One market per process: built once from the run, or handed in by a caller that already holds it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from envs.market import PairMarket, load_markets
from envs.universe import with_universe
from rayconf.errors import UserError
from rayconf.run_config import RunConfig

# The sections that decide what a market looks like. Penalties and costs are left out on purpose: they
# mutate from generation to generation, the market does not.
_SECTIONS = ("data", "synthetic", "split", "features", "universe", "augment")

_MARKETS: dict[tuple[str, str], PairMarket] = {}


def market_key(run: RunConfig) -> str:
    """Digest of everything in the run that its markets depend on."""
    parts: dict[str, Any] = {name: getattr(run, name).model_dump(mode="json") for name in _SECTIONS}
    if run.universe.given or run.augment.histories:
        parts |= {"encoder": [run.network.encoder, run.network.encoder_window]}
    if run.augment.histories:
        parts |= {"seed": run.seed}
    if run.stages.share < 1:
        parts |= {"share": run.stages.share}
    parts |= {"lag": run.env.lag, "base": run.stages.base_digest}  # a base checkpoint brings the scale of features
    parts["forecasts"] = run.forecasts.content
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def run_of(env_config: Mapping[str, Any]) -> RunConfig:
    """The run described by ``env_config["run"]``."""
    return RunConfig.model_validate(env_config["run"])


def market_for(env_config: Mapping[str, Any]) -> PairMarket:
    """The market of ``env_config["pair"]`` under ``env_config["run"]``, loaded at most once per process.

    All pairs of the run are loaded together, because the borders of the splits are common to them.

    Raises:
        UserError: If the pair is not one of the run's.
    """
    run, pair = run_of(env_config), str(env_config["pair"])
    key = market_key(run)
    if (key, pair) not in _MARKETS:
        if pair not in run.data.pairs:
            raise UserError(f"pair: {pair!r} is not in data.pairs; choose one of {', '.join(run.data.pairs)}")
        markets = with_universe(load_markets(run), run)
        _MARKETS.update({(key, name): market for name, market in markets.items()})
    return _MARKETS[key, pair]


def forget(run: RunConfig) -> None:
    """Let go of the run's markets in this process; with many resampled histories they fill its memory."""
    key = market_key(run)
    for known in [known for known in _MARKETS if known[0] == key]:
        del _MARKETS[known]


def provide(run: RunConfig, pair: str, market: PairMarket) -> None:
    """Use ``market`` for ``pair`` in this process, for instance one read from Ray's object store."""
    _MARKETS[market_key(run), pair] = market
