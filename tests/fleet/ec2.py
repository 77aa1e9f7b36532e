"""What a laptop asks of AWS beside ``ray up``: ``python -m tests.fleet.ec2 deploy | watch | reclaim INSTANCE``."""

import contextlib
import json
import sys
import time
from typing import Any

import boto3
from botocore.exceptions import EndpointConnectionError

from tests.conftest import ROOT

REGION = "us-west-2"
SECONDS = 0.5
"""Between two looks at the instances."""


def deploy() -> None:
    """Make what cluster.yaml needs of an account, as soon as AWS answers."""
    stacks = boto3.client("cloudformation", REGION)
    for _ in range(120):
        with contextlib.suppress(EndpointConnectionError):
            stacks.describe_stacks()
            break
        time.sleep(SECONDS)
    stacks.create_stack(
        StackName="pairpbt",
        TemplateBody=(ROOT / "rayconf" / "clusters" / "aws_account.yaml").read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": "SshFrom", "ParameterValue": "172.31.255.10/32"}],
    )


def watch() -> None:
    """Print the running instances, a JSON list a line, whenever they are others than before."""
    ec2 = boto3.client("ec2", REGION)
    before: list[dict[str, Any]] | None = None
    while True:
        reservations = ec2.describe_instances()["Reservations"]
        instances = [instance for reservation in reservations for instance in reservation["Instances"]]
        running = [_described(ec2, instance) for instance in instances if instance["State"]["Name"] == "running"]
        if running != before:
            print(json.dumps(running), flush=True)
            before = running
        time.sleep(SECONDS)


def _described(ec2: Any, instance: dict[str, Any]) -> dict[str, Any]:
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
    pairs = ec2.describe_key_pairs(KeyNames=[instance["KeyName"]], IncludePublicKey=True)["KeyPairs"]
    return {
        "name": instance["InstanceId"],
        "address": instance["PrivateIpAddress"],
        "public_key": pairs[0]["PublicKey"],
        "kind": tags.get("ray-user-node-type"),
        "spot": instance.get("InstanceLifecycle") == "spot",
    }


def reclaim(name: str) -> None:
    """Take a spot instance back."""
    boto3.client("ec2", REGION).terminate_instances(InstanceIds=[name])


if __name__ == "__main__":
    {"deploy": deploy, "watch": watch, "reclaim": reclaim}[sys.argv[1]](*sys.argv[2:])
