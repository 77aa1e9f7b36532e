"""The dictionary of columns: name, type, unit and meaning of everything that a run's frames hold.

It is the single source of the schemas (``analysis.frames``), of the tables in the README and of the
tooltips in the report. Columns are listed in the order in which they are written.
"""

from dataclasses import dataclass

HP = "hp_*"
OLD_HP = "old_hp_*"
SPREAD = "spread_*"
PER_HYPERPARAMETER = (HP, OLD_HP, SPREAD)


@dataclass(frozen=True)
class Column:
    """One column of a frame.

    Attributes:
        name: Column name; ``hp_*``, ``old_hp_*`` and ``spread_*`` stand for one column per mutated hyperparameter.
        type: ``string``, ``int32``, ``int64``, ``float64`` or ``timestamp`` (microseconds, no zone).
        unit: Unit in words, empty for names and labels.
        meaning: One sentence.
        choices: The only values a string column may hold; empty: any.
    """

    name: str
    type: str
    unit: str
    meaning: str
    choices: tuple[str, ...] = ()


def _text(name: str, meaning: str, *choices: str) -> Column:
    return Column(name, "string", "", meaning, choices)


def _whole(name: str, unit: str, meaning: str) -> Column:
    return Column(name, "int32", unit, meaning)


def _real(name: str, unit: str, meaning: str) -> Column:
    return Column(name, "float64", unit, meaning)


RUN = _text("run", "Identity of the run: its seed and a digest of its config; runs of one identity have equal results.")
ARM = _text("arm", "What governed the population: PBT or a control arm.", "pbt", "reference", "random", "fixed")
WINDOW = _whole("window", "", "Walk-forward window; 0: no walk-forward, -1: all windows strung together.")
PAIR = _text("pair", "The pair, AAA/BBB.")
MEMBER = _text("member", "Member of the pair's population, m00 and up.")
GENERATION = _whole("generation", "", "Generation of the population, from 0.")
SPLIT = _text("split", "Part of the calendar.", "train", "validation", "test")
SCENARIO = _text(
    "scenario",
    "Terms of the backtest: base (the run's own) or e.g. cost5-lag2 (bps per side, bars), with -lev1.0 and -borrow0.05 "
    "where leverage limit and borrow rate are not the run's.",
)
POLICY = _text(
    "policy",
    "survivor-1 and up, ensemble, ensemble_weighted, or a baseline: cash, equal_weight, vol_target, hold_a, hold_b, "
    "zscore, zscore_gross1, zscore_textbook, static_gross.",
)
DATE = Column("date", "timestamp", "", "The bar of the fill (its own label; hourly bars in UTC).")
FITNESS = _real("fitness", "Sharpe, per year", "Score on validation that selection looks at, as the config defines it.")
FITNESS_SE = _real("fitness_se", "Sharpe, per year", "Block-bootstrap standard error of the score.")

PROGRESS = (
    RUN,
    ARM,
    WINDOW,
    PAIR,
    MEMBER,
    GENERATION,
    _whole("iteration", "updates", "The member's own count of updates; it never jumps at an exploit."),
    Column("env_steps", "int64", "bars", "Environment steps of the member so far, over all its accounts."),
    FITNESS,
    FITNESS_SE,
    _real("fitness_smoothed", "Sharpe, per year", "Exponential mean of the score over generations; ranks members."),
    _real("val_sharpe", "per year", "Plain Sharpe ratio on validation."),
    _real("train_sharpe", "per year", "Plain Sharpe ratio on train."),
    _real("reward_mean", "", "Mean shaped reward per step of the last rollout, or of the update's windows."),
    _real("policy_loss", "", "Clipped surrogate loss; with algo direct the negative of the objective."),
    _real("value_loss", "", "Squared error of the critic; this and the next four are PPO's alone."),
    _real("entropy", "nats", "Entropy of the squashed action distribution."),
    _real("kl", "nats", "Mean divergence between the policies before and after the update."),
    _real("clip_fraction", "share", "Share of samples whose probability ratio was clipped."),
    _real("explained_variance", "share", "Share of the return's variance that the critic explains."),
    _real("grad_norm", "", "Global gradient norm before clipping."),
    _real("lr_first_step", "", "Learning rate in force at the first gradient step of the iteration."),
    Column(HP, "float64", "see search", "Hyperparameter in force during this iteration."),
    _real("env_seconds", "s", "Time in the environment."),
    _real("policy_seconds", "s", "Time in the rest of the rollouts: policy, critic, advantages."),
    _real("learner_seconds", "s", "Time in the rest of the iteration: gradient steps, and RLlib around them."),
    _real("evaluation_seconds", "s", "Time evaluating on validation."),
    _real("checkpoint_seconds", "s", "Time writing state."),
    _real(
        "switch_seconds",
        "s",
        "Time between the previous member's last work on this actor and this one's first step, waiting included.",
    ),
    _real("wait_seconds", "s", "Part of switch_seconds before this member's ticket came."),
    _real("startup_seconds", "s", "In a process's first row: from the start of the process to its first step."),
    _real("steps_per_second", "bars/s", "Environment steps per second of this iteration."),
    _real("wall_time", "unix s", "When what the row tells was done."),
    _text("host", "Machine that trained."),
    _whole("actor_pid", "", "Process that trained."),
    _whole("attempt", "", "Attempt of this member and generation, 1 unless something failed."),
)

