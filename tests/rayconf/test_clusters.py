"""The shipped clusters: Ray's own schema and bootstrap accept them, and mistakes planted in them are found."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from rayconf.cluster_check import check, load, main
from tests.conftest import ROOT

CLUSTERS = ROOT / "rayconf" / "clusters"
AWS = ROOT / "cluster.yaml"
LOCAL, GCP, KUBERAY = (CLUSTERS / f"{name}.yaml" for name in ("local", "gcp", "kuberay"))
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
Config = dict[str, Any]
Change = Callable[[Config], object]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a token and a key, which the files mount and name."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token\n")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text("key\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def problems(path: Path, *changes: Change) -> list[str]:
    documents = copy.deepcopy(load(path))
    for change in changes:
        change(documents[-1])
    return [str(problem) for problem in check(documents, ROOT)]


@pytest.mark.parametrize("path", [AWS, LOCAL, GCP, KUBERAY], ids=lambda path: path.name)
def test_shipped_files_are_sound(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([str(path)]) == 0
    assert capsys.readouterr() == (f"{path} is sound\n", "")


def types(config: Config, name: str) -> Config:
    return config["available_node_types"][name]


def swap(key: str, index: int, old: str, new: str) -> Change:
    def change(config: Config) -> None:
        assert old in config[key][index]
        config[key][index] = config[key][index].replace(old, new)

    return change


MISTAKES: list[tuple[Path, str, Change, str]] = [
    (AWS, "unknown key", lambda c: c.update(setup_comands=[]), "(top): .*did you mean setup_commands"),
    (AWS, "key of a type", lambda c: types(c, "cpu").update(max_worker=3), "types.cpu: .*did you mean max_workers"),
    (AWS, "wrong type", lambda c: c.update(max_workers="three"), "max_workers: 'three' .*integer"),
    (AWS, "head type", lambda c: c.update(head_node_type="nope"), "head_node_type: .*available_node_types"),
    (AWS, "sum of minima", lambda c: types(c, "cpu").update(min_workers=9, max_workers=9), "max_workers: "),
    (AWS, "minimum", lambda c: types(c, "gpu").update(min_workers=3), "gpu.min_workers: 3 is above max_workers 2"),
    (AWS, "provider", lambda c: c["provider"].update(type="azure"), "provider.type: 'azure'"),
    (AWS, "instance type", lambda c: node(c, "cpu", InstanceType="c6i.4xlarg"), "InstanceType: .*mean c6i.4xlarge"),
    (AWS, "zone", lambda c: c["provider"].update(availability_zone="eu-west-1a"), "availability_zone: eu-west-1a"),
    (
        AWS,
        "field of EC2",
        lambda c: node(c, "cpu", InstanceMarketOption={}),
        "mean InstanceMarketOptions",
    ),
    (AWS, "field below", lambda c: node(c, "cpu", MetadataOptions={"HttpToken": "required"}), "mean HttpTokens"),
    (AWS, "value of EC2", lambda c: node(c, "gpu", ImageId=7), "node_config: .*ImageId"),
    (AWS, "work on the head", lambda c: types(c, "head").update(resources={}), "head.resources.CPU: .*set it to 0"),
    (
        AWS,
        "spot head",
        lambda c: node(c, "head", InstanceMarketOptions={"MarketType": "spot"}),
        "types.head.node_config",
    ),
    (AWS, "open port", lambda c: open_port(c, "0.0.0.0/0"), "IpPermissions: 0.0.0.0/0 opens port 8265"),
    (AWS, "open port, v6", lambda c: open_port(c, "::/0"), "IpPermissions: ::/0 opens port 8265"),
    (AWS, "dashboard", swap("head_start_ray_commands", 1, "host=127.0.0.1", "host=0.0.0.0"), "make it 127.0.0.1"),
    (AWS, "default start", lambda c: c.pop("head_start_ray_commands"), "head_start_ray_commands: missing"),
    (AWS, "no token", lambda c: c["docker"]["run_options"].pop(1), "docker.run_options: .*RAY_AUTH_MODE=token"),
    (AWS, "token not sent", lambda c: c["file_mounts"].pop("~/.ray"), "file_mounts: .*token does not reach"),
    (
        AWS,
        "other Ray",
        lambda c: c["docker"].update(image="rayproject/ray:2.59.0-py311-cpu"),
        "docker.image: .*2.60.0-py311",
    ),
    (
        AWS,
        "other Python",
        lambda c: worker(c, "rayproject/ray:2.60.0-py312-gpu"),
        "gpu.docker.worker_image: .*2.60.0-py311",
    ),
    (AWS, "no version", lambda c: c["docker"].update(image="rayproject/ray:latest"), "docker.image: .*does not say"),
    (AWS, "GPU without image", lambda c: types(c, "gpu").pop("docker"), "gpu.docker.worker_image: .*ends in -gpu"),
    (AWS, "GPU, CPU torch", lambda c: types(c, "gpu").pop("worker_setup_commands"), "gpu.worker_setup_commands: torch"),
    (AWS, "unpinned", swap("setup_commands", 0, "-c constraints.txt", ""), "setup_commands: .*add -c constraints.txt"),
    (
        AWS,
        "unpinned GPU",
        lambda c: swap("worker_setup_commands", 0, "-c constraints.txt", "")(types(c, "gpu")),
        "types.gpu.worker",
    ),
    (
        AWS,
        "no source",
        lambda c: c["file_mounts"].update({"/x": "/does/not/exist"}),
        "file_mounts./x: .*not exist",
    ),
    (LOCAL, "work on the head", swap("head_start_ray_commands", 1, "--num-cpus=0", ""), "start it with --num-cpus=0"),
    (LOCAL, "no token", swap("setup_commands", 1, "RAY_AUTH_MODE=token", "A=b"), "head_start_ray_commands: no token"),
    (
        LOCAL,
        "no key",
        lambda c: c["auth"].update(ssh_private_key="~/.ssh/id_none"),
        "ssh_private_key: .*not exist",
    ),
    (LOCAL, "no addresses", lambda c: c["provider"].pop("worker_ips"), "(top): Ray refuses"),
    (LOCAL, "address", lambda c: c["provider"].update(worker_ips="192.168.1.11"), "provider.worker_ips: .*array"),
    (GCP, "GPU without image", lambda c: types(c, "gpu").pop("docker"), "gpu.docker.worker_image: .*ends in -gpu"),
    (GCP, "spot head", lambda c: node(c, "head", scheduling=[{"preemptible": True}]), "types.head.node_config"),
    (GCP, "resources", lambda c: types(c, "cpu").pop("resources"), "types.cpu: 'resources' is a required property"),
    (KUBERAY, "version", lambda c: c.update(apiVersion="ray.io/v1alpha1"), "RayJob.apiVersion"),
    (KUBERAY, "field", lambda c: c["spec"].update(entrypont="x"), "RayJob.spec.entrypont: .*mean entrypoint"),
    (KUBERAY, "no command", lambda c: c["spec"].pop("entrypoint"), "RayJob.spec.entrypoint: missing"),
    (KUBERAY, "stays", lambda c: c["spec"].pop("shutdownAfterJobFinishes"), "shutdownAfterJobFinishes: .*true"),
    (KUBERAY, "no cluster", lambda c: c["spec"].pop("rayClusterSpec"), "rayClusterSpec: missing"),
    (KUBERAY, "other Ray", lambda c: cluster(c).update(rayVersion="2.59.0"), "rayVersion: 2.59.0 must be"),
    (KUBERAY, "no token", lambda c: cluster(c).pop("authOptions"), "authOptions.mode: no token"),
    (KUBERAY, "head", lambda c: cluster(c)["headGroupSpec"].update(rayStartParams={}), 'num-cpus: .*set it to "0"'),
    (KUBERAY, "ingress", lambda c: cluster(c)["headGroupSpec"].update(serviceType="LoadBalancer"), "serviceType: "),
    (KUBERAY, "replicas", lambda c: cluster(c)["workerGroupSpecs"][0].update(replicas=9), "cpu.replicas: must lie"),
    (KUBERAY, "limits", lambda c: pod(c, 0)["resources"].pop("limits"), "resources: requests must equal limits"),
    (KUBERAY, "image", lambda c: pod(c, 1).update(image="r/p:2.60.0-py311-cpu"), "image: .*ends in -gpu"),
    (
        KUBERAY,
        "image's Ray",
        lambda c: pod(c, 0).update(image="r/p:2.58.0-py311-cpu"),
        "image: .*tag 2.60.0-py311",
    ),
]


def node(config: Config, name: str, **fields: object) -> None:
    types(config, name)["node_config"].update(fields)


def worker(config: Config, image: str) -> None:
    types(config, "gpu")["docker"]["worker_image"] = image


def open_port(config: Config, cidr: str) -> None:
    kind = {"Ipv6Ranges": [{"CidrIpv6": cidr}]} if ":" in cidr else {"IpRanges": [{"CidrIp": cidr}]}
    rule = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", **kind}
    config["provider"]["security_group"]["IpPermissions"] = [rule]


def cluster(job: Config) -> Config:
    return job["spec"]["rayClusterSpec"]


def pod(job: Config, group: int) -> Config:
    return cluster(job)["workerGroupSpecs"][group]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [pytest.param(path, change, words, id=f"{path.stem}: {name}") for path, name, change, words in MISTAKES],
)
def test_planted_mistake_is_found_and_named(path: Path, change: Change, words: str) -> None:
    found = problems(path, change)
    assert any(re.search(words.replace("(top)", r"\(top\)"), line) for line in found), found
    assert all("\n" not in line for line in found)


def test_what_is_missing_at_home_is_found(home: Path, tmp_path: Path) -> None:
    (home / ".ray" / "auth_token").unlink()
    (line,) = problems(AWS)
    assert line.startswith("file_mounts.~/.ray: ")
    assert "ray get-auth-token --generate" in line
    elsewhere = [str(problem) for problem in check(load(AWS), tmp_path)]
    assert any("call `ray up` in the checkout" in line for line in elsewhere)


def test_command_names_file_key_and_fix(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        AWS.read_text().replace("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0")
    )
    (tmp_path / "torn.yaml").write_text("cluster_name: [\n")
    for name, words in [
        ("bad.yaml", "bad.yaml: head_start_ray_commands: --dashboard-host=0.0.0.0"),
        ("torn.yaml", "torn.yaml is not valid YAML"),
        ("none.yaml", "none.yaml: No such file"),
    ]:
        command = [sys.executable, "-m", "rayconf.cluster_check", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        (line,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (2, "")
        assert line.startswith("pairpbt: ")
        assert words in line


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS of our own in this process, and Ray's provider without its memory of another."""
    from moto import mock_aws
    from ray.autoscaler._private.aws import config, utils

    for name, value in [
        ("ACCESS_KEY_ID", "testing"),
        ("SECRET_ACCESS_KEY", "testing"),
        ("DEFAULT_REGION", "us-west-2"),
    ]:
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws(), mock.patch.object(config.time, "sleep"):  # it waits for IAM to spread
        for cache in (utils.client_cache, utils.resource_cache, config._get_subnets_or_die):
            cache.cache_clear()
        yield
    for cache in (utils.client_cache, utils.resource_cache, config._get_subnets_or_die):
        cache.cache_clear()


