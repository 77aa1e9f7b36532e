"""``RunConfig``: everything that a run is, typed and documented, equal to the CLI and to ``config.yaml``."""

import hashlib
import json
from collections.abc import Collection
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rayconf.consistency import check_consistent
from rayconf.keys import derive_key
from rayconf.search import Range, idle_fields
from rayconf.sections import (
    DEFAULT_FRACTIONS,
    AugmentConfig,
    BacktestConfig,
    CostsConfig,
    DataConfig,
    DirectConfig,
    EnvConfig,
    FeaturesConfig,
    ForecastConfig,
    NetworkConfig,
    OptimizerConfig,
    PBTConfig,
    PPOConfig,
    ResourcesConfig,
    Section,
    SplitConfig,
    StagesConfig,
    SyntheticConfig,
    UniverseConfig,
)
from rayconf.tracking import TrackingConfig

# The risk terms differ in units, so each has its own range (fraction of equity per bar).
RISK_RANGES = {"variance": (0.3, 30.0), "downside": (0.6, 60.0), "drawdown": (0.01, 0.5)}


def default_search(
    env: EnvConfig, costs: CostsConfig, idle: Collection[str] = (), encoder_lr_factor: float | None = None
) -> dict[str, Range]:
    """The numbers PBT mutates unless told otherwise.

    Args:
        env: The environment, whose risk measure has a range of its own.
        costs: The real costs; training costs are omitted where they are zero.
        idle: Fields to leave out.
        encoder_lr_factor: The run's own learning-rate factor, around which it moves; None: no pre-trained encoder is
            tuned, and it is omitted.
    """
    low, high = RISK_RANGES[env.risk_measure]
    search = {
        "learning_rate": Range(path="optimizer.learning_rate", low=3e-5, high=3e-3),
        "risk_penalty": Range(path="env.risk_penalty", low=low, high=high),
        "turnover_penalty": Range(path="env.turnover_penalty", low=0.05, high=20.0, step=3.0),
        "cvar_weight": Range(path="env.cvar_weight", low=0.001, high=0.1),
    }
    if costs.real_bps > 0:
        search["train_cost_bps"] = Range(path="env.train_cost_bps", low=costs.real_bps, high=10 * costs.real_bps)
    if encoder_lr_factor is not None:
        # Farther down than up: what was pre-trained mostly wants smaller steps than what starts from nothing.
        low, high = 0.03 * encoder_lr_factor, 3.0 * encoder_lr_factor
        search["encoder_lr_factor"] = Range(path="optimizer.encoder_lr_factor", low=low, high=high)
    return {name: space for name, space in search.items() if space.path not in idle}


