"""The notebooks run on a real run from the first cell to the last, draw what they promise, and are stored bare."""

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import plotly.io as pio
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from plotly.io.base_renderers import ExternalRenderer

from tests.conftest import ROOT

FOLDER = ROOT / "analysis" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> KernelSpecManager:
    """A kernel of this very Python, whatever kernels the user has."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "this").mkdir()
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "this", "language": "python"}
    (folder / "this" / "kernel.json").write_text(json.dumps(spec))
    manager = KernelSpecManager(kernel_dirs=[str(folder)])
    manager.ensure_native_kernel = False
    return manager


def execute(path: Path, run: Path, kernels: KernelSpecManager, folder: Path) -> Any:
    """The notebook with its outputs, executed in an empty folder. An error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "PAIRPBT_RUN": str(run),
        "PYTHONPATH": str(ROOT),
        "PLOTLY_RENDERER": "plotly_mimetype",
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }
    work = folder / "work"
    work.mkdir()
    manager = AsyncKernelManager(kernel_name="this", kernel_spec_manager=kernels)
    client = NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(work)}})
    client.execute(env=environment)
    assert list(work.iterdir()) == [], "a notebook writes nothing by itself"
    return notebook


def numbers(values: Any) -> np.ndarray:
    """Values of a trace, plain or as plotly packs them."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).astype(float)
    return np.array([np.nan if value is None else value for value in values], float)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_last_figure_has_data(
    path: Path, undisturbed: Path, kernels: KernelSpecManager, tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*")}
    notebook = execute(path, undisturbed, kernels, tmp_path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    told = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not any(kind in told for kind in ("DeprecationWarning", "FutureWarning", "SettingWithCopy")), told
    figures = [output.data[PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]
    assert figures, "no figure"
    assert code[-1].outputs[-1].data[PLOTLY] is figures[-1], "the last cell shows a figure"
    for figure in figures:
        # Where one axis holds names, the other holds the figures.
        axes = [
            "x" if isinstance(trace["y"], list) and str in map(type, trace["y"]) else "y" for trace in figure["data"]
        ]
        drawn = [int(np.isfinite(numbers(t[axis])).sum()) for t, axis in zip(figure["data"], axes, strict=True)]
        assert drawn
        assert min(drawn) > 0, f"{path.stem}: a trace without data"
    assert {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*")} == before


def test_the_five_notebooks_are_stored_without_outputs() -> None:
    names = {"did_pbt_help", "is_it_real", "quick_start", "reading_the_frames", "your_own_figure"}
    assert {path.stem for path in NOTEBOOKS} == names
    for path in NOTEBOOKS:
        stored = json.loads(path.read_text(encoding="utf-8"))
        nbformat.validate(stored)
        assert (stored["nbformat"], set(stored["metadata"])) == (4, {"kernelspec", "language_info"})
        code = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
        assert "RUN = " in "".join(code[0]["source"])
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
        assert all(cell["metadata"] == {} for cell in stored["cells"])


class Kept(ExternalRenderer):
    """A renderer that keeps the figure instead of opening a browser."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []

    def render(self, fig_dict: dict[str, Any]) -> None:
        self.figures.append(fig_dict)


def test_the_three_lines_of_the_readme_plot_a_run(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("### Your own plot\n")[2]
    lines = section.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in lines.splitlines() if line]) == 3
    assert lines.count("runs/mine/") == 1
    kept = Kept()
    pio.renderers["kept"] = kept
    monkeypatch.setattr(pio.renderers, "default", "kept")
    exec(compile(lines.replace("runs/mine", str(undisturbed)), "README.md", "exec"), {})

    (figure,) = kept.figures
    daily = pd.read_parquet(undisturbed / "frames" / "daily.parquet").query("split == 'test' and scenario == 'base'")
    equities = {tuple(own["equity"]) for _, own in daily.groupby(["pair", "policy"])}
    assert {tuple(numbers(trace["y"])) for trace in figure["data"]} == equities
    assert len(figure["data"]) == daily.groupby(["pair", "policy"]).ngroups
