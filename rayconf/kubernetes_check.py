"""Manifests for the KubeRay operator (``ray.io/v1``), checked without a cluster.

The check is structural: the names of the fields that a person writes, as KubeRay 1.6 documents them
(docs.ray.io, "KubeRay CRD API reference"), and this project's rules. Pods are left to Kubernetes.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from rayconf.cluster_check import Problem, image_problems, pinned

CLUSTER = (
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "managedBy",
    "networkPolicy",
    "rayVersion",
    "suspend",
    "upgradeStrategy",
    "workerGroupSpecs",
)
GROUP = ("labels", "rayStartParams", "resources", "template")
HEAD = (*GROUP, "enableIngress", "headService", "serviceType")
WORKER = (
    *GROUP,
    "groupName",
    "idleTimeoutSeconds",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "replicas",
    "scaleStrategy",
    "suspend",
)
JOB = (
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "preRunningDeadlineSeconds",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
)


def check_manifest(document: Mapping[str, Any]) -> Iterator[Problem]:
    """The faults of one document of a manifest; documents of other kinds have none."""
    kind, spec = document["kind"], document.get("spec")
    if kind not in ("RayCluster", "RayJob"):
        return
    if document.get("apiVersion") != "ray.io/v1":
        yield Problem(f"{kind}.apiVersion", f"{document.get('apiVersion')!r} must be ray.io/v1")
    if not isinstance(spec, Mapping):
        yield Problem(f"{kind}.spec", "missing")
    elif kind == "RayCluster":
        yield from _cluster(spec, "RayCluster.spec")
    else:
        yield from _unknown(spec, JOB, "RayJob.spec")
        if not spec.get("entrypoint"):
            yield Problem("RayJob.spec.entrypoint", "missing; name the command to run")
        if isinstance(spec.get("rayClusterSpec"), Mapping):
            yield from _cluster(spec["rayClusterSpec"], "RayJob.spec.rayClusterSpec")
            if not spec.get("shutdownAfterJobFinishes"):
                yield Problem("RayJob.spec.shutdownAfterJobFinishes", "the job's cluster outlives it; set it to true")
        elif not spec.get("clusterSelector"):
            yield Problem("RayJob.spec.rayClusterSpec", "missing; describe a cluster or select one by clusterSelector")


def _cluster(spec: Mapping[str, Any], at: str) -> Iterator[Problem]:
    yield from _unknown(spec, CLUSTER, at)
    if spec.get("rayVersion") != pinned("ray"):
        yield Problem(f"{at}.rayVersion", f"{spec.get('rayVersion')} must be this project's Ray, {pinned('ray')}")
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield Problem(f"{at}.authOptions.mode", "no token on the nodes; set it to token")
    head = spec.get("headGroupSpec") or {}
    yield from _unknown(head, HEAD, f"{at}.headGroupSpec")
    if (head.get("rayStartParams") or {}).get("num-cpus") != "0":
        yield Problem(f"{at}.headGroupSpec.rayStartParams.num-cpus", 'the head must do no work; set it to "0"')
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield Problem(
            f"{at}.headGroupSpec.serviceType", "the dashboard is open to others; make it ClusterIP, no ingress"
        )
    yield from _pod(head, f"{at}.headGroupSpec")
    for group in spec.get("workerGroupSpecs") or ():
        where = f"{at}.workerGroupSpecs.{group.get('groupName')}"
        yield from _unknown(group, WORKER, where)
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not low <= group.get("replicas", low) <= high:
            yield Problem(f"{where}.replicas", f"must lie between minReplicas {low} and maxReplicas {high}")
        yield from _pod(group, where)


def _pod(group: Mapping[str, Any], at: str) -> Iterator[Problem]:
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or ()
    if not containers:
        yield Problem(f"{at}.template.spec.containers", "missing; name Ray's container")
    for container in containers[:1]:  # KubeRay runs Ray in the first
        where = f"{at}.template.spec.containers.{container.get('name')}"
        image, resources = str(container.get("image")), container.get("resources") or {}
        yield from image_problems(f"{where}.image", image)
        limits = resources.get("limits") or {}
        if not limits or resources.get("requests") != limits:
            yield Problem(f"{where}.resources", "requests must equal limits; a member would be throttled or put out")
        if limits.get("nvidia.com/gpu") and not image.endswith("-gpu"):
            yield Problem(f"{where}.image", f"{image} sees no GPU; name an image that ends in -gpu")


def _unknown(mapping: Mapping[str, Any], known: tuple[str, ...], at: str) -> Iterator[Problem]:
    for name in mapping:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            yield Problem(
                f"{at}.{name}", f"no field of KubeRay; did you mean {near[0]}?" if near else "no field of KubeRay"
            )
