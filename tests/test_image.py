"""The worker image: its Dockerfile's steps, carried out one after the other in a folder that stands for the image.

What the base image brings is stood for by a clean venv that sees this environment's packages, at the same pins.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.conftest import ROOT

DOCKERFILE = ROOT / "rayconf" / "clusters" / "Dockerfile"


def steps(text: str) -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


class Image:
    """A folder, a working folder in it, and the variables of the build."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.here = root
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
        (site,) = (root / "venv").glob("lib/python*/site-packages")
        (site / "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = root / "venv" / "bin" / "pip"
        pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip --python {root}/venv/bin/python "$@"\n')
        pip.chmod(0o755)
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHONPATH", "VIRTUAL"))
        }
        self.env |= {"PATH": f"{root}/venv/bin:{os.environ['PATH']}", "HOME": str(root / "home" / "ray")}
        self.env |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}  # pip reads the first upside down

    def carry_out(self, word: str, rest: str) -> str:
        """One instruction; what a RUN printed."""
        if word in ("ARG", "ENV"):
            for setting in rest.split():
                name, _, value = setting.partition("=")
                self.env[name] = value
        elif word == "WORKDIR":
            self.here = self.root / rest.lstrip("/")
            self.here.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                path = ROOT / source
                if path.is_dir():
                    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
                    shutil.copytree(path, self.here / target, ignore=skipped)
                else:
                    shutil.copy(path, self.here / target)
        elif word == "RUN":
            done = subprocess.run(
                ["bash", "-c", rest], cwd=self.here, env=self.env, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
            return done.stdout
        else:
            assert word == "FROM", word
        return ""


def test_the_image_builds_and_what_it_installed_runs(tmp_path: Path) -> None:
    image = Image(tmp_path)
    printed = [image.carry_out(word, rest) for word, rest in steps(DOCKERFILE.read_text())]
    assert "12.6 M" in printed[-1]
    python = tmp_path / "venv" / "bin" / "python"
    code = "import pbt, rayconf.doctor, boto3, ray.dashboard.optional_deps; print(pbt.__file__)"
    done = subprocess.run([python, "-c", code], cwd=image.here, env=image.env, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "venv"), done.stderr
    shutil.rmtree(tmp_path / "home" / "ray" / "build")
    assert image.carry_out("RUN", "python -m pbt.launch --preset demo --dry-run") == printed[-1]
