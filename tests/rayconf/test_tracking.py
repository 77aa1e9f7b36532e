"""Where tracking settings come from: flag, config, environment, default, in that order."""

import pytest
import yaml

from rayconf import UserError, load_config
from rayconf.run_config import RunConfig
from rayconf.tracking import TrackingConfig

EVERYTHING = {
    "WANDB_MODE": "offline",
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_GROUP": "group",
    "WANDB_TAGS": "b, a,b",
    "WANDB_API_KEY": "secret",
}


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "off"),
        ({"WANDB_MODE": ""}, "off"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "off"),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, "off"),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "false"}, "online"),
    ],
)
def test_the_mode_of_a_silent_config_is_the_environments(environment: dict[str, str], mode: str) -> None:
    assert TrackingConfig().in_force(environment).wandb == mode
    for given in ("off", "offline", "online"):
        assert TrackingConfig(wandb=given).in_force(environment).wandb == given


def test_what_is_given_wins_over_the_environment_and_that_over_defaults() -> None:
    found = TrackingConfig().in_force(EVERYTHING)
    assert (found.wandb_project, found.wandb_entity, found.wandb_group) == ("theirs", "team", "group")
    assert found.wandb_tags == ("b", "a")
    given = TrackingConfig(wandb="online", wandb_project="mine", wandb_tags=()).in_force(EVERYTHING)
    assert (given.wandb_project, given.wandb_tags, given.wandb_entity) == ("mine", (), "team")
    bare = TrackingConfig(wandb="online").in_force({})
    assert (bare.wandb_project, bare.wandb_entity, bare.wandb_tags) == ("pairpbt", None, ())
    assert TrackingConfig().in_force({"WANDB_PROJECT": "theirs"}).wandb_project is None, "off: open for a resume"


def test_a_resolved_config_is_read_back_and_holds_no_key() -> None:
    run = RunConfig()
    run = run.model_copy(update={"tracking": run.tracking.in_force(EVERYTHING)})
    assert "secret" not in run.to_yaml()
    assert RunConfig.model_validate(yaml.safe_load(run.to_yaml())).tracking == run.tracking
    assert run.tracking.in_force({}) == run.tracking
    assert run.identity == RunConfig().identity


def test_flags_and_assignments_reach_every_field() -> None:
    flags = {"tracking.wandb_tags": "x,y", "tracking.wandb_group": "g"}
    found = load_config("smoke", flags=flags, assignments=["tracking.wandb=off", "tracking.wandb_entity=e"]).tracking
    assert (found.wandb, found.wandb_tags, found.wandb_group, found.wandb_entity) == ("off", ("x", "y"), "g", "e")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WANDB_MODE": "shared"}, "WANDB_MODE: 'shared' must be online, offline or disabled"),
        ({"WANDB_MODE": "online", "WANDB_PROJECT": "a/b"}, "WANDB_PROJECT: 'a/b' cannot be tracking.wandb_project"),
        ({"WANDB_MODE": "online", "WANDB_TAGS": "t" * 65}, "WANDB_TAGS: "),
    ],
)
def test_a_variable_that_cannot_be_is_one_clear_line(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        TrackingConfig().in_force(environment)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