LINEAGE = (
    RUN,
    ARM,
    WINDOW,
    PAIR,
    GENERATION,
    MEMBER,
    _text(
        "operation",
        "The decision taken at the end of the generation.",
        "start",
        "keep",
        "exploit",
        "explore",
        "migrate",
        "rollback",
        "freeze",
        "lost",
        "stop",
    ),
    _text(
        "parent_member", "Member that trained the state that goes on; PAIR:member:generation if of another pair or run."
    ),
    _whole("parent_generation", "", "Generation that trained it; 0: none."),
    _text("copied", "What was taken from the parent.", "none", "weights", "all"),
    FITNESS,
    FITNESS_SE,
    _real("parent_fitness", "Sharpe, per year", "Score of the parent's state."),
    _real("gap", "Sharpe, per year", "Paired difference between donor and member on validation."),
    _real("gap_se", "Sharpe, per year", "Block-bootstrap standard error of the gap."),
    Column(HP, "float64", "see search", "Hyperparameter in force in the next generation."),
    Column(OLD_HP, "float64", "see search", "Hyperparameter in force in this generation."),
    _text("key", "Key of the generation's random streams, 16 hex digits."),
    _text("state", "First 16 hex digits of the SHA-256 of the state that goes on."),
)

DIVERSITY = (
    RUN,
    ARM,
    WINDOW,
    PAIR,
    GENERATION,
    _whole("ancestors", "", "Members of generation 0 whose weights live on."),
    _whole("members", "", "Members of the pair."),
    Column(
        SPREAD, "float64", "share of the range", "Standard deviation over members of the value's place in its range."
    ),
    _whole("exploits", "", "Members that took over a donor of their own group."),
    _whole("explores", "", "Members that kept their weights and moved their hyperparameters."),
    _whole("migrations", "", "Members that took weights from another group."),
)

VALIDATION = (
    WINDOW,
    PAIR,
    MEMBER,
    GENERATION,
    DATE,
    _real("net_return", "fraction of equity", "Return of the bar after costs and financing, on validation."),
)

DAILY = (
    RUN,
    WINDOW,
    SPLIT,
    SCENARIO,
    PAIR,
    POLICY,
    Column("decision_date", "timestamp", "", "The bar whose close the decision saw."),
    DATE,
    _real("target_weight_a", "fraction of equity", "Weight asked for in the first leg; negative: short."),
    _real("target_weight_b", "fraction of equity", "Weight asked for in the second leg."),
    _real("weight_a", "fraction of equity", "Weight held in the first leg after the cap on gross exposure."),
    _real("weight_b", "fraction of equity", "Weight held in the second leg after the cap."),
    _real("gross", "fraction of equity", "Gross exposure held, the sum of absolute weights."),
    _real("turnover", "fraction of equity", "Value traded, both sides, from the drifted position."),
    _real("trading_cost", "fraction of equity", "Commission and slippage, of the equity before the step."),
    _real(
        "financing", "fraction of equity", "Interest on borrowed cash and fee on shorts, of the equity before the step."
    ),
    _real("net_return", "fraction of equity", "Return from this fill to the next, after all costs."),
    _real("equity", "start = 1", "Equity at the next fill."),
)

SUMMARY = (
    RUN,
    WINDOW,
    SPLIT,
    SCENARIO,
    PAIR,
    POLICY,
    _text("kind", "What the policy is.", "survivor", "ensemble", "baseline"),
    _whole("rank", "", "Rank of a survivor by validation fitness, from 1."),
    _text("member", "Member that a survivor was taken from."),
    _whole("generation", "", "Generation that a survivor was taken from."),
    _real("cost_bps", "bps per side", "Commission plus slippage of the scenario."),
    _whole("lag", "bars", "Bars between the close a decision sees and its fill."),
    _whole("days", "trading days", "Sessions in the span; intraday bars are compounded to sessions first."),
    _real("avg_daily_return", "per day", "Arithmetic mean of the daily net return."),
    _real(
        "annualized_return",
        "per year",
        "(1 + avg_daily_return)^252 - 1 as in the original log (365 where a market never closes); not what was earned.",
    ),
    _real("cumulative_return", "of start", "final_value - 1."),
    _real("final_value", "start = 1", "Equity at the end."),
    _real(
        "annualised_sharpe",
        "per year",
        "Mean over population standard deviation of daily returns, times the root "
        "of the sessions per year; no risk-free rate; 0 without variance (cash).",
    ),
    _real("avg_turnover", "of equity, per day", "Mean value traded per day, both sides."),
    _real("max_drawdown", "of peak", "Deepest fall below the highest equity so far, start included; from -1 to 0."),
    _real("cagr", "per year", "Compound growth that the equity curve really earned."),
    _real("volatility", "per year", "Population standard deviation of daily returns, annualised."),
    _real("sortino", "per year", "Mean over downside deviation (target 0), annualised; null without a losing day."),
    _real("calmar", "", "cagr over the absolute maximum drawdown; null without a drawdown."),
    _real("cvar_95", "per day", "Mean of the worst 5 % of daily returns."),
    _real("gross_exposure", "fraction of equity", "Mean gross exposure over bars."),
    _real("cost_paid", "of equity, per year", "Trading costs plus financing paid, per year."),
    _real("alpha", "per year", "Intercept of the regression of daily returns on equal weight's, annualised."),
    _real("beta", "", "Slope of that regression."),
    _real(
        "sharpe_ci_low",
        "per year",
        "Lower end of the Sharpe ratio's 95 % interval (stationary bootstrap, automatic block); null under 20 days.",
    ),
    _real("sharpe_ci_high", "per year", "Upper end of that interval."),
    _real(
        "deflated_sharpe",
        "probability",
        "Probability that the true Sharpe ratio is positive although the best of many trials was taken; of survivors "
        "and ensemble on validation under base terms, the span that selection saw; null elsewhere.",
    ),
)

