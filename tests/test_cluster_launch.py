"""A run on a cluster of several nodes is the run of one machine."""

from pathlib import Path

import pytest

from tests.cluster import small_cluster
from tests.commands import launch, tiny

pytestmark = pytest.mark.usefixtures("alone")


def test_a_cluster_gives_the_frames_of_one_machine(undisturbed: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.write_text("no folder")
    with small_cluster() as address:
        refused = launch(*tiny(closed / "runs", "--address", address))
        done = launch(*tiny(tmp_path, "--address", address, "--set", "resources.cpus=2"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("pairpbt: --address: ")
    assert len(refused.stderr.splitlines()) == 1
    assert done.returncode == 0, done.stderr
    assert "2 nodes checked" in done.stdout
    for name in ("lineage", "daily", "validation", "summary", "evidence"):
        mine, theirs = (run / "frames" / f"{name}.parquet" for run in (tmp_path / "tiny", undisturbed))
        assert mine.read_bytes() == theirs.read_bytes(), name