class RunConfig(Section):
    """A complete, repeatable description of one run."""

    name: str | None = None
    """Name of the run's directory; null: ``<preset>-<date>-<time>``."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random in the run."""
    data: DataConfig = DataConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    split: SplitConfig = SplitConfig()
    features: FeaturesConfig = FeaturesConfig()
    forecasts: ForecastConfig = ForecastConfig()
    universe: UniverseConfig = UniverseConfig()
    augment: AugmentConfig = AugmentConfig()
    costs: CostsConfig = CostsConfig()
    env: EnvConfig = EnvConfig()
    network: NetworkConfig = NetworkConfig()
    algo: Literal["ppo", "direct"] = "ppo"
    """What trains the policy: ``ppo``, from sampled actions and a critic; ``direct``: the exact gradient of what the
    accounts earn, see the section ``direct``. States of one start the other."""
    ppo: PPOConfig = PPOConfig()
    direct: DirectConfig = DirectConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    pbt: PBTConfig = PBTConfig()
    search: dict[str, Range] = Field(default_factory=dict)
    """What PBT mutates, by hyperparameter name; empty: learning rate, those of the four penalties that act, and where
    a pre-trained encoder is tuned its learning-rate factor. Fields that it can mutate: ``rayconf.search``."""
    backtest: BacktestConfig = BacktestConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    stages: StagesConfig = StagesConfig()
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages that made the run; written, never read."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        """Resolve what depends on other sections, so that the written config is complete."""
        if not isinstance(data, dict):
            return data
        try:
            env = EnvConfig.model_validate(data.get("env", {}))
            costs = CostsConfig.model_validate(data.get("costs", {}))
            split = SplitConfig.model_validate(data.get("split", {}))
            where = DataConfig.model_validate(data.get("data", {}))
            synthetic = SyntheticConfig.model_validate(data.get("synthetic", {}))
            features = FeaturesConfig.model_validate(data.get("features", {}))
            backtest = BacktestConfig.model_validate(data.get("backtest", {}))
            pbt = PBTConfig.model_validate(data.get("pbt", {}))
            direct = DirectConfig.model_validate(data.get("direct", {}))
            optimizer = OptimizerConfig.model_validate(data.get("optimizer", {}))
            stages = StagesConfig.model_validate(data.get("stages", {}))
        except ValidationError:
            return data  # reported by the ordinary validation, with the full path
        update: dict[str, Any] = {}
        if env.risk_penalty is None:
            update["risk_penalty"] = env.default_risk_penalty
        if env.train_cost_bps is None:
            update["train_cost_bps"] = costs.real_bps
        resolved = {**data, "env": env.model_copy(update=update), "costs": costs}
        resolved["features"] = features.with_prior(env, backtest)
        if pbt.fitness_over is None:
            over = "prior" if env.mapping == "residual" else "cash"
            resolved["pbt"] = pbt.model_copy(update={"fitness_over": over})
        if split.fractions is None:
            fractions = DEFAULT_FRACTIONS if where.dir else synthetic.fractions
            resolved["split"] = split.model_copy(update={"fractions": fractions})
        if not data.get("search"):
            idle = idle_fields(data.get("algo", "ppo"), direct.objective)
            factor = optimizer.encoder_lr_factor if stages.pretrain and not stages.freezes else None
            resolved["search"] = default_search(env, costs, idle, factor)
        return resolved

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        check_consistent(self)
        return self

    @property
    def env_steps_per_update(self) -> int:
        """Environment steps of one update, over all accounts."""
        if self.algo == "direct":
            return self.direct.bars_per_step * self.direct.steps
        return self.ppo.num_envs * self.ppo.rollout_steps

    @property
    def mutates_learning_rate(self) -> bool:
        """Whether PBT owns the learning rate, so that no schedule may decay it."""
        return any(space.path == "optimizer.learning_rate" for space in self.search.values())

    @property
    def identity(self) -> str:
        """What the run computes, as ``seed7-0123456789ab``: seed and digest of the config.

        Name, resources, trackers and versions do not count, so runs of one identity have equal results and equal
        frames wherever they are kept. Of a base checkpoint and of forecasts the content counts, not where it lay.
        """
        left_out = {"name", "resources", "tracking", "versions", "stages", "forecasts"}
        content = self.model_dump(mode="json", exclude=left_out)
        if self.forecasts.content is not None:
            content["forecasts"] = self.forecasts.content
        if self.stages.base_digest is not None:
            content["base"] = self.stages.base_digest
        if self.stages.pretrain:
            content["stages"] = self.stages.model_dump(mode="json", exclude={"base", "base_digest"})
        text = json.dumps(content, sort_keys=True)
        return f"seed{self.seed}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"

    @property
    def anchored(self) -> bool:
        """Whether boundary states hold the actor's weights that the run started from: to pull to, or to measure by."""
        pulled = self.optimizer.pull > 0 or any(space.path == "optimizer.pull" for space in self.search.values())
        return pulled or self.pbt.fitness_over == "base"

    def starts_from_base(self, pair: str) -> bool:
        """Whether the pair started from the run's base checkpoint, whose scale of features it keeps."""
        return self.stages.base_digest is not None and pair not in self.data.transferred

    @property
    def leaders(self) -> tuple[str, ...]:
        """The pairs under whose names populations train: all, or the first alone where one is pooled over them."""
        return self.data.pairs[:1] if self.pbt.pooled else self.data.pairs

    def leader(self, pair: str) -> str:
        """The pair whose population serves ``pair``: under its name that is committed, and its streams are keyed."""
        return self.data.pairs[0] if self.pbt.pooled else pair

    def judges(self, pair: str) -> tuple[str, ...]:
        """The pairs that the population serving ``pair`` is evaluated on, the one it trains under first."""
        return self.data.pairs if self.pbt.pooled else (pair,)

    def window(self, number: int, validation_start: str, test_start: str, test_end: str | None) -> "RunConfig":
        """The ordinary run that window ``number`` (from 1) of a walk-forward is: its own dates, and its own seed."""
        dates = {"validation_start": validation_start, "test_start": test_start, "test_end": test_end}
        split = self.split.model_copy(update={"walk_forward": (), **dates})
        # 31 bits, as small as people write seeds.
        seed = derive_key(self.seed, "window", number) % 2**31
        return self.model_copy(update={"split": split, "seed": seed})

    def with_values(self, values: dict[str, float]) -> "RunConfig":
        """A copy with the named hyperparameters of ``search`` set to the given values, whole numbers as such."""
        sections: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            section, _, field = self.search[name].path.partition(".")
            whole = isinstance(getattr(getattr(self, section), field), int)
            sections.setdefault(section, {})[field] = int(value) if whole else value
        return self.model_copy(
            update={section: getattr(self, section).model_copy(update=update) for section, update in sections.items()}
        )

    def value_of(self, name: str) -> float:
        """The run's own (unmutated) value of the hyperparameter ``name``."""
        section, _, field = self.search[name].path.partition(".")
        value = getattr(getattr(self, section), field)
        return float(self.costs.leverage if value is None else value)  # a leverage cap alone may be left open

    def to_yaml(self) -> str:
        """The config as YAML; feeding it back gives an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)
