"""`docs/deploy/serve`: Kubernetes knows every field, the parts fit each other, and `adapt` takes what they give it."""

from __future__ import annotations

import copy
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from adapterhub.inference.serving.process import STOP_S
from adapterhub.library.aliasing import point
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from tests.deploy.kubernetes import CONTAINERFILES, RECORD, ROOT, SERVE, manifests, of_page, place_of
from tests.support.command_line import Adapt
from tests.support.oci_registry import serving
from tests.support.standin_running import running
from tests.support.standin_vllm import make_standin

MANIFESTS = manifests()
PAGE_POD, SYNCED_POD = of_page("Pod")
(SYNCED_FILES,) = of_page("ConfigMap")
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
@pytest.mark.parametrize(
    "manifest",
    [*MANIFESTS, PAGE_POD, SYNCED_POD, SYNCED_FILES],
    ids=lambda one: f"{one['kind']}-{one['metadata']['name']}",
)
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
def program(tmp_path: Path) -> dict[str, str]:
    """The variables by which a shell finds `adapt`."""
    path = tmp_path / "bin" / "adapt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adapterhub.cli "$@"\n')
    path.chmod(0o755)
    return {"PYTHONPATH": str(ROOT), "PATH": f"{path.parent}:/usr/bin:/bin"}


def test_the_library_is_prepared_again_and_again_and_the_server_takes_its_arguments(
    tmp_path: Path, base: BaseRecord, add: Callable[..., Added]
) -> None:
    add("legal-qa", into=(adapt := Adapt(tmp_path, "served")).library)
    mounted = tmp_path / "files"
    mounted.mkdir()
    for name, text in FILES.items():
        (mounted / name).write_text(text)
    variables = CONFIG | program(tmp_path)
    variables |= {"ADAPTERHUB_HOME": str(adapt.library.root), "BASE_FOLDER": str(base.path)}
    script = ["sh", str(mounted / Path(POD["initContainers"][0]["command"][-1]).name)]

    for _ in range(2):
        subprocess.run(script, env=variables, check=True, timeout=60)
    # the namespace belongs to the registry, which is not here
    told = [word.removeprefix("acme/") for word in SERVER["args"]]
    folder = next(one["mountPath"] for one in SERVER["volumeMounts"] if one["name"] == "config")
    arguments = [word.replace("$(BASE)", CONFIG["BASE"]).replace(folder, str(mounted)) for word in told]
    shown = adapt.json("serve", *arguments, "--dry-run", "--python", make_standin(tmp_path / "vllm"))

    assert [one["name"] for one in adapt.json("remote", "list")][:1] == [CONFIG["ADAPTERHUB_REMOTE"]]
    assert (shown["model"], shown["max_rank"], shown["slots"]) == (CONFIG["BASE"], 32, 8)


def test_the_pod_of_the_page_checks_the_folder_that_it_mounts(
    tmp_path: Path, base: BaseRecord, online: None, add
) -> None:
    add("legal-qa", rank=4)
    author = Adapt(tmp_path)
    with serving() as registry:
        author.ok("push", "legal-qa", "--to", f"{registry.address}/acme/legal-qa")
        index = registry.manifest("acme/legal-qa", "1.0.0-mount")
        image = registry.manifest("acme/legal-qa", index["manifests"][0]["digest"])
        with tarfile.open(fileobj=io.BytesIO(registry.blobs["acme/legal-qa", image["layers"][0]["digest"]])) as archive:
            archive.extractall(tmp_path / "mounted", filter="data")
    check, server = PAGE_POD["spec"]["initContainers"][0], PAGE_POD["spec"]["containers"][0]
    paths = {one["name"]: one["mountPath"] for one in check["volumeMounts"]}
    (volume,) = (one for one in PAGE_POD["spec"]["volumes"] if "image" in one)
    places = {paths["models"]: str(base.path.parent), paths[volume["name"]]: str(tmp_path / "mounted")}
    shell, option, words = check["command"]
    for there, here in places.items():
        words = words.replace(there, here)
    words = words.replace(f"{base.path.parent}/base-7b", str(base.path))

    def checked(pod: str) -> int:
        variables = program(tmp_path) | {"ADAPTERHUB_HOME": str(tmp_path / pod)}
        return subprocess.run([shell, option, words], env=variables, check=False, timeout=60).returncode

    assert volume["image"]["reference"].endswith("-mount")
    assert server["args"][-1].endswith(f"={paths[volume['name']]}")
    assert checked("one") == 0
    weights = tmp_path / "mounted" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert checked("two") == 12


