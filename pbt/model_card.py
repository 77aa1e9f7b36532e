"""The model card of a published run: the verdicts first, then the evidence, the figures, and how to use it.

Everything is taken from the run's frames and ``summary.json``. Names and sentences are escaped, so that none of them
can become a link, a tag or a column of its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.labels import FIGURES, in_order, interval, percent, plain, policy_label, probability, shown
from pbt.hub import SCHEME, UNPUBLISHED
from pbt.run_dir import folder_name
from rayconf.run_config import RunConfig

if TYPE_CHECKING:
    import pyarrow as pa

TAGS = ("pairs-trading", "finance", "reinforcement-learning")
LEARNERS = {"ppo": "PPO", "direct": "the exact gradient of what the accounts earn"}
ARMS = {
    "pbt": "population-based training under Ray Tune, which copies and mutates members",
    "random": "random search, in which every member keeps the hyperparameters that it drew",
    "fixed": "fixed hyperparameters, so that members differ by their seeds alone",
}
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$&!])")


_INTERVALS = (("sharpe", "Sharpe ratio", plain), ("cagr", "CAGR", percent), ("max_drawdown", "drawdown", percent))
_SINGLE = (
    ("probabilistic_sharpe", "probability that the true Sharpe ratio is positive", probability),
    ("deflated_sharpe", "deflated Sharpe ratio of the first survivor (validation, corrected for trials)", probability),
    ("trials", "trials that selection saw", lambda x: f"{x:g}"),
    ("effective_trials", "of them effectively different", lambda x: f"{x:g}"),
    ("overfitting", "probability of backtest overfitting (a lower bound)", percent),
    ("spa_p", "p-value of superior predictive ability", probability),
    ("track_record", "sessions needed for a positive Sharpe ratio to be credible", lambda x: f"{x:.0f}"),
    ("looks", "reads of the test span", lambda x: f"{x:g}"),
)


@dataclass(frozen=True)
class Card:
    """What a model card tells.

    Attributes:
        repo: ``user/name``, with ``@branch`` where it is not the main one.
        run: The published config.
        entries: ``pairs`` of the published ``summary.json``, by pair.
        summary: The summary frame.
        trained: Number of pairs of the run, published or not.
        license: SPDX-like identifier; None: the owner has not said.
    """

    repo: str
    run: RunConfig
    entries: Mapping[str, Mapping[str, Any]]
    summary: "pa.Table"
    trained: int
    license: str | None = None

    def text(self) -> str:
        """The whole ``README.md``: YAML front matter and Markdown."""
        from huggingface_hub import ModelCard, ModelCardData

        dataset = self.run.data.dir if (self.run.data.dir or "").startswith(SCHEME) else None
        about = ModelCardData(
            library_name="pairpbt",
            pipeline_tag="reinforcement-learning",
            tags=self._tags(),
            license=self.license,
            datasets=dataset.removeprefix(f"{SCHEME}datasets/").split("@")[0].strip("/") if dataset else None,
        )
        body = "\n".join(line for part in self._parts() for line in [*part, ""])
        return str(ModelCard(f"---\n{about.to_yaml()}\n---\n\n{body}"))

    def _tags(self) -> list[str]:
        arm = ["population-based-training"] if self.run.pbt.arm == "pbt" else []
        return [*TAGS, *arm, *(["ppo"] if self.run.algo == "ppo" else [])]

    def _parts(self) -> Iterable[Sequence[str]]:
        yield [f"# {escaped(self.repo.split('/')[-1].split('@')[0])}"]
        run = self.run
        whose = "For all pairs the survivors of one" if run.pbt.pooled else "Per pair the survivors of a"
        yield [
            f"Policies that trade a pair of assets, trained by pairpbt with {LEARNERS[run.algo]} and "
            f"{ARMS[run.pbt.arm]}. {whose} population and their equal-weight ensemble, tested over a span that nothing "
            "was chosen on."
        ]
        yield ["## Verdict", "", *(f"- **{escaped(p)}**: {escaped(e.get('verdict'))}" for p, e in self.entries.items())]
        if len(self.entries) < self.trained:
            yield [
                f"{len(self.entries)} of the run's {self.trained} pairs are published here. Pairs picked for their "
                "results look better than they are; p-values that are corrected for pairs are corrected for all of "
                "them."
            ]
        for pair, entry in self.entries.items():
            yield from self._evidence(pair, entry.get("statistics"))
        for pair in self.entries:
            yield from self._figures(pair)
        yield self._origin()
        yield self._limits()
        yield from self._use()

    def _evidence(self, pair: str, found: Any) -> Iterable[Sequence[str]]:
        if not isinstance(found, Mapping):
            return
        rows = [
            (label, f"{shown(x.get('value'), form)} {_ends(x, form)}")
            for key, label, form in _INTERVALS
            if isinstance(x := found.get(key), Mapping)
        ]
        for other, x in (found.get("against") or {}).items():
            p = f", p {probability(x['p'])}" if x.get("p") is not None else ""
            rows.append((f"Sharpe ratio less {policy_label(other, pair)}", f"{plain(x['value'])} {_ends(x, plain)}{p}"))
        rows += [(label, form(found[key])) for key, label, form in _SINGLE if found.get(key) is not None]
        headline = str(found.get("policy", "ensemble")).replace("-", " ")
        yield [
            f"## Evidence on {escaped(pair)}",
            "",
            f"The headline ({escaped(headline)}) on the test span under the run's own terms. 95 % intervals in "
            "brackets; p is corrected for the run's pairs and for looks at the test span, intervals are not.",
            "",
            *_table(["statistic", "value"], rows),
        ]

    def _figures(self, pair: str) -> Iterable[Sequence[str]]:
        rows = [row for row in self.summary.to_pylist() if row["pair"] == pair]
        if not rows:
            return
        windows = self.entries[pair].get("windows", [])
        ends = [own["splits"] for own in windows] or [self.entries[pair]["splits"]]
        unknown = ("?", "?")
        first, last = (escaped(ends[at].get("test", unknown)[at][:10]) for at in (0, -1))
        walked = (
            f" These are the tests of {len(windows)} windows of a walk-forward strung together; the policies published "
            f"here are the last window's, tested from {escaped(ends[-1]['test'][0][:10])} on."
        )
        terms = f"{rows[0]['cost_bps']:g} bps a side, lag {rows[0]['lag']}"
        lines = [
            [
                policy_label(row["policy"], pair, row["member"], row["generation"]),
                shown(row["annualised_sharpe"], plain),
                interval(row["sharpe_ci_low"], row["sharpe_ci_high"]),
                *[shown(row[name], form) for name, _, form in FIGURES],
            ]
            for row in in_order(rows)
        ]
        yield [
            f"## Test of {escaped(pair)}",
            "",
            f"{first} to {last}, {rows[0]['days']} days, {terms}. The ensemble is the headline; what stands below the "
            f"survivors are baselines.{walked if windows else ''}",
            "",
            *_table(["policy", "Sharpe", "95 % interval", *(heading for _, heading, _ in FIGURES)], lines),
        ]

    def _origin(self) -> Sequence[str]:
        data, costs = self.run.data, self.run.costs
        prices = {
            None: "the embedded synthetic market, whose spread reverts by construction: no evidence of skill elsewhere",
            UNPUBLISHED: "prices of the owner, which are not published",
        }.get(data.dir, f"the data set {escaped(data.dir)}")
        lag = "bar" if self.run.env.lag == 1 else "bars"
        members = "of one population for all pairs" if self.run.pbt.pooled else "per pair"
        versions = ", ".join(f"{escaped(k)} {escaped(v)}" for k, v in self.run.versions.items())
        return [
            "## Training",
            "",
            f"- Prices: {prices}.",
            f"- Costs {costs.real_bps:g} bps a side, leverage up to {costs.leverage:g}, borrowing at "
            f"{percent(costs.borrow_rate)} a year; orders fill {self.run.env.lag} {lag} after the decision.",
            f"- {self.run.pbt.population} members {members}, seed {self.run.seed}; the whole config is `config.json`.",
            *([f"- Made with {versions}."] if versions else []),
        ]

    @staticmethod
    def _limits() -> Sequence[str]:
        return [
            "## Intended use and limits",
            "",
            "For research and for paper trading; it is no advice. A test span is one draw of history: read the "
            "intervals, not the point. Costs, financing and fills are modelled; market impact, taxes, borrow that "
            "cannot be had and halts are not. Each further look at the test span weakens what it shows. The policies "
            "know their own pair at its own bar frequency, and prices standardised by their own `scaler.json`.",
        ]

    def _use(self) -> Iterable[Sequence[str]]:
        first = f"{SCHEME}{self.repo}/survivors/{folder_name(next(iter(self.entries)))}"
        prices = '"prices"' if self.run.data.dir else "None"
        flag = " --data-dir prices" if self.run.data.dir else ""
        yield [
            "## How to load",
            "",
            "```python",
            "from pbt import load_policy",
            "",
            f'policy = load_policy("{first}")  # the ensemble; append /1 for the best survivor',
            f"policy.decide({prices})  # target weights of the two legs for the next fill",
            "```",
        ]
        yield [
            "```sh",
            f"python -m pbt.decide {first}{flag}",
            f"python -m pbt.backtest {SCHEME}{self.repo}{flag}  # one more look at the test span",
            "```",
        ]
        yield ["The weights are safetensors, everything else is JSON and Parquet; nothing is unpickled."]


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no link, no column."""
    line = " ".join(str("-" if text is None else text).split())
    line = "".join(character for character in line if character.isprintable())
    return _SPECIAL.sub(r"\\\1", line).replace("://", r":\//").replace("www.", r"www\.")


def _ends(found: Mapping[str, Any], form: Any) -> str:
    low, high = found.get("low"), found.get("high")
    return "" if low is None or high is None else f"[{form(low)}, {form(high)}]"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    cells = [[escaped(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [*lines, *cells]]
