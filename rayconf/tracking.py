"""Where progress is logged, from the config and, where that is silent, from the variables that W&B's own tools read."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from rayconf.errors import UserError
from rayconf.sections import Section

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")]
Tag = Annotated[str, Field(min_length=1, max_length=64)]

_VARIABLES = {
    "wandb_project": "WANDB_PROJECT",
    "wandb_entity": "WANDB_ENTITY",
    "wandb_group": "WANDB_RUN_GROUP",
    "wandb_tags": "WANDB_TAGS",
}
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"}
_YES = ("1", "true", "yes", "on", "y", "t")


class TrackingConfig(Section):
    """Where progress is logged beside the run's own frames.

    What is null is taken from the environment when the run is launched, else it is the default. Keys to an account are
    no part of a config: W&B finds them itself.
    """

    tensorboard: bool = True
    """Write TensorBoard logs into the run."""
    wandb: Literal["off", "offline", "online"] | None = None
    """Weights & Biases: off, into the run's directory, or to the server; null: WANDB_DISABLED, WANDB_MODE, else off."""
    wandb_project: Name | None = None
    """Project on Weights & Biases; null: WANDB_PROJECT, else pairpbt."""
    wandb_entity: Name | None = None
    """User or team that owns the project; null: WANDB_ENTITY, else the account's own."""
    wandb_group: Name | None = None
    """Group that the members' runs stand in; null: WANDB_RUN_GROUP, else the run's name."""
    wandb_tags: tuple[Tag, ...] | None = None
    """Tags of every run there, as a list or separated by commas; null: WANDB_TAGS, else none."""

    @field_validator("wandb", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """YAML reads a bare ``off`` as false."""
        return "off" if value is False else value

    @field_validator("wandb_tags", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """One text, as flags and variables give it, lists tags separated by commas; each counts once."""
        if isinstance(value, str):
            value = [tag.strip() for tag in value.split(",") if tag.strip()]
        return list(dict.fromkeys(value)) if isinstance(value, list | tuple) else value

    def in_force(self, environment: Mapping[str, str]) -> "TrackingConfig":
        """A copy with what is null filled from the environment and by defaults; entity and group may stay null.

        While W&B is off, the rest of it stays open for a resume that turns it on.

        Raises:
            UserError: If a variable that is needed holds what its field cannot.
        """
        mode = self.wandb or _mode(environment)
        settings = {**self.model_dump(), "wandb": mode}
        if mode != "off":
            for field, variable in _VARIABLES.items():
                if settings[field] is None and environment.get(variable):
                    settings[field] = _checked(field, variable, environment[variable])
            settings["wandb_project"] = settings["wandb_project"] or "pairpbt"
            settings["wandb_tags"] = settings["wandb_tags"] or ()
        return TrackingConfig.model_validate(settings)


def _mode(environment: Mapping[str, str]) -> str:
    if environment.get("WANDB_DISABLED", "").lower() in _YES:
        return "off"
    asked = environment.get("WANDB_MODE", "")
    if asked and asked.lower() not in _MODES:
        raise UserError(f"WANDB_MODE: {asked!r} must be online, offline or disabled; or give --wandb")
    return _MODES.get(asked.lower(), "off")


def _checked(field: str, variable: str, text: str) -> Any:
    try:
        return getattr(TrackingConfig.model_validate({field: text}), field)
    except ValidationError as error:
        raise UserError(f"{variable}: {text!r} cannot be tracking.{field}: {error.errors()[0]['msg']}") from error