def test_the_sidecar_of_the_page_reads_its_file_and_shares_what_the_engine_reads(
    tmp_path: Path, library: Library, base: BaseRecord, add: Callable[..., Added]
) -> None:
    added = [add("legal-qa", namespace="acme"), add("summarize", version="1.2.0", seed=1, namespace="acme")]
    point(library, "prod", [(added[0].build, 1.0)])
    spec = SYNCED_POD["spec"]
    prepare, sync = spec["initContainers"]
    (engine,) = spec["containers"]
    (volume,) = (one for one in spec["volumes"] if "configMap" in one)
    folder = next(one["mountPath"] for one in sync["volumeMounts"] if one["name"] == volume["name"])
    ((name, text),) = SYNCED_FILES["data"].items()
    with running("vllm", str(base.path)) as standin:
        (tmp_path / name).write_text(text.replace("port: 8000", f"port: {standin.port}"))
        program, *words = (word.replace(folder, str(tmp_path)) for word in sync["command"])
        told = Adapt(tmp_path).json(*words, "--dry-run", "--offline")

    assert (program, told["problems"]) == ("adapt", [])
    assert [one["model"] for one in told["adapters"]] == ["legal", "summarize"]
    assert volume["configMap"]["name"] == SYNCED_FILES["metadata"]["name"]
    assert f"port: {engine['ports'][0]['containerPort']}" in text
    assert prepare["volumeMounts"] == sync["volumeMounts"] == engine["volumeMounts"]  # one library, at one path
    assert {one["name"] for one in sync["volumeMounts"]} == {one["name"] for one in spec["volumes"]}
    assert sync["restartPolicy"] == "Always"
    assert {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"} in engine["env"]


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a Containerfile, as `(instruction, rest)`; a line that ends in a backslash goes on."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in text.replace("\\\n", "").splitlines():
        word, _, rest = line.partition(" ")
        if word:
            yield word, rest.strip()


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: path.relative_to(ROOT).parts[0])
def test_an_image_takes_the_wheel_and_nothing_else(path: Path) -> None:
    found = list(instructions(path))

    assert [rest.split()[0] for word, rest in found if word == "COPY" and "--from" not in rest] == ["adapterhub-*.whl"]
    assert found[0][0] == "ARG"  # another base can take the place of its own
    assert {rest.split()[0] for word, rest in found if word == "FROM"} == {f"${{{found[0][1].partition('=')[0]}}}"}
    assert "ADD" not in dict(found)


def test_the_containerfile_starts_the_server_for_another_account() -> None:
    last = dict(instructions(SERVE / "Containerfile"))

    assert int(last["USER"]) == POD["securityContext"]["runAsUser"]
    assert int(last["EXPOSE"]) == SERVER["ports"][0]["containerPort"]
    assert json.loads(last["ENTRYPOINT"])[:2] == ["adapt", "serve"]
    assert json.loads(last["ENTRYPOINT"])[-1] == last["EXPOSE"]
    home = dict(pair.split("=") for pair in shlex.split(last["ENV"]))["ADAPTERHUB_HOME"]
    library = next(one for one in SERVER["volumeMounts"] if one["name"] == "library")
    assert Path(library["mountPath"]) in Path(home).parents
