"""A Ray cluster of two nodes on this machine, in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.commands import environment

# A cluster that lives until its input ends.
HOLD = """
import sys
from ray.cluster_utils import Cluster

small = dict(include_dashboard=False, object_store_memory=80 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, **small))
cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def small_cluster(**variables: str) -> Iterator[str]:
    """A head without CPUs and a worker with two, with these environment variables; the address to join them at."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        yield holder.stdout.readline().strip()
    finally:
        holder.communicate(timeout=60)
