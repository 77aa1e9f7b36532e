"""``python -m pbt.decide SURVIVOR --data-dir DIR``: what a survivor would trade after the last close.

SURVIVOR is a pair's folder ``RUN/survivors/AAA_BBB`` (its headline ensemble), one survivor's folder in it, or the same
of a run in a bucket or of a published one, ``hf://user/name/survivors/AAA_BBB``. Nothing is written, and no return
after the close is read.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayconf.errors import OneLineParser, UserError
from rayconf.origins import check_origins

if TYPE_CHECKING:
    from pbt.survivor import History, Orders, TradingPolicy

OK, MISTAKE, INTERRUPTED = 0, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = OneLineParser(prog="python -m pbt.decide", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "survivor", metavar="SURVIVOR", help="RUN/survivors/AAA_BBB[/RANK], or the same at s3://... or hf://..."
    )
    parser.add_argument("--pair", metavar="A/B", help="which pair, where SURVIVOR is a run of several")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="a CSV or Parquet file per ticker (default: the embedded market's own prices)"
    )
    parser.add_argument(
        "--forecasts", metavar="FILE", help="forecasts of these prices, where the survivor was trained with some"
    )
    parser.add_argument("--equity", type=float, default=1e4, metavar="X", help="cash plus holdings (default: 10000)")
    parser.add_argument("--holdings", metavar="A=12.5,B=-3", help="shares held, short ones negative (default: none)")
    parser.add_argument(
        "--pending", metavar="A=0.4,B=-0.4", help="target weights of the newest order that has not filled (lag above 1)"
    )
    parser.add_argument("--peak", type=float, metavar="X", help="highest equity so far, where a policy sees drawdown")
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="decide at the close of this bar (default: last common)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0, or 2 and one line on a user's mistake."""
    try:
        check_origins()
        return _decide(build_parser().parse_args(arguments))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("pairpbt: interrupted", file=sys.stderr)
        return INTERRUPTED


def parse_legs(flag: str, text: str | None) -> dict[str, float] | None:
    """``AAA=12.5,BBB=-3`` as numbers by ticker. Raises ``UserError`` naming the flag and the part that is none."""
    if text is None:
        return None
    legs: dict[str, float] = {}
    for part in text.split(","):
        ticker, equals, number = (word.strip() for word in part.rpartition("="))
        try:
            if not ticker or not equals or ticker in legs:
                raise ValueError
            legs[ticker] = float(number)
        except ValueError as error:
            raise UserError(f"{flag}: {part!r} must be TICKER=NUMBER, each ticker once, e.g. AAPL=12.5") from error
    return legs


def _decide(args: argparse.Namespace) -> int:
    from pbt.survivor import load_policy
    from pbt.trading_account import TradingAccount

    shares, pending = parse_legs("--holdings", args.holdings), parse_legs("--pending", args.pending)
    policy = load_policy(args.survivor, args.pair)
    if args.data_dir is None and policy.run.data.dir is not None:
        raise UserError(f"--data-dir: missing; {policy.pair} was trained on files, so give today's")
    for flag, legs in (("--holdings", shares), ("--pending", pending)):
        if unknown := [ticker for ticker in legs or () if ticker not in policy.tickers]:
            raise UserError(f"{flag}: {unknown[0]!r} is no leg of {policy.pair}")
    history = policy.history(args.data_dir, args.forecasts)
    account = TradingAccount(equity=args.equity, shares=shares, pending=pending, peak=args.peak)
    orders = policy.orders(history, account, args.date)
    if args.json:
        print(json.dumps(as_dict(policy, orders, history), indent=1, allow_nan=False))
    else:
        print("\n".join(lines(policy, orders, history)))
    return OK


def fill_text(policy: "TradingPolicy") -> str:
    """When an order fills, in words."""
    lag, price = policy.run.env.lag, policy.run.data.fill
    return f"fills at the next {price}" if lag == 1 else f"fills at the {price} {lag} bars on"


def as_dict(policy: "TradingPolicy", orders: "Orders", history: "History") -> dict[str, Any]:
    """The decision as JSON holds it. Weights are signed fractions of equity; money is in dollars."""

    def by_ticker(values: Any) -> dict[str, float]:
        return dict(zip(orders.tickers, map(float, values), strict=True))

    return {
        "pair": policy.pair,
        "policy": policy.name,
        "decision_date": _label(orders),
        "lag": policy.run.env.lag,
        "fill": policy.run.data.fill,
        "equity": orders.equity,
        "close": by_ticker(orders.close),
        "target_weights": by_ticker(orders.target),
        "weights": by_ticker(orders.weights),
        "current_weights": by_ticker(orders.current),
        "orders": [
            {"ticker": ticker, "side": side, "shares": shares, "value": value, "price": price}
            for ticker, side, shares, value, price in _trades(orders)
        ],
        "estimated_cost": orders.cost,
        "cost_bps": policy.run.costs.real_bps,
        "warnings": list(history.notes),
    }


def lines(policy: "TradingPolicy", orders: "Orders", history: "History") -> list[str]:
    """The decision for people."""
    first, second = orders.tickers
    told = [f"warning    {note}" for note in history.notes]
    told += [
        f"policy     {policy.pair} {policy.name}",
        f"decided    at the close of {_label(orders)}; {fill_text(policy)} (lag {policy.run.env.lag})",
        f"equity     {orders.equity:,.2f}",
        f"{'':10} {first:>12} {second:>12} {'gross':>8}",
    ]
    rows = {"current": orders.current, "target": orders.target}
    if (orders.weights != orders.target).any():
        rows["capped"] = orders.weights
    for name, weights in rows.items():
        told.append(f"{name:10} {weights[0]:>+12.4f} {weights[1]:>+12.4f} {abs(weights).sum():>8.4f}")
    told.append(f"{'close':10} {orders.close[0]:>12.4f} {orders.close[1]:>12.4f}")
    trades = _trades(orders)
    for ticker, side, shares, value, _ in trades:
        told.append(f"order      {side:4} {shares:>14,.4f} {ticker}, worth {value:,.2f} at that close")
    if not trades:
        told.append("order      none: the target is held already")
    bps = policy.run.costs.real_bps
    told.append(f"cost       about {orders.cost:,.2f} ({bps:g} bps of what is traded)")
    return told


def _trades(orders: "Orders") -> list[tuple[str, str, float, float, float]]:
    """Ticker, side, shares, value and price of each order that trades something; both amounts positive."""
    return [
        (ticker, "buy" if value > 0 else "sell", abs(float(shares)), abs(float(value)), float(price))
        for ticker, shares, value, price in zip(orders.tickers, orders.shares, orders.value, orders.close, strict=True)
        if value
    ]


def _label(orders: "Orders") -> str:
    return str(orders.date.astype("datetime64[s]")).removesuffix("T00:00:00")


if __name__ == "__main__":
    sys.exit(main())