def bootstrap(config: Config) -> Config:
    """All that ``ray up`` does before it starts a machine."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    provider = _NODE_PROVIDERS[config["provider"]["type"]](config["provider"])
    config = provider.fillout_available_node_types_resources(config)
    validate_config(config)
    return provider.bootstrap_config(config)


def start(config: Config, name: str) -> Config:
    """Start one machine of a type, as the launcher or the autoscaler would; what EC2 says of it."""
    import boto3
    from ray.autoscaler._private.providers import _get_node_provider

    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    tags = {"ray-node-type": "worker", "ray-user-node-type": name, "ray-launch-config": "x", "ray-node-name": "n"}
    (identity,) = provider.create_node(copy.deepcopy(types(config, name)["node_config"]), tags, 1)
    reservations = boto3.client("ec2", config["provider"]["region"]).describe_instances(InstanceIds=[identity])
    return reservations["Reservations"][0]["Instances"][0]


def deploy(region: str, **parameters: str) -> Config:
    """Deploy what an account needs; its outputs."""
    import boto3

    stacks = boto3.client("cloudformation", region)
    stacks.create_stack(
        StackName="pairpbt",
        TemplateBody=(CLUSTERS / "aws_account.yaml").read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )
    return {o["OutputKey"]: o["OutputValue"] for o in stacks.describe_stacks()["Stacks"][0]["Outputs"]}


def statements(document: Any) -> list[Config]:
    """Of a policy, which moto gives out as text where CloudFormation made it."""
    return (yaml.safe_load(document) if isinstance(document, str) else document)["Statement"]


def rules(config: Config) -> list[Config]:
    """What may come in from where, by the security group of all types."""
    import boto3

    (group,) = {
        group
        for name in config["available_node_types"]
        for group in types(config, name)["node_config"]["SecurityGroupIds"]
    }
    ec2 = boto3.client("ec2", config["provider"]["region"])
    return ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]


def test_cluster_boots_on_an_account_of_the_stack(aws: None) -> None:
    outputs = deploy("us-west-2", SshFrom="203.0.113.7/32")
    assert re.fullmatch(r"s3://pairpbt-\d+-us-west-2/runs", outputs["Storage"])
    (written,) = load(AWS)
    config = bootstrap(written)

    kinds = config["available_node_types"].items()
    offered = {name: [kind["resources"].get(key) for key in ("CPU", "GPU")] for name, kind in kinds}
    assert offered == {"head": [0, None], "cpu": [16, None], "gpu": [8, 1]}
    assert [types(config, name)["min_workers"] for name in ("cpu", "gpu")] == [0, 0]
    allowed = rules(config)
    assert [rule["IpRanges"][0]["CidrIp"] for rule in allowed if rule["IpRanges"]] == ["203.0.113.7/32"]
    assert [rule["FromPort"] for rule in allowed if rule["IpRanges"]] == [22]
    (inside,) = [rule for rule in allowed if not rule["IpRanges"]]
    assert inside["IpProtocol"] == "-1"
    assert len(inside["UserIdGroupPairs"]) == 1

    for name, market, profile in [("head", None, "head"), ("cpu", "spot", "worker"), ("gpu", "spot", "worker")]:
        machine = start(config, name)
        assert machine.get("InstanceLifecycle") == market
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/pairpbt-{profile}")
        asked = types(config, name)["node_config"]
        assert asked["MetadataOptions"]["HttpTokens"] == "required"
        assert all(device["Ebs"]["Encrypted"] for device in asked["BlockDeviceMappings"])


def test_stack_takes_a_bucket_and_grants_no_more_than_needed(aws: None) -> None:
    import boto3

    assert deploy("us-west-2", SshFrom="203.0.113.0/24", Bucket="mine")["Storage"] == "s3://mine/runs"
    assert boto3.client("s3").list_buckets()["Buckets"] == []
    iam = boto3.client("iam")
    policy = statements(iam.get_role_policy(RoleName="pairpbt-head", PolicyName="autoscaler")["PolicyDocument"])
    free = [s["Action"] for s in policy if s["Resource"] == "*"]
    assert free == ["ec2:Describe*", ["ec2:RunInstances", "ec2:CreateTags"]]
    assert iam.list_role_policies(RoleName="pairpbt-worker")["PolicyNames"] == []
    for role in ("pairpbt-head", "pairpbt-worker"):
        (attached,) = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        version = iam.get_policy_version(PolicyArn=attached["PolicyArn"], VersionId="v1")["PolicyVersion"]
        assert [s["Resource"] for s in statements(version["Document"])] == ["arn:aws:s3:::mine", "arn:aws:s3:::mine/*"]


def test_stack_is_what_cloudformation_reads() -> None:
    from cfnlint.api import lint_file

    assert [str(fault) for fault in lint_file(CLUSTERS / "aws_account.yaml")] == []


def test_without_the_stack_ray_opens_ssh_to_the_world(aws: None) -> None:
    """Why the group is made first: also where the file names its own network, Ray's rule stays."""
    (config,) = load(AWS)
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    config["provider"]["security_group"]["IpPermissions"] = [rule]
    ranges = {network["CidrIp"] for allowed in rules(bootstrap(config)) for network in allowed["IpRanges"]}
    assert ranges == {"203.0.113.7/32", "0.0.0.0/0"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: node(c, "cpu", InstanceType="c99.large"), "c99.large is not available"),
        (lambda c: c["provider"].update(availability_zone="eu-west-1a"), "No usable subnets matching"),
        (lambda c: node(c, "cpu", InstanceMarketOption={}), "Unknown parameter in input"),
    ],
    ids=["instance type", "zone", "field of EC2"],
)
def test_ray_itself_refuses(aws: None, capfd: pytest.CaptureFixture[str], change: Change, error: str) -> None:
    (config,) = load(AWS)
    change(config)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - Ray raises what it likes
        start(bootstrap(config), "cpu")
    assert error in str(caught.value) + "".join(capfd.readouterr())


