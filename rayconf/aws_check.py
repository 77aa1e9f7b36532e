"""What AWS would refuse in a file for ``ray up``, known without an account."""

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rayconf.cluster_check import Problem


def check_aws(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Faults in what only AWS reads: zones, opened ports, and the fields of each machine, by boto3's model of EC2."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    provider = config["provider"]
    for zone in str(provider.get("availability_zone", "")).split(","):
        if zone and not zone.strip().startswith(provider.get("region", "")):
            yield Problem(
                "provider.availability_zone", f"{zone.strip()} is not in {provider['region']}; name its own zones"
            )
    for rule in (provider.get("security_group") or {}).get("IpPermissions", ()):
        for network in (*rule.get("IpRanges", ()), *rule.get("Ipv6Ranges", ())):
            cidr = network.get("CidrIp") or network.get("CidrIpv6")
            if ipaddress.ip_network(cidr, strict=False).prefixlen == 0:
                yield Problem(
                    "provider.security_group.IpPermissions",
                    f"{cidr} opens port {rule.get('FromPort', 'all')} to the world; name your own network",
                )
    # Ray adds the counts, and picks one of SubnetIds.
    model = get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    known = model.shape_for("InstanceType").enum
    for name, node in config["available_node_types"].items():
        at = f"available_node_types.{name}.node_config"
        fields = {key: value for key, value in node["node_config"].items() if key != "SubnetIds"}
        for line in (
            ParamValidator().validate({**fields, "MinCount": 1, "MaxCount": 1}, shape).generate_report().splitlines()
        ):
            yield Problem(at, _corrected(line))
        kind = fields.get("InstanceType")
        if kind not in known:
            near = difflib.get_close_matches(str(kind), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "name one that EC2 has"
            yield Problem(f"{at}.InstanceType", f"{kind} is no instance type; {hint}")


def _corrected(line: str) -> str:
    """A complaint of botocore about a request, with the field that was probably meant in place of the list of all."""
    found = re.match(r'Unknown parameter in (?P<place>.*?): "(?P<name>.*?)", must be one of: (?P<known>.*)', line)
    if not found:
        return line
    place = "EC2's RunInstances" if found["place"] == "input" else found["place"]
    near = difflib.get_close_matches(found["name"], found["known"].split(", "), n=1)
    return f"{found['name']!r} is no field of {place}; " + (f"did you mean {near[0]}?" if near else "remove it")
