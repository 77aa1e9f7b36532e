"""``python -m rayconf.cluster_check FILE``: faults of a cluster's file, found before a machine costs money.

Ray itself checks its schema, and a cloud its own fields, but only when the machines start; a typo in a worker's
``node_config`` shows in a log on the head. What costs most, Ray does not check at all: members on the head, a dashboard
open to the network, workers without the token, other versions than those of the lock, GPUs that torch cannot see.
Checked here, without any access to a cloud: files of Ray's cluster launcher (AWS, GCP, machines of one's own) and
manifests for KubeRay.
"""

import difflib
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from rayconf.errors import OneLineParser, UserError
from rayconf.origins import HOME

CPU_INDEX = re.compile(r"TORCH_CPU_INDEX|/whl/cpu\b")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "RAY_AUTH_MODE=token"
GPU_FAMILY = re.compile(r"(p|g|gr)\d")  # of AWS
IMAGE = re.compile(r"(?P<ray>\d+\.\d+\.\d+)-py(?P<python>\d{2,})(?P<flavour>-[a-z0-9-]+)?$")


@dataclass(frozen=True)
class Problem:
    """One fault of a cluster's file."""

    key: str
    """Where it is, as a path of keys."""
    text: str
    """What is wrong and what would be right."""

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 with one line per fault."""
    parser = OneLineParser(prog="python -m rayconf.cluster_check", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, metavar="FILE", help="a file for `ray up`, or a manifest for KubeRay")
    try:
        path = parser.parse_args(arguments).file
        logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)  # it tells what it fills in
        problems = check(load(path), Path.cwd())
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"pairpbt: {path}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{path} is sound")
    return 2 if problems else 0


def load(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file.

    Raises:
        UserError: when the file cannot be read as YAML mappings.
    """
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise UserError(f"{path}: not a mapping; give a file for `ray up` or a manifest for KubeRay")
    return documents


def check(documents: Sequence[Mapping[str, Any]], folder: Path) -> list[Problem]:
    """All faults of a cluster's file, in its order of importance; empty: none found.

    Args:
        documents: The YAML documents of the file.
        folder: Where ``ray up`` will be called; relative sources of ``file_mounts`` start here.
    """
    if all("kind" in document for document in documents):
        from rayconf.kubernetes_check import check_manifest

        return [problem for document in documents for problem in check_manifest(document)]
    if len(documents) > 1:
        return [Problem("---", "more than one document; a file for `ray up` holds one")]
    config = documents[0]
    problems = list(schema(config))
    # What follows reads the file as the schema promises it.
    return problems or [
        *_node_types(config),
        *_start(config),
        *_token(config),
        *_versions(config),
        *_files(config, folder),
        *_fields_of_aws(config),
    ]


def _fields_of_aws(config: Mapping[str, Any]) -> Iterable[Problem]:
    if config["provider"]["type"] != "aws":
        return ()
    from rayconf.aws_check import check_aws

    return check_aws(config)


def schema(config: Mapping[str, Any]) -> Iterator[Problem]:
    """What Ray's own defaults, schema and rules say."""
    import copy

    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    kind = config.get("provider", {}).get("type") if isinstance(config.get("provider"), Mapping) else None
    if kind not in ("aws", "gcp", "local"):
        yield Problem("provider.type", f"{kind!r} is not checked here; it must be aws, gcp or local")
        return
    try:
        validate_config(prepare_config(copy.deepcopy(dict(config))))
    except ValidationError as error:
        yield Problem(".".join(map(str, error.absolute_path)) or "(top)", _hinted(error))
    except ValueError as error:
        key = "head_node_type" if "head_node_type" in str(error) else "max_workers"
        yield Problem(key, f"{' '.join(str(error).split())} Make the two agree")
    except (Exception, SystemExit) as error:  # of its many ways to refuse a file, Ray names none
        yield Problem("(top)", f"Ray refuses the file: {' '.join(str(error).split()) or type(error).__name__}")


def _hinted(error: Any) -> str:
    """A schema error with the key that was probably meant."""
    known = error.schema.get("properties", {}) if error.validator == "additionalProperties" else {}
    for name in error.instance if known else ():
        near = difflib.get_close_matches(name, known, n=1)
        if name not in known:
            return f"{name!r} is no key here; " + (f"did you mean {near[0]}?" if near else "remove it")
    return f"{error.message}; it must be of type {error.schema.get('type', 'that the schema says')}"


