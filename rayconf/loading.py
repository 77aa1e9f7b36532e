"""From presets, files, flags and ``--set`` to one ``RunConfig``. Precedence in that order, later wins."""

import contextlib
import datetime
import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rayconf.errors import UserError
from rayconf.run_config import RunConfig


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    folder = resources.files("rayconf") / "presets"
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The settings of one preset. Raises ``UserError`` for an unknown name."""
    if name not in preset_names():
        raise UserError(f"--preset: {name!r} is unknown; choose one of {', '.join(preset_names())}")
    text = (resources.files("rayconf") / "presets" / f"{name}.yaml").read_text()
    return yaml.safe_load(text) or {}


def load_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML config file. Raises ``UserError`` when it cannot be read as a mapping."""
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config: {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"--config: {path} must hold a mapping of sections")
    return {str(name): _without_dates(value) for name, value in settings.items()}


def field_paths(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Dotted paths of every field that ``--set`` reaches."""
    paths: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            paths += field_paths(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``a.b=value``; the value is read as YAML, so ``null``, ``[1, 2]`` and ``3e-4`` mean what they look like."""
    path, equals, raw = text.partition("=")
    if not equals or not path:
        raise UserError(f"--set: {text!r} must read path.to.key=value")
    try:
        value = raw if raw == "*" else yaml.safe_load(raw)  # of which YAML would make a reference
    except yaml.YAMLError as error:
        raise UserError(f"--set: the value of {path} is not valid YAML: {raw!r}") from error
    value = _without_dates(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 3e-4 as text
            value = float(value)
    return path, value


def _without_dates(value: Any) -> Any:
    """YAML reads 2020-01-01 as a date; the config holds dates as text."""
    if isinstance(value, dict):
        return {name: _without_dates(item) for name, item in value.items()}
    return value.isoformat() if isinstance(value, datetime.date) else value


def assign(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set one dotted path in nested settings. Raises ``UserError`` naming the nearest known field."""
    known = field_paths()
    if path not in known and not path.startswith("search."):
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        section = path.partition(".")[0] + "."
        siblings = [name for name in known if name.startswith(section)]
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(siblings or [*known[:2], "..."])
        raise UserError(f"--set: {path!r} is no field of a run (value {value!r}); {hint}")
    *parents, leaf = path.split(".")
    node = settings
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"--set: {path!r} reaches into {part!r}, which is not a section")
    node[leaf] = value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with ``over`` winning; ``search`` entries are merged by name."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def build_config(settings: Mapping[str, Any]) -> RunConfig:
    """Validate nested settings. Raises ``UserError`` in one line: field, value, what would be right."""
    try:
        return RunConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise UserError(_describe(error)) from error


def load_config(
    preset: str | None = "default",
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> RunConfig:
    """One config from a preset, an optional file, flags (dotted path to value) and ``--set`` assignments.

    Without a preset all of it lies on the fields' own defaults. Assignments to ``search`` come after all others, in
    their own order: what they add to is the default search of the whole run.
    """
    settings = {} if preset is None else load_preset(preset)
    if file is not None:
        settings = merge(settings, load_file(file))
    for path, value in (flags or {}).items():
        assign(settings, path, value)
    for text in sorted(assignments, key=lambda text: text.startswith(("search.", "search="))):
        path, value = parse_assignment(text)
        if path.startswith("search.") and not settings.get("search"):
            settings["search"] = {name: space.model_dump() for name, space in build_config(settings).search.items()}
        assign(settings, path, value)
    return build_config(settings)


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, field_paths(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "no such field"
        return f"{path}: unknown field (value {first['input']!r}); {hint}"
    if first["type"] == "value_error" and not path:
        return message
    shown = "" if first["type"] == "value_error" and isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"{path}: {message}{shown}"