EVIDENCE = (
    RUN,
    WINDOW,
    PAIR,
    POLICY,
    _text(
        "statistic",
        "What the row tells: sharpe, cagr, max_drawdown, probabilistic_sharpe, sharpe_difference, superior_ability, "
        "stepwise_superior, minimum_track_record, detectable_difference (all on test, base terms); deflated_sharpe, "
        "trials, effective_trials, overfitting (on validation); looks; verdict.",
        "sharpe",
        "cagr",
        "max_drawdown",
        "probabilistic_sharpe",
        "sharpe_difference",
        "superior_ability",
        "stepwise_superior",
        "minimum_track_record",
        "detectable_difference",
        "deflated_sharpe",
        "trials",
        "effective_trials",
        "overfitting",
        "looks",
        "verdict",
    ),
    _text("other", "The policy it is held against; empty where there is none."),
    _real("value", "see statistic", "The figure; of a difference, policy less other, per year."),
    _real("low", "see statistic", "Lower end of its 95 % interval."),
    _real("high", "see statistic", "Upper end."),
    _real("p", "probability", "p-value, adjusted over pairs and for looks where pairs are compared with baselines."),
    _text("detail", "Of the verdict, its sentence; otherwise the claim or null."),
)

EVENTS = (
    RUN,
    _real("wall_time", "unix s", "When it happened."),
    Column("seq", "int64", "", "Running number, which orders events of one instant."),
    _text(
        "kind",
        "What happened.",
        "start",
        "resume",
        "actor_lost",
        "node_lost",
        "node_joined",
        "retry",
        "nan",
        "corrupt",
        "disk_full",
        "plan",
        "first_step",
        "tracker_failed",
        "fallback",
        "look",
        "done",
    ),
    WINDOW,
    PAIR,
    MEMBER,
    GENERATION,
    _text("detail", "The rest, as text or JSON."),
)

FRAMES: dict[str, tuple[Column, ...]] = {
    "progress": PROGRESS,
    "lineage": LINEAGE,
    "diversity": DIVERSITY,
    "validation": VALIDATION,
    "daily": DAILY,
    "summary": SUMMARY,
    "evidence": EVIDENCE,
    "events": EVENTS,
}

KEYS: dict[str, tuple[str, ...]] = {
    "progress": ("window", "pair", "member", "iteration"),
    "lineage": ("window", "pair", "generation", "member"),
    "diversity": ("window", "pair", "generation"),
    "validation": ("window", "pair", "member", "generation", "date"),
    "daily": ("window", "split", "scenario", "pair", "policy", "date"),
    "summary": ("window", "split", "scenario", "pair", "policy"),
    "evidence": ("window", "pair", "policy", "statistic", "other"),
    "events": ("wall_time", "seq"),
}


def describe(frame: str, name: str) -> Column:
    """The dictionary's entry for a column; ``hp_learning_rate`` finds ``hp_*``.

    Raises:
        KeyError: The frame has no such column.
    """
    stems = (stem for stem in PER_HYPERPARAMETER if name.startswith(stem[:-1]))
    stem = next(stems, name)
    for column in FRAMES[frame]:
        if column.name == stem:
            return column
    raise KeyError(f"{frame} has no column {name!r}")


def markdown(frame: str) -> str:
    """The dictionary of one frame as a Markdown table: column, type, unit, meaning."""
    lines = ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
    for column in FRAMES[frame]:
        meaning = column.meaning
        if column.choices:
            meaning += " One of: " + ", ".join(column.choices) + "."
        mark = " (key)" if column.name in KEYS[frame] else ""
        lines.append(f"| `{column.name}`{mark} | {column.type} | {column.unit} | {meaning} |")
    return "\n".join(lines) + "\n"
