"""The statistics of selection of a run, from its frames alone: ``evidence(run)`` by pair."""

from analysis.verdict import Difference, Evidence, Interval

__all__ = ["Difference", "Evidence", "Interval"]