def test_images_and_setup_follow_the_lock() -> None:
    version, python = PINS["ray"], "py311"
    text = (CLUSTERS / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{version}-{python}-${{FLAVOUR}}" in text
    (install,) = re.findall(r"^RUN pip install .*$", text, re.MULTILINE)
    assert "-c constraints.txt" in install
    assert "==" not in text, "versions stand in constraints.txt alone"
    copied = set(re.findall(r"[\w.]+", " ".join(re.findall(r"^COPY --chown=\S+ (.*) \S+$", text, re.MULTILINE))))
    assert {"pyproject.toml", "constraints.txt", "rayconf", "envs", "algos", "pbt", "analysis"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    for path in (AWS, GCP, KUBERAY, CLUSTERS / "Dockerfile"):
        tags = set(re.findall(r"\d+\.\d+\.\d+-py\d+", path.read_text()))
        assert tags == {f"{version}-{python}"}, path.name
    assert f'"ray[default]=={version}"' in (ROOT / "pyproject.toml").read_text()


def test_job_and_cluster_of_the_manifest_are_one() -> None:
    cluster_document, job = yaml.safe_load_all(KUBERAY.read_text())
    assert (cluster_document["kind"], job["kind"]) == ("RayCluster", "RayJob")
    assert cluster_document["spec"] == job["spec"]["rayClusterSpec"]
    assert "rayconf.doctor" in job["spec"]["entrypoint"]
    assert [group["minReplicas"] for group in cluster_document["spec"]["workerGroupSpecs"]] == [0, 0]


def test_local_cluster_starts_all_its_workers() -> None:
    """The launcher puts ``RAY_enable_autoscaler_v2=1`` before the command, which must undo it."""
    from ray.autoscaler._private.util import prepare_config, with_envs

    config = prepare_config(load(LOCAL)[0])
    assert types(config, "local.cluster.node")["min_workers"] == len(config["provider"]["worker_ips"])
    (_, command) = with_envs(config["head_start_ray_commands"], {"RAY_enable_autoscaler_v2": "1"})
    script = command.replace("ray start", "echo $RAY_enable_autoscaler_v2 #")
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout == "0\n"
