"""How accounts came through the years that broke others: the dot-com fall, 2008, 2020 and 2022."""

from typing import Any

import numpy as np
import pyarrow as pa

from analysis.frames import KEYS, group_slices
from analysis.metrics import cagr, max_drawdown, session_returns, sharpe
from analysis.summary import sessions_per_year

WINDOWS: dict[str, tuple[str, str]] = {
    "2000-02": ("2000-01-01", "2003-01-01"),
    "2008": ("2008-01-01", "2009-01-01"),
    "2020": ("2020-01-01", "2021-01-01"),
    "2022": ("2022-01-01", "2023-01-01"),
}
"""First day, and the day after the last, by name."""
SHARE = 0.5
"""Sessions that a window needs to be shown, as a share of its weekdays."""


def stress_rows(daily: pa.Table) -> list[dict[str, Any]]:
    """Figures of every account of a ``daily`` frame in every stress window that its dates reach.

    Args:
        daily: Rows sorted by the frame's key.

    Returns:
        Mappings of split, scenario, pair, policy, ``stress`` (the window's name), first and last day (ISO dates) and
        number of sessions, cumulative return, maximum drawdown (within the window), Sharpe ratio and CAGR. Windows of
        which the dates hold less than half are left out.
    """
    rows = []
    dates, net = (daily.column(name).to_numpy() for name in ("date", "net_return"))
    for (_, split, scenario, pair, policy), part in group_slices(daily, KEYS["daily"][:-1]):
        annual = sessions_per_year(dates[part])
        for name, (start, stop) in WINDOWS.items():
            first, last = np.searchsorted(dates[part], np.array([start, stop], "datetime64[us]"))
            returns, days = session_returns(net[part][first:last], dates[part][first:last])
            if len(days) >= SHARE * np.busday_count(start, stop):
                rows.append(
                    {
                        "split": split,
                        "scenario": scenario,
                        "pair": pair,
                        "policy": policy,
                        "stress": name,
                        "first": str(days[0]),
                        "last": str(days[-1]),
                        "days": len(days),
                        "cumulative_return": float(np.prod(1 + returns) - 1),
                        "max_drawdown": max_drawdown(returns),
                        "annualised_sharpe": sharpe(returns, annual),
                        "cagr": cagr(returns, annual),
                    }
                )
    return rows
