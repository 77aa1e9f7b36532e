"""Forecasters: programs that run in environments of their own, by their paths; nothing here is imported by the rest."""
