"""The bill of materials of adapters: CycloneDX 1.6, with the model cards of an ML-BOM.

Each adapter, each adapter that it was made from, its base and the data sets that its card names are components, with
their licences and digests; dependencies show what was made from what. What is not known is left out, never guessed.

Source: CycloneDX 1.6 (ECMA-424), its JSON schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from adapterhub.core.digests import Digest, canonical_json, hex_of
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.cards.card import split_card
from adapterhub.formats.licenses import Expression
from adapterhub.formats.manifest import WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.library.audit import Surroundings, subject_of_build
from adapterhub.library.audit.licenses import MAX_PARTS, base_part, licence_in
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed

VERSION: Final = "1.6"
_MODEL: Final = "machine-learning-model"
_ROOT: Final = "adapters"
_MOST_DATASETS: Final = 100
_NAMES: Final = uuid.UUID("6f1d0f0e-6f0a-5c59-9d6c-0f3a1f4d8a11")
"""The space of serial numbers: the same content has the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A build that is known only by a lock, because the library does not have it."""

    full_name: str
    version: str
    digest: Digest
    base: Digest | None


@dataclass(frozen=True)
class _Bill:
    around: Surroundings
    components: dict[str, dict[str, Any]] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def add(self, component: dict[str, Any], uses: Iterable[str] = ()) -> str:
        ref: str = component["bom-ref"]
        self.components.setdefault(ref, component)
        known = self.uses.setdefault(ref, [])
        known += [one for one in dict.fromkeys(uses) if one not in known and one != ref]
        return ref

    def build(self, build: Installed) -> str:
        manifest = build.manifest
        self.seen.add(manifest.digest)
        base = self._base(build)
        component = _adapter(manifest, build.full_name, build.base)
        origin = self.around.library.origins.under(manifest.digest, build.full_name)
        if origin is not None and origin.is_server:
            component["externalReferences"] = [{"type": "distribution", "url": origin.place}]
        return self._complete(component, manifest, base)

    def _complete(self, component: dict[str, Any], manifest: Manifest, base: str) -> str:
        """Add an adapter with its ancestors; those beyond `MAX_PARTS` are left out, and a note reports that."""
        datasets = [self.add(_dataset(name)) for name in _datasets(manifest.card)]
        if datasets:
            parameters = component["modelCard"].setdefault("modelParameters", {})
            parameters["datasets"] = [{"ref": ref} for ref in datasets]
        parents = []
        for parent in manifest.parents:
            found = self.around.manifest_of(parent.digest) if parent.digest else None
            ref = parent.digest or parent.spec
            if parent.digest and ref in self.seen:
                parents.append(ref)
                continue
            if len(self.seen) >= MAX_PARTS:
                component["pedigree"]["notes"] += "; further ancestors are left out"
                break
            self.seen.add(ref)
            if found is not None:
                parents.append(self._complete(_adapter(found, parent.spec.partition("@")[0], found.base), found, base))
            else:
                parents.append(self.add(_unknown_parent(parent.spec, parent.digest)))
        return self.add(component, [base, *parents, *datasets])

    def _base(self, build: Installed) -> str:
        part = base_part(subject_of_build(build), self.around)
        return self.add(_base(build.base, part.stated, self.around.library.base_label(build.base)))

    def named(self, entry: Named) -> str:
        uses = [self.add(_base(BaseRef(), None, entry.base[7:19], entry.base))] if entry.base else []
        namespace, _, name = entry.full_name.rpartition("/")
        component = _component(_MODEL, entry.digest, name, version=entry.version, group=namespace)
        component["properties"] = _properties({"digest": entry.digest, "installed": "false"})
        return self.add(component, uses)


def bill_of(
    library: Library, builds: Sequence[Installed | Named], *, title: str, made_by: str, time: str
) -> dict[str, Any]:
    """Return the bill of `builds`, as the JSON value; a single build is its subject, otherwise `title` is.

    `made_by` is the version of adapterhub, `time` is RFC 3339.
    """
    bill = _Bill(Surroundings(library=library))
    refs = [bill.named(one) if isinstance(one, Named) else bill.build(one) for one in builds]
    if len(refs) == 1:
        subject = bill.components.pop(refs[0])
    else:
        subject = _component("application", _ROOT, title)
        bill.uses[_ROOT] = list(dict.fromkeys(refs))
    content = {
        "components": list(bill.components.values()),
        "dependencies": [
            {"ref": ref} | ({"dependsOn": sorted(uses)} if uses else {}) for ref, uses in sorted(bill.uses.items())
        ],
    }
    number = uuid.uuid5(_NAMES, canonical_json([subject, content]).decode())
    tool = {"type": "application", "name": "adapterhub", "version": made_by}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": VERSION,
        "serialNumber": number.urn,
        "version": 1,
        "metadata": {"timestamp": time, "tools": {"components": [tool]}, "component": subject},
        **content,
    }


# ---------------------------------------------------------------- components
def _component(kind: str, ref: str, name: str, *, version: str = "", group: str = "") -> dict[str, Any]:
    value = {"type": kind, "bom-ref": ref, "group": group, "name": name, "version": version}
    return {key: text for key, text in value.items() if text}


def _adapter(manifest: Manifest, full_name: str, base: BaseRef) -> dict[str, Any]:
    namespace = full_name.rpartition("/")[0]
    value = _component(_MODEL, manifest.digest, manifest.name, version=manifest.version, group=namespace)
    value |= {"description": manifest.description} if manifest.description else {}
    weights = manifest.file(WEIGHTS_FILE)
    value |= {"hashes": _hashes(weights.sha256)} if weights else {}
    value |= _licences(licence_in(manifest))
    if manifest.parents:
        ancestors = [_component(_MODEL, "", p.spec) for p in manifest.parents]
        weighted = ", ".join(f"{p.spec} at {p.weight:g}" for p in manifest.parents)
        method = manifest.recipe.get("method")
        by = f" by {method}" if isinstance(method, str) else ""
        value["pedigree"] = {"ancestors": ancestors, "notes": f"{manifest.relation}{by}: {weighted}"}
    value["components"] = [
        {"type": "file", "name": entry.path, "hashes": _hashes(entry.sha256)} for entry in manifest.files
    ]
    parameters = {"task": manifest.task, "architectureFamily": base.hints.model_type}
    value["modelCard"] = {"modelParameters": {key: text for key, text in parameters.items() if text}}
    measured = [{"type": str(key), "value": f"{number:g}"} for key, number in _numbers(manifest.metrics)]
    value["modelCard"] |= {"quantitativeAnalysis": {"performanceMetrics": measured}} if measured else {}
    value["properties"] = _properties(
        {
            "digest": manifest.digest,
            "method": ",".join(manifest.method),
            "rank": str(manifest.rank or ""),
            "parameters": str(manifest.parameters or ""),
            "dtype": manifest.dtype,
        }
    )
    return value


def _base(base: BaseRef, stated: str | None, label: str, weights: Digest | None = None) -> dict[str, Any]:
    fingerprint: BaseFingerprint | None = base.fingerprint
    declared = weights or (fingerprint.weights if fingerprint else "")
    hub_id = base.hints.hub_id or ""
    group, _, name = hub_id.rpartition("/")
    value = _component(_MODEL, f"base:{declared or hub_id or 'unknown'}", name or label or "unknown", group=group)
    value |= _licences(stated)
    if hub_id:
        value["externalReferences"] = [{"type": "distribution", "url": f"https://huggingface.co/{hub_id}"}]
    if base.hints.model_type:
        value["modelCard"] = {"modelParameters": {"architectureFamily": base.hints.model_type}}
    return value | {"properties": _properties({"base.weights": declared, "role": "base"})}


def _unknown_parent(spec: str, digest: Digest | None) -> dict[str, Any]:
    value = _component(_MODEL, digest or f"parent:{spec}", spec)
    return value | {"properties": _properties({"digest": digest or "", "installed": "false"})}


def _dataset(name: str) -> dict[str, Any]:
    return _component("data", f"dataset:{name}", name) | {"data": [{"type": "dataset", "name": name}]}


# ---------------------------------------------------------------- parts of components
def _datasets(card: str) -> list[str]:
    """Return the data sets that a card names."""
    named = split_card(card)[0].get("datasets")
    found = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return list(dict.fromkeys(one for one in found if isinstance(one, str) and one))[:_MOST_DATASETS]


def _licences(stated: str | None) -> dict[str, Any]:
    if not stated:
        return {}
    spdx = Expression.parse(stated)
    said = {"expression": spdx.text} if spdx else {"license": {"name": stated}}
    return {"licenses": [said | {"acknowledgement": "declared"} if spdx else said]}


def _hashes(digest: Digest) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": hex_of(digest)}]


def _properties(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": f"adapterhub:{key}", "value": text} for key, text in values.items() if text]


def _numbers(metrics: Any, path: str = "") -> Iterator[tuple[str, float]]:
    for key, value in metrics.items():
        if type(value) in (int, float):
            yield f"{path}{key}", value
        elif isinstance(value, dict):
            yield from _numbers(value, f"{path}{key}.")
