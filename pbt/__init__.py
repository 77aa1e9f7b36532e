"""Population-based training per pair under Ray Tune, and the backtest of its survivors."""
