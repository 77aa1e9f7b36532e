"""Population-based training per pair under Ray Tune, and the backtest of its survivors."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pbt.survivor import TradingPolicy, load_policy
    from pbt.trading_account import TradingAccount

__all__ = ["TradingAccount", "TradingPolicy", "load_policy"]


def __getattr__(name: str) -> Any:
    """Import on first use: commands of this room start before torch is there."""
    if name in ("TradingPolicy", "load_policy"):
        from pbt import survivor

        return getattr(survivor, name)
    if name == "TradingAccount":
        from pbt.trading_account import TradingAccount

        return TradingAccount
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
