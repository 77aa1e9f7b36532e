"""Everything that can be said from result frames alone: schemas, metrics, tables, report."""
