"""``RUN/base/run_report.md``: what the stages before populations came to, against the naive forecast."""

import numpy as np

from algos.pretraining import Epoch
from analysis.frames import write_text
from pbt.encoder_base import REPORT, SPECIALIST, Checkpoint, read_checkpoint
from pbt.run_dir import RunDir, folder_name
from rayconf.errors import UserError
from rayconf.run_config import RunConfig


def write_report(directory: RunDir, run: RunConfig, base: Checkpoint) -> None:
    """Write the report from the checkpoint, its journal and what specialists there are."""
    write_text(directory.base / REPORT, "\n".join([*_base_lines(run, base), *_specialist_lines(directory, run)]))


def _base_lines(run: RunConfig, base: Checkpoint) -> list[str]:
    fit = base.fit
    found = (
        f"It saves {fit.best.skill:.2%} of the naive forecast's loss."
        if fit.best.number
        else "No pass beat the naive forecast: the encoder is as it was drawn."
    )
    return [
        "# Base stage",
        "",
        f"Encoder `{run.network.encoder}` over {len(base.features)} features, trained on {fit.fitted:,} decision bars "
        f"before {_day(fit.border)} and measured on the {fit.held_out:,} from there on; the last bar read is that of "
        f"{_day(fit.trained_to)}. {found} The best pass was chosen on the bars that measure, so its loss flatters a "
        "little; validation and test were not read.",
        "",
        "| | pass | loss | naive forecast | skill |",
        "|---|---|---|---|---|",
        _row("best", fit.best),
        _row("final", fit.last),
        "",
        "Losses are mean pinball losses over the quantiles 0.1 to 0.9; the naive forecast has the quantiles of all "
        "fitted bars for every bar. Returns are in units of trailing volatility times the root of the horizon; "
        "volatility is the log of the next 21 bars' over that of the last 21.",
        "",
        "| target | skill |",
        "|---|---|",
        *(f"| {name} | {skill:+.4f} |" for name, skill in zip(fit.names, fit.skills, strict=True)),
        "",
    ]


def _specialist_lines(directory: RunDir, run: RunConfig) -> list[str]:
    rows = []
    for pair in run.data.pairs if "specialists" in run.stages.run else ():
        try:
            special = read_checkpoint(directory.base / folder_name(pair), SPECIALIST)
        except UserError:
            continue
        fit, kept = special.fit, "kept" if special.about["kept"] else "base stays"
        rows.append(f"| {pair} | {fit.best.loss:.5f} | {fit.gain:+.5f} | {fit.gain_se:.5f} | {kept} |")
    if not rows:
        return []
    return [
        "# Specialists",
        "",
        "A specialist is kept where its loss on the bars held out is below the base's by more than the standard error "
        "of the difference.",
        "",
        "| pair | loss | gain on the base | standard error | |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _row(name: str, epoch: Epoch) -> str:
    return f"| {name} | {epoch.number} | {epoch.loss:.5f} | {epoch.naive_loss:.5f} | {epoch.skill:+.4f} |"


def _day(date: np.datetime64) -> str:
    return str(np.datetime_as_string(date, unit="D"))
