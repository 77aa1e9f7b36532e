"""The identity of a run: what it computes, and nothing else."""

import pytest

from rayconf import load_config
from rayconf.loading import build_config


def test_names_machines_and_trackers_do_not_count() -> None:
    run = load_config("smoke", assignments=["seed=7"])
    other = build_config(
        {
            **run.model_dump(),
            "name": "other",
            "versions": {"ray": "1"},
            "resources": {"cpus": 1},
            "tracking": {"wandb": "offline"},
        }
    )
    assert run.identity == other.identity
    assert run.identity.startswith("seed7-")


@pytest.mark.parametrize("change", ["seed=8", "ppo.gamma=0.9", "data.pairs=A/B", "pbt.replace_z=2", "env.lag=2"])
def test_everything_else_does(change: str) -> None:
    assert load_config("smoke", assignments=[change]).identity != load_config("smoke").identity
