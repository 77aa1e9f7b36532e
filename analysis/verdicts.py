"""What a report says first: the verdict on each pair, the evidence behind it, and what its figures mean."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.bootstrap import DEGENERATE, FEWEST, automatic_block, resampled_means
from analysis.curves import Account
from analysis.figures import bootstrap_figure
from analysis.labels import NOTHING, interval, percent, plain, policy_label, probability, shown
from analysis.metrics import is_flat
from analysis.page import cell, header, plot, row_header, table, text
from analysis.payload import Array, Payload
from analysis.verdict import Difference, Evidence, Interval
from rayconf.errors import UserError

_COMPARED = ("equal_weight", "vol_target", "zscore", "static_gross")
_GLOSSARY = (
    ("Sharpe", "Annualised Sharpe ratio on test with its 95 % interval: stationary bootstrap, automatic block length."),
    ("less ...", "Sharpe ratio of the headline less that of a baseline on the same sessions: paired, studentised "
     "stationary bootstrap, 95 % interval; p counts the pairs of the run and the looks at the test span."),
    ("P(Sharpe > 0)", "Probabilistic Sharpe ratio: probability that the true one is positive, given length, skewness "
     "and kurtosis of the returns."),
    ("deflated Sharpe", "The same for the first survivor on validation, against the best that as many effective trials "
     "without skill would have shown."),
    ("effective trials", "Return streams that selection saw on validation: clusters of them, of all."),
    ("PBO", "Probability of backtest overfitting: how often the best of one half of validation falls below the median "
     "of the other. Under PBT trials descend from each other, so it is a lower bound."),
    ("SPA p", "Superior predictive ability (Hansen): survivors and ensemble against the best of cash, equal weight and "
     "vol target, given how many were tried."),
    ("track record", "Sessions needed before a Sharpe ratio like this one differs from 0 at 95 %."),
    ("detectable", "True Sharpe difference to the baseline hardest to beat that a span this long finds four times in "
     "five."),
    ("looks", "How often the test span was read."),
)  # fmt: skip


def glossary() -> str:
    """The evidence table's headings in words."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(meaning)}</dd>' for name, meaning in _GLOSSARY)}</dl>"


def verdicts(evidence: Mapping[str, Evidence]) -> str:
    """The verdict on each pair, one sentence each."""
    return (
        '<ul class="verdicts">'
        + "".join(
            f'<li class="{text(found.claim.replace(" ", "-"))}">{text(_named(pair, found.sentence()))}</li>'
            for pair, found in evidence.items()
        )
        + "</ul>"
    )


def _named(pair: str, sentence: str) -> str:
    return sentence if pair in sentence else f"{pair}: {sentence}"


def _difference(found: Difference | None) -> str:
    if found is None:
        return NOTHING
    p = "" if found.p is None else f", p {probability(found.p)}"
    return f"{found.value:+.2f} {interval(found.low, found.high)}{p}"


def evidence_table(evidence: Mapping[str, Evidence], places: Mapping[str, str]) -> str:
    """A column per pair: the headline on test with intervals, held against the baselines; what selection explains.

    Args:
        evidence: Evidence by pair.
        places: Where on the page each pair stands: the id of its part.
    """
    tips = dict(_GLOSSARY)
    rows: list[tuple[str, list[str]]] = []

    def row(name: str, figure: Callable[[Evidence], str], tip: str = "") -> None:
        rows.append(("", [row_header(name, tips.get(tip or name, "")), *[cell(figure(e)) for e in evidence.values()]]))

    row("headline", lambda e: policy_label(e.policy, e.pair).removesuffix(" (headline)"))
    row("Sharpe", lambda e: f"{plain(e.sharpe.value)} {interval(e.sharpe.low, e.sharpe.high)}")
    row("CAGR", lambda e: _with_ends(e.cagr))
    row("maximum drawdown", lambda e: _with_ends(e.max_drawdown))
    for name in _COMPARED:
        if any(name in e.against for e in evidence.values()):
            row(f"Sharpe less {policy_label(name)}", _less(name), "less ...")
    row("P(Sharpe > 0)", lambda e: shown(e.probabilistic_sharpe, probability))
    row("deflated Sharpe", lambda e: shown(e.deflated_sharpe, probability))
    row("effective trials", lambda e: f"{e.effective_trials} of {e.trials}")
    row("PBO", lambda e: NOTHING if e.overfitting is None else f"≥ {e.overfitting:.2f}")
    row("SPA p", lambda e: shown(e.spa_p, probability))
    row("track record", lambda e: "never" if e.track_record is None else f"{math.ceil(e.track_record):,} sessions")
    row("detectable", lambda e: shown(e.detectable, lambda value: f"{value:+.2f}"))
    row("sessions", lambda e: f"{e.sessions:,}")
    row("looks", lambda e: str(e.looks))
    headers = [header("on test", kind="text")]
    headers += [header(pair, link=f"#{places[pair]}") for pair in evidence]
    return table("Evidence on test, pair by pair", headers, rows, "evidence")


