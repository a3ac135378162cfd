"""`registry/deploy/kubernetes`: Kubernetes knows every field, kustomize renders it, and the image takes what it gives."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import click
import pytest
import yaml
from adapterhub_registry.api import adapt_api
from adapterhub_registry.operations.commands import registry
from adapterhub_registry.settings import ServerLimits, parse_networks

from tests.deploy.kubernetes import REGISTRY, manifests
from tests.deploy.test_serve import faults
from tests.registry.test_deploy import VARIABLES
from tests.support.programs import needs

MANIFESTS = manifests(REGISTRY)
DEPLOYMENT = next(one for one in MANIFESTS if one["kind"] == "Deployment")
CRON_JOBS = [one for one in MANIFESTS if one["kind"] == "CronJob"]
CONFIG = next(one for one in MANIFESTS if one["kind"] == "ConfigMap")["data"]
PODS = [DEPLOYMENT["spec"]["template"], *(one["spec"]["jobTemplate"]["spec"]["template"] for one in CRON_JOBS)]
CONTAINERS = [pod["spec"]["containers"][0] for pod in PODS]
LATER = {"ADAPTERHUB_REGISTRY_FILES"}
"""Of commands beside `serve`."""


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_knows_every_field(manifest: Any) -> None:
    assert faults(manifest) == []


def test_kustomize_renders_every_manifest() -> None:
    done = subprocess.run([needs("kustomize"), "build", REGISTRY], capture_output=True, text=True, check=True)

    rendered = list(yaml.safe_load_all(done.stdout))
    assert sorted((one["kind"], one["metadata"]["name"]) for one in rendered) == sorted(
        (one["kind"], one["metadata"]["name"]) for one in MANIFESTS
    )
    assert {one["metadata"]["namespace"] for one in rendered} == {"adapterhub"}
    assert [fault for one in rendered for fault in faults(one)] == []
    assert set(re.findall(r"image: (\S+)", done.stdout)) == {"registry.example.org/adapterhub-registry:latest"}


def test_a_new_server_serves_before_an_old_one_ends_and_a_migration_is_not_killed() -> None:
    spec, server = DEPLOYMENT["spec"], CONTAINERS[0]
    paths = {server[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}

    assert spec["replicas"] > 1
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert server["readinessProbe"]["httpGet"]["path"] == "/healthz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert paths <= {route.path for route in adapt_api.operations_router.routes}
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] >= 3600
    assert server["readinessProbe"]["timeoutSeconds"] > adapt_api.HEALTH_S


def test_every_variable_exists_and_what_is_secret_comes_by_reference() -> None:
    named = {entry["name"]: entry for container in CONTAINERS for entry in container["env"]} | CONFIG

    assert {name for name in named if name.startswith("ADAPTERHUB_")} <= VARIABLES | LATER
    option = next(one for one in registry.commands["backup"].params if one.name == "files")
    assert {str(option.envvar)} == LATER
    ServerLimits().with_values(tuple(CONFIG["ADAPTERHUB_REGISTRY_LIMITS"].split()))
    parse_networks((CONFIG["ADAPTERHUB_REGISTRY_TRUSTED_PROXIES"],))
    secret = [entry for container in CONTAINERS for entry in container["env"] if entry["name"].startswith("AWS_")]
    assert all(entry["valueFrom"]["secretKeyRef"]["name"] == "adapterhub-registry" for entry in secret)
    assert "Secret" not in {one["kind"] for one in MANIFESTS}
    keys = {entry["valueFrom"]["secretKeyRef"]["key"] for c in CONTAINERS for entry in c["env"] if "valueFrom" in entry}
    asked = re.findall(r"--from-(?:literal|file)=([\w-]+)=", (REGISTRY / "kustomization.yaml").read_text())
    assert keys | {"secret"} == set(asked)


@pytest.mark.parametrize("job", CRON_JOBS, ids=lambda one: one["metadata"]["name"])
def test_a_job_runs_a_command_that_exists(job: Any) -> None:
    program, group, name, *words = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    command = registry.commands[name]

    assert (program, group, job["spec"]["concurrencyPolicy"]) == ("/venv/bin/adapt", "registry", "Forbid")
    with click.Context(command) as context:
        command.parse_args(context, list(words))  # refuses an option or a word too many


@pytest.mark.parametrize("pod", PODS, ids=lambda one: one["metadata"]["labels"]["app.kubernetes.io/component"])
def test_a_pod_writes_only_to_its_volumes_and_is_no_root(pod: Any) -> None:
    spec, (container,) = pod["spec"], pod["spec"]["containers"]

    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 10001  # of the image
    assert not spec["automountServiceAccountToken"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}
    assert {"/var/lib/registry", "/tmp"} <= {one["mountPath"] for one in container["volumeMounts"]}
    assert "memory" in container["resources"]["limits"]


def test_the_service_and_the_disruption_budget_choose_the_servers_alone() -> None:
    labels = [pod["metadata"]["labels"] for pod in PODS]
    chosen = [one["spec"]["selector"] for one in MANIFESTS if one["kind"] in {"Service", "PodDisruptionBudget"}]

    for selector in chosen:
        wanted = selector.get("matchLabels", selector)
        assert [wanted.items() <= one.items() for one in labels] == [True, *(False for _ in CRON_JOBS)]
