"""The swap of a pair's legs as it acts on observations."""

from collections.abc import Sequence

from envs.prior import PRIOR_COLUMNS

OTHER = {"a": "b", "b": "a"}
UNMOVED = {
    "spread_volatility_regime",
    "hedge_ratio",
    "correlation",
    "day_sin",
    "day_cos",
    "days_since_bar",
    "time_sin",
    "time_cos",
    "drawdown",
}


def swap_legs(names: Sequence[str]) -> tuple[list[int], list[float]]:
    """Index [D] and sign [D] with which ``x[:, index] * sign`` is what observations x [B, D] become in B/A for A/B.

    Columns of a leg, of its prior and of its account change places; what is measured along the spread changes its sign,
    and so does ``volatility_ratio``; a forecast quantile q of the spread becomes minus the quantile 1 - q. One column
    has no image: the slope of a on b is no function of the slope of b on a and the rest, so ``hedge_ratio`` stays.

    That holds for unscaled features. A scaler has a mean and a deviation per column, so on scaled ones the swap is
    exact only as far as those of mirrored columns agree (and means are zero where the sign changes). A network built on
    it is equivariant in what it is shown, whatever the market.

    Args:
        names: Names of the columns: features, then the account's (``envs.account_view.account_names``).

    Raises:
        ValueError: A column is unknown, or lacks the one that it changes places with.
    """
    place = {name: i for i, name in enumerate(names)}
    index, sign = [], []
    for name in names:
        source, factor = _image(name)
        if source not in place:
            raise ValueError(f"column {name} has no mirror image: {source} is missing")
        index.append(place[source])
        sign.append(factor)
    return index, sign


def _image(name: str) -> tuple[str, float]:
    """The column that a column shows after the swap, and the sign it takes."""
    series, _, rest = name.partition("_")
    if series in OTHER:
        return f"{OTHER[series]}_{rest}", 1.0
    if name in PRIOR_COLUMNS:
        return f"prior_{OTHER[rest]}", 1.0
    if series == "forecast":
        series, horizon, quantile = rest.split("_")
        if series in OTHER:
            return f"forecast_{OTHER[series]}_{horizon}_{quantile}", 1.0
        return f"forecast_{series}_{horizon}_q{1 - float(quantile[1:]):g}", -1.0
    if name == "volatility_ratio" or name.startswith(("spread_return_", "spread_z_")):
        return name, -1.0
    if name in UNMOVED:
        return name, 1.0
    raise ValueError(f"column {name}: nothing is known of it under a swap of the legs")
