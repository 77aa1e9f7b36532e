"""The machines themselves: alone with each other, gone with whoever started them, and gone without a word."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.commands import environment
from tests.fleet import rack
from tests.fleet.image import VISIBLE

pytestmark = pytest.mark.fleet

HOLD = """
import sys
from pathlib import Path
from tests.fleet.rack import Rack
with Rack([Path(sys.base_prefix)], "/mnt/runs") as rack:
    rack.add("one", "10.77.0.11/24", "ubuntu")
    print(rack.folder, flush=True)
    sys.stdin.read()
"""


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_machines_see_each_other_and_nothing_else() -> None:
    with rack.Rack(VISIBLE, "/mnt/runs") as machines:
        one = machines.add("one", "10.77.0.11/24", "ubuntu")
        two = machines.add("two", "10.77.0.12/24", "ubuntu")

        def said(machine: rack.Machine, script: str) -> str:
            done = subprocess.run(machine.command("bash", "-c", script), capture_output=True, text=True, timeout=60)
            return done.stdout + done.stderr

        assert said(one, "hostname").strip() == "one"
        assert said(one, "ps -e | wc -l").strip() in ("4", "5", "6"), "its own processes alone"
        assert "default" not in said(one, "ip route")
        assert "sshd" in said(two, "ps -e")
        greet = "exec 3<>/dev/tcp/10.77.0.11/22 && head -c 4 <&3"
        assert said(two, greet) == "SSH-"
        for folder in VISIBLE:
            assert "Read-only file system" in said(one, f"touch {folder}/written")
        said(one, "touch /mnt/runs/shared /written /home/ubuntu/written")
        assert said(two, "ls /mnt/runs") == "shared\n"
        assert not Path("/written").exists()
        assert "No such file" in said(two, "ls /written")

        one.power_off()
        silent = said(two, f"timeout 2 bash -c '{greet}'")
        assert "refused" not in silent
        assert "SSH" not in silent
        one.boot()
        assert said(two, greet) == "SSH-"
        assert "written" in said(one, "ls /written"), "its disk outlives its power"
    assert not machines.folder.exists()


def test_what_a_killed_process_leaves_is_found_and_nothing_else_is_touched() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    folder = Path(holder.stdout.readline().strip())
    started = [psutil.Process(int(record.name)) for record in (folder / "pids").iterdir()]
    assert len(started) == 2
    rack.remove_leftovers()
    assert folder.is_dir(), "its owner lives"
    assert all(process.is_running() for process in started)

    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert within(10, lambda: not any(psutil.pid_exists(process.pid) for process in started))
    stranger = subprocess.Popen(["sleep", "60"])
    forgotten = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(folder)])
    try:
        for process in (stranger, forgotten):
            (folder / "pids" / str(process.pid)).touch()
        assert within(10, lambda: str(folder) in psutil.Process(forgotten.pid).cmdline())
        rack.remove_leftovers()
        assert not folder.exists()
        assert not psutil.pid_exists(forgotten.pid)
        assert stranger.poll() is None
    finally:
        for process in (stranger, forgotten):
            process.kill()
            process.wait()
