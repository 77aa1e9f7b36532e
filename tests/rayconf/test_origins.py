"""Each check runs in a process of its own, started like a user's, from a folder that holds the user's files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayconf.origins import HOME, ROOMS

CHECK = """
import sys
from rayconf.errors import UserError
from rayconf.origins import check_origins
try:
    check_origins()
except UserError as error:
    sys.exit(str(error))
"""


def run_in(folder: Path, code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(HOME)}
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("mine", ["analysis.py", "envs.py", "algos/__init__.py", "pbt.py"])
def test_a_users_file_named_like_a_room_is_named(tmp_path: Path, mine: str) -> None:
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("raise RuntimeError('imported')\n")
    done = run_in(tmp_path, CHECK)
    assert done.returncode == 1
    assert str(tmp_path / mine) in done.stderr
    assert "python -P -m pbt.launch" in done.stderr
    assert "`pairpbt`" in done.stderr
    assert "imported" not in done.stderr
    assert done.stderr.strip().count("\n") == 0
    # The cure that the message names.
    assert run_in(tmp_path, CHECK, "-P").returncode == 0


def test_what_shadows_nothing_is_let_pass(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()  # a plain folder of notebooks, say: never wins over a package
    (tmp_path / "strategy.py").touch()
    done = run_in(tmp_path, CHECK)
    assert (done.returncode, done.stderr) == (0, "")


def test_reading_a_config_loads_neither_ray_nor_torch(tmp_path: Path) -> None:
    code = """
import sys
import rayconf, rayconf.keys, rayconf.origins, rayconf.plan, rayconf.session
run = rayconf.load_config("demo")
rayconf.plan.plan(run, rayconf.session.Machine(rayconf.session.available_cpus()))
rayconf.origins.check_origins()
print(*{name.partition(".")[0] for name in sys.modules})
"""
    done = run_in(tmp_path, code)
    loaded = set(done.stdout.split())
    assert done.stderr == ""
    assert {"rayconf", "pydantic"} <= loaded
    assert loaded & {"ray", "torch", "numpy", "pandas", *ROOMS} == {"rayconf"}
