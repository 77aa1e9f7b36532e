"""Shipped Grafana dashboards over the metrics that Ray exports, one JSON file each."""
