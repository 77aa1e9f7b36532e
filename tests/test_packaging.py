"""What a user installs is complete: the wheel's content, and a dry run from it in a clean venv and an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from rayconf.origins import ROOMS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = sorted(PROJECT["tool"]["setuptools"]["packages"])


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without this process's Python path and pip settings of the kind that bind an install."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build products are left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean venv with the wheel, and the dependencies of this environment further down its path.

    Installing torch and ray again would cost a minute and the network. A plain ``.pth`` line appends a folder
    to the path without reading the ``.pth`` files in it, so an editable install here stays out of sight; that
    the rooms come from the clean venv is asserted.
    """
    venv = tmp_path_factory.mktemp("clean") / "venv"
    done = run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    done = run(*pip, wheel, cwd=venv)
    assert done.returncode == 0, done.stderr
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return venv


def test_every_folder_with_an_init_is_a_listed_package() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
        if "__pycache__" not in path.parts
    }
    assert sorted(found) == PACKAGES


def test_wheel_holds_every_source_and_data_file_and_nothing_else(wheel: Path) -> None:
    tracked = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == tracked
    assert {"rayconf/presets/smoke.yaml", *(f"{room}/py.typed" for room in ROOMS)} <= packed
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_rooms_and_presets_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        f"import {', '.join(ROOMS)}; from rayconf.loading import preset_names; "
        f"print(*(room.__file__ for room in ({', '.join(ROOMS)}))); print(*preset_names())"
    )
    done = run(installed / "bin" / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files, presets = done.stdout.splitlines()
    assert all(Path(file).is_relative_to(installed) for file in files.split())
    assert presets.split() == sorted(path.stem for path in (ROOT / "rayconf" / "presets").glob("*.yaml"))


def test_dry_run_from_an_empty_folder_writes_nothing(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "bin" / "python", "-m", "pbt.launch", "--preset", "demo", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12.6 M" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_console_script_runs_beside_a_users_file_that_shadows_a_room(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("raise RuntimeError('imported')\n")
    refused = run(installed / "bin" / "python", "-m", "pbt.launch", "--preset", "demo", "--dry-run", cwd=tmp_path)
    assert refused.returncode == 2
    assert str(tmp_path / "analysis.py") in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run(installed / "bin" / "pairpbt", "--preset", "demo", "--dry-run", cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["analysis.py"]


def test_lock_pins_every_dependency_once_and_names_no_host() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert all(line.count("==") == 1 and line == line.strip() and "/" not in line for line in lines)
    assert len(set(names)) == len(names)
    direct = sum(PROJECT["project"]["optional-dependencies"].values(), PROJECT["project"]["dependencies"])
    asked = {entry.partition("[")[0].partition("=")[0].partition(">")[0].lower().replace("_", "-") for entry in direct}
    assert asked - set(names) == {"pairpbt"}  # the test extra takes in the cluster's
    assert "torch==2.13.0" in lines  # the public version, which every build of it satisfies
