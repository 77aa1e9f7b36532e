"""The sections of a run's description. The docstring under a field is its documentation, everywhere."""

from rayconf.sections.features import UNAVAILABLE, AugmentConfig, FeaturesConfig, ForecastConfig, UniverseConfig
from rayconf.sections.learning import ENCODERS, DirectConfig, EnvConfig, NetworkConfig, OptimizerConfig, PPOConfig
from rayconf.sections.market import DEFAULT_FRACTIONS, MOST_WALKS, CostsConfig, DataConfig, SplitConfig, SyntheticConfig
from rayconf.sections.running import STAGES, BacktestConfig, PBTConfig, ResourcesConfig, StagesConfig
from rayconf.sections.section import Count, Fraction, Listed, NonNegative, Positive, Section

__all__ = [
    "DEFAULT_FRACTIONS",
    "ENCODERS",
    "MOST_WALKS",
    "STAGES",
    "UNAVAILABLE",
    "AugmentConfig",
    "BacktestConfig",
    "CostsConfig",
    "Count",
    "DataConfig",
    "DirectConfig",
    "EnvConfig",
    "FeaturesConfig",
    "ForecastConfig",
    "Fraction",
    "Listed",
    "NetworkConfig",
    "NonNegative",
    "OptimizerConfig",
    "PBTConfig",
    "PPOConfig",
    "Positive",
    "ResourcesConfig",
    "Section",
    "SplitConfig",
    "StagesConfig",
    "SyntheticConfig",
    "UniverseConfig",
]