def _types(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = config.get("available_node_types", {})
    return found


def _commands(config: Mapping[str, Any], *keys: str) -> str:
    return "\n".join(command for key in keys for command in config.get(key) or ())


def _node_types(config: Mapping[str, Any]) -> Iterator[Problem]:
    head = config.get("head_node_type", "")
    for name, node in _types(config).items():
        at = f"available_node_types.{name}"
        low, high = node.get("min_workers", 0), node.get("max_workers", config.get("max_workers", 0))
        if name != head and low > high:
            yield Problem(f"{at}.min_workers", f"{low} is above max_workers {high}")
        if name == head:
            if node["resources"].get("CPU") != 0:
                yield Problem(f"{at}.resources.CPU", "the head must do no work; set it to 0, or members train there")
            if _is_spot(node["node_config"]):
                yield Problem(f"{at}.node_config", "the head is a spot machine, and the cluster ends with it; buy it")
        if _has_gpu(node):
            yield from _gpu(config, node, at)


def _is_spot(node_config: Mapping[str, Any]) -> bool:
    market = node_config.get("InstanceMarketOptions") or {}
    scheduling = node_config.get("scheduling") or {}
    return market.get("MarketType") == "spot" or "SPOT" in str(scheduling) or "preemptible" in str(scheduling)


def _has_gpu(node: Mapping[str, Any]) -> bool:
    return bool(
        node["resources"].get("GPU")
        or node["node_config"].get("guestAccelerators")
        or GPU_FAMILY.match(str(node["node_config"].get("InstanceType", "")))
    )


def _gpu(config: Mapping[str, Any], node: Mapping[str, Any], at: str) -> Iterator[Problem]:
    docker = config.get("docker") or {}
    image = (node.get("docker") or {}).get("worker_image") or docker.get("worker_image") or docker.get("image")
    if image and not re.search(r"-(gpu|cu\d+)$", image):
        yield Problem(f"{at}.docker.worker_image", f"{image} sees no GPU; name an image that ends in -gpu")
    if CPU_INDEX.search(_commands(node if "worker_setup_commands" in node else config, "setup_commands", *SETUP)):
        yield Problem(
            f"{at}.worker_setup_commands", "torch comes from an index of CPU builds; install without that index here"
        )


SETUP = ("worker_setup_commands",)
"""Where a node type may say how its workers are set up."""


def _start(config: Mapping[str, Any]) -> Iterator[Problem]:
    text = _commands(config, "head_start_ray_commands")
    for host in re.findall(r"--dashboard-host[= ](\S+)", text):
        if host not in LOOPBACK:
            yield Problem(
                "head_start_ray_commands",
                f"--dashboard-host={host} shows the dashboard to the network; make it 127.0.0.1, use `ray dashboard`",
            )
    if not text:
        yield Problem(
            "head_start_ray_commands", "missing; Ray's default opens the dashboard to the network; see cluster.yaml"
        )
    elif config["provider"]["type"] == "local" and "--num-cpus=0" not in text:
        yield Problem("head_start_ray_commands", "the head must do no work; start it with --num-cpus=0")


def _token(config: Mapping[str, Any]) -> Iterator[Problem]:
    docker = config.get("docker") or {}
    if docker.get("image"):
        if TOKEN not in " ".join(docker.get("run_options", ())):
            yield Problem("docker.run_options", f"no token on the nodes; add '-e {TOKEN}'")
    else:
        for role in ("head", "worker"):
            text = _commands(config, "setup_commands", f"{role}_setup_commands", f"{role}_start_ray_commands")
            if TOKEN not in text:
                yield Problem(f"{role}_start_ray_commands", f"no token on these nodes; export {TOKEN}")
    mounts = config.get("file_mounts") or {}
    if "~/.ray" not in [target.rstrip("/") for target in mounts] and "RAY_AUTH_TOKEN" not in str(config):
        yield Problem("file_mounts", "the token does not reach the nodes; add '~/.ray: ~/.ray'")


def _versions(config: Mapping[str, Any]) -> Iterator[Problem]:
    docker = config.get("docker") or {}
    images = {f"docker.{key}": docker[key] for key in ("image", "head_image", "worker_image") if key in docker}
    for name, node in _types(config).items():
        if "worker_image" in (node.get("docker") or {}):
            images[f"available_node_types.{name}.docker.worker_image"] = node["docker"]["worker_image"]
    for key, image in images.items():
        yield from image_problems(key, image)
    for key in ("setup_commands", "head_setup_commands", *SETUP):
        yield from _unpinned(key, config)
    for name, node in _types(config).items():
        for problem in _unpinned(SETUP[0], node):
            yield Problem(f"available_node_types.{name}.{problem.key}", problem.text)


def _unpinned(key: str, where: Mapping[str, Any]) -> Iterator[Problem]:
    for command in where.get(key) or ():
        if re.search(r"pip3? install", command) and "constraints.txt" not in command and "--no-deps" not in command:
            yield Problem(key, f"{command!r} takes whatever versions are newest; add -c constraints.txt")


def pinned(package: str) -> str:
    """The version of a package in the lock beside the packages, or else the installed one."""
    lock = HOME / "constraints.txt"
    lines = lock.read_text().splitlines() if lock.is_file() else ()
    pins = (line.split("==")[1].strip() for line in lines if line.lower().startswith(f"{package}=="))
    return next(pins, None) or version(package)


def image_problems(key: str, image: str) -> Iterator[Problem]:
    """Where an image's tag names another Ray or Python than this project's."""
    found = IMAGE.search(image)
    ray, python = pinned("ray"), "".join(map(str, sys.version_info[:2]))
    right = f"{ray}-py{python}"
    if found is None:
        yield Problem(key, f"{image} does not say its Ray and Python; give it a tag such as {right}-cpu")
    elif (found["ray"], found["python"]) != (ray, python):
        yield Problem(
            key, f"{image} is not Ray {ray} on Python {'.'.join((python[0], python[1:]))}; make its tag {right}"
        )


def _files(config: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    for target, source in (config.get("file_mounts") or {}).items():
        path = folder / Path(source).expanduser()
        token = Path(source).name == ".ray"
        if not path.exists() or (token and not (path / "auth_token").is_file()):
            cure = "make the token with `ray get-auth-token --generate`" if token else f"it is looked up from {folder}"
            yield Problem(f"file_mounts.{target}", f"{source} does not exist; {cure}" if not path.exists() else cure)
        elif source == "." and not (path / "pyproject.toml").is_file():
            yield Problem(f"file_mounts.{target}", f"{folder} is not the checkout; call `ray up` in the checkout")
    key = (config.get("auth") or {}).get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield Problem("auth.ssh_private_key", f"{key} does not exist; name the key that opens the machines")


if __name__ == "__main__":
    sys.exit(main())