def _less(name: str) -> Callable[[Evidence], str]:
    return lambda found: _difference(found.against.get(name))


def _with_ends(found: Interval) -> str:
    if found.low is None or found.high is None:
        return percent(found.value)
    return f"{percent(found.value)} [{percent(found.low)}, {percent(found.high)}]"


def audit_line(run: Path) -> str:
    """What the look-ahead audit of the run found, where there was one.

    Raises:
        UserError: ``audit.json`` does not hold an audit.
    """
    path = run / "audit.json"
    if not path.is_file():
        return ""
    try:
        audits: Any = json.loads(path.read_text(encoding="utf-8"))
        if "lookahead" not in audits and "features" in audits:
            return ""
        found = audits["lookahead"]
        pairs = list(found["pairs"].values())
        decisions, cuts = sum(one["decisions"] for one in pairs), sum(len(one["cuts"]) for one in pairs)
        leaks = [leak["told"] for one in pairs for leak in one["leaks"]]
        date, result = str(found["date"]), str(found["result"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds no audit ({error!r}); write it again with pbt.audit --lookahead") from error
    extent = f"{decisions:,} decisions at {cuts} cuts, {date}"
    if leaks:
        return f'<p class="alarm">LOOK-AHEAD FOUND, {len(leaks)} findings in {text(extent)}: {text(leaks[0])}</p>'
    told = {"clean": "no look-ahead found", "inconclusive": "inconclusive"}.get(result, result)
    return f"<p>Audit: {text(told)} in {text(extent)}.</p>"


def _draws(streams: list[Array], block: int, sessions_per_year: float) -> list[Array]:
    """Annualised Sharpe ratio of each stream [D] in each resample; all streams are resampled alike."""
    moving = [
        (stream - stream.mean()) / stream.std() if not is_flat(stream) else np.zeros_like(stream) for stream in streams
    ]
    means = resampled_means(np.stack([*moving, *[z**2 for z in moving]], axis=1), block)
    found = []
    for index, stream in enumerate(streams):
        first, second = means[:, index], means[:, index + len(streams)]
        variance = second - first**2
        level = 0.0 if is_flat(stream) else stream.mean() / stream.std()
        constant = variance <= DEGENERATE
        ratio = np.where(constant, 0.0, (level + first) / np.sqrt(np.where(constant, 1.0, variance)))
        found.append(math.sqrt(sessions_per_year) * ratio)
    return found


def bootstrap_plots(
    payload: Payload, key: str, found: Evidence, accounts: Mapping[str, Account], sessions_per_year: float
) -> str:
    """Distributions of the headline's Sharpe ratio on test, and of its difference to each baseline to beat.

    Args:
        payload: Takes the figures.
        key: Prefix of their names.
        found: The pair's evidence.
        accounts: The pair's accounts on test by policy.
        sessions_per_year: Annualises.
    """
    own = accounts[found.policy].returns
    if own.size < FEWEST:
        return f'<p class="soft">{own.size} sessions are too few for a bootstrap.</p>'
    draws = _draws([own], automatic_block(own), sessions_per_year)[0]
    ends = found.sharpe
    parts = [
        plot(
            payload,
            f"{key}-sharpe",
            bootstrap_figure(
                f"Bootstrap of the Sharpe ratio of {found.pair}", "Sharpe ratio", draws, ends.value, ends.low, ends.high
            ),
            "The headline's Sharpe ratio",
            side=True,
        )
    ]
    for name in _COMPARED[:2]:
        other, gap = accounts.get(name), found.against.get(name)
        if other is None or gap is None or other.returns.size != own.size:
            continue
        streams = [own, other.returns]
        scaled = [z / (z.std() or 1.0) for z in streams]
        first, second = _draws(streams, automatic_block(scaled[0] - scaled[1]), sessions_per_year)
        label = policy_label(name)
        figure = bootstrap_figure(
            f"Bootstrap of the Sharpe ratio of {found.pair} less that of {label}",
            f"Sharpe ratio less that of {label}",
            first - second,
            gap.value,
            gap.low,
            gap.high,
        )
        parts.append(
            plot(payload, f"{key}-less-{len(parts)}", figure, f"Less that of {text(label)}, paired", side=True)
        )
    return f'<div class="side">{"".join(parts)}</div>'
