"""`docs/deploy/serve`: Kubernetes knows every field, the parts fit each other, and `adapt` takes what they give it."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from adapterhub.inference.serving.process import STOP_S
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from tests.deploy.kubernetes import RECORD, ROOT, SERVE, manifests, place_of
from tests.support.command_line import Adapt
from tests.support.standin_vllm import make_standin

MANIFESTS = manifests()
FIELDS = json.loads(RECORD.read_text(encoding="utf-8"))


def only(kind: str) -> Any:
    return next(one for one in MANIFESTS if one["kind"] == kind)


STATEFUL = only("StatefulSet")
POD = STATEFUL["spec"]["template"]["spec"]
SERVER = POD["containers"][0]
CONFIG, FILES = (one["data"] for one in MANIFESTS if one["kind"] == "ConfigMap")


def faults(manifest: Any) -> list[str]:
    """What Kubernetes would refuse, as `place: reason`."""
    schema = {"$ref": f"#/$defs/api.{place_of(manifest)}", **FIELDS}
    found = jsonschema_rs.validator_for(schema).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in found]


def option(name: str) -> float:
    """A number among the arguments of the server."""
    return float(next(word.partition("=")[2] for word in SERVER["args"] if word.startswith(f"--{name}=")))


# ---------------------------------------------------------------- the manifests
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_knows_every_field(manifest: Any) -> None:
    assert faults(manifest) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec/template/spec/terminationGracePeriodSecond", 9, "terminationGracePeriodSecond"),
        ("spec/replicas", "two", "spec/replicas"),
        ("spec/template/spec/containers/0/livenessProbe/httpGet/port", None, "port"),
        ("spec/selector", None, "selector"),
    ],
)
def test_a_wrong_name_a_wrong_type_and_a_missing_field_are_found(path: str, value: Any, said: str) -> None:
    broken = copy.deepcopy(STATEFUL)
    *parents, last = path.split("/")
    place = broken
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    if value is None:
        del place[last]

    assert said in " ".join(faults(broken))


def test_a_pod_has_time_to_drain() -> None:
    before = float(SERVER["lifecycle"]["preStop"]["exec"]["command"][-1])

    assert POD["terminationGracePeriodSeconds"] >= before + option("drain") + STOP_S + 5  # the last to end the group
    probe = SERVER["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= option("start-timeout")


def test_every_reference_finds_what_it_names() -> None:
    label = {"app.kubernetes.io/name": "adapterhub-serve"}
    volumes = {one["name"] for one in POD["volumes"]}
    volumes |= {one["metadata"]["name"] for one in STATEFUL["spec"]["volumeClaimTemplates"]}
    containers = [*POD["initContainers"], *POD["containers"]]
    ports = {one["name"] for one in SERVER["ports"]}
    asked = [
        one["valueFrom"]["configMapKeyRef"]["key"] for one in SERVER["env"] if "configMapKeyRef" in one["valueFrom"]
    ]
    services = [one for one in MANIFESTS if one["kind"] == "Service"]
    selectors = [one["spec"]["selector"] for one in services]
    selectors += [
        STATEFUL["spec"]["selector"]["matchLabels"],
        only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ]
    selectors.append(only("NetworkPolicy")["spec"]["podSelector"]["matchLabels"])

    assert {mount["name"] for one in containers for mount in one["volumeMounts"]} == volumes
    assert all(selector.items() <= label.items() for selector in selectors)
    assert STATEFUL["spec"]["template"]["metadata"]["labels"] == label
    assert STATEFUL["spec"]["serviceName"] in {one["metadata"]["name"] for one in services}
    assert {port["targetPort"] for one in services for port in one["spec"]["ports"]} == ports
    assert {SERVER[probe]["httpGet"]["port"] for probe in ("readinessProbe", "startupProbe", "livenessProbe")} == ports
    assert set(asked) <= set(CONFIG)
    assert set(re.findall(r"\$\((\w+)\)", " ".join(SERVER["args"]))) <= {one["name"] for one in SERVER["env"]}
    assert only("PodDisruptionBudget")["spec"]["maxUnavailable"] < STATEFUL["spec"]["replicas"]


def test_no_container_may_more_than_it_needs() -> None:
    locked = [one["securityContext"] for one in (*POD["initContainers"], *POD["containers"])]
    secrets = [one["name"] for one in SERVER["env"] if "secretKeyRef" in one["valueFrom"]]

    assert all(one["readOnlyRootFilesystem"] and not one["allowPrivilegeEscalation"] for one in locked)
    assert all(one["capabilities"] == {"drop": ["ALL"]} for one in locked)
    assert (POD["securityContext"]["runAsNonRoot"], POD["automountServiceAccountToken"]) == (True, False)
    assert {"ADAPTERHUB_SERVE_ADMIN_KEY", "ADAPTERHUB_TOKEN"} == set(secrets)
    assert only("NetworkPolicy")["spec"]["policyTypes"] == ["Ingress", "Egress"]


# ---------------------------------------------------------------- what runs in them
def test_the_library_is_prepared_again_and_again_and_the_server_takes_its_arguments(
    tmp_path: Path, base: BaseRecord, add: Callable[..., Added]
) -> None:
    add("legal-qa", into=(adapt := Adapt(tmp_path, "served")).library)
    mounted = tmp_path / "files"
    mounted.mkdir()
    for name, text in FILES.items():
        (mounted / name).write_text(text)
    program = tmp_path / "bin" / "adapt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adapterhub.cli "$@"\n')
    program.chmod(0o755)
    variables = CONFIG | {
        "ADAPTERHUB_HOME": str(adapt.library.root),
        "BASE_FOLDER": str(base.path),
        "PYTHONPATH": str(ROOT),
    }
    script = ["sh", str(mounted / Path(POD["initContainers"][0]["command"][-1]).name)]

    for _ in range(2):
        subprocess.run(script, env=variables | {"PATH": f"{program.parent}:/usr/bin:/bin"}, check=True, timeout=60)
    # the namespace belongs to the registry, which is not here
    told = [word.removeprefix("acme/") for word in SERVER["args"]]
    folder = next(one["mountPath"] for one in SERVER["volumeMounts"] if one["name"] == "config")
    arguments = [word.replace("$(BASE)", CONFIG["BASE"]).replace(folder, str(mounted)) for word in told]
    shown = adapt.json("serve", *arguments, "--dry-run", "--python", make_standin(tmp_path / "vllm"))

    assert [one["name"] for one in adapt.json("remote", "list")][:1] == [CONFIG["ADAPTERHUB_REMOTE"]]
    assert (shown["model"], shown["max_rank"], shown["slots"]) == (CONFIG["BASE"], 32, 8)


def instructions() -> Iterator[tuple[str, str]]:
    """The lines of the Containerfile, as `(instruction, rest)`; a line that ends in a backslash goes on."""
    text = re.sub(r"^#.*\n", "", (SERVE / "Containerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in text.replace("\\\n", "").splitlines():
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


def test_the_containerfile_copies_what_is_there_and_starts_the_server_for_another_account() -> None:
    found = list(instructions())
    copied = [rest.split()[:-1] for word, rest in found if word == "COPY"]
    last = dict(found)

    assert {word for word, _ in found} <= {
        "ARG",
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "ENV",
        "EXPOSE",
        "ENTRYPOINT",
    }
    assert all((ROOT / name).exists() for names in copied for name in names)
    assert int(last["USER"]) == POD["securityContext"]["runAsUser"]
    assert int(last["EXPOSE"]) == SERVER["ports"][0]["containerPort"]
    assert json.loads(last["ENTRYPOINT"])[:2] == ["adapt", "serve"]
    assert json.loads(last["ENTRYPOINT"])[-1] == last["EXPOSE"]
    home = dict(pair.split("=") for pair in shlex.split(last["ENV"]))["ADAPTERHUB_HOME"]
    library = next(one for one in SERVER["volumeMounts"] if one["name"] == "library")
    assert Path(library["mountPath"]) in Path(home).parents
