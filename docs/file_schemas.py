"""JSON Schemas of the files that people write or read: for editors, and for programs in other languages.

They say which keys there are and of which type; what a name, a range or a licence may be, only `adapt` knows. The keys
are compared with those that the readers know, so a schema cannot miss one.
"""
# ruff: noqa: SLF001 - the keys that the readers know are theirs

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, Final

from adapterhub.formats.base.fingerprint import BaseHints
from adapterhub.formats.contract.standards import TESTS_POLICIES
from adapterhub.formats.manifest import MEDIA_TYPES, Manifest
from adapterhub.projects import file as project_file
from adapterhub.projects.lock import lockfile as lock_file
from adapterhub.trust.signing.policy import SIGNATURE_POLICIES
from adapterhub.weights import catalogue
from adapterhub.weights.recipes import toml as recipe_file
from adapterhub.weights.recipes.toml import DTYPES

Schema = dict[str, Any]
TEXT: Final[Schema] = {"type": "string"}
TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
DIGEST: Final[Schema] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
RANK: Final[Schema] = {"type": "integer", "minimum": 1}
FREE: Final[Schema] = {"type": "object"}


def table(known: Iterable[str], required: Iterable[str] = (), **properties: Schema) -> Schema:
    """Return an object with these properties and no other; a `_` in a name stands for the `-` that the reader knows.

    Raises:
        ValueError: the reader knows other keys.
    """
    known = set(known)
    named = {name if name in known else name.replace("_", "-"): kind for name, kind in properties.items()}
    if named.keys() != known:
        raise ValueError(f"docs/file_schemas.py has other keys than the reader: {sorted(named.keys() ^ known)}")
    return {"type": "object", "additionalProperties": False, "required": sorted(required), "properties": named}


def mapped(kind: Schema) -> Schema:
    """Return an object whose keys are names."""
    return {"type": "object", "additionalProperties": kind}


def listed(kind: Schema) -> Schema:
    """Return a list of these."""
    return {"type": "array", "items": kind}


def one_of(words: Iterable[str]) -> Schema:
    """One of these words."""
    return {"enum": list(words)}


STEP: Final[Schema] = {
    "method": one_of(catalogue.names()),
    "dtype": one_of(DTYPES),
    "seed": {"type": "integer", "minimum": 0},
    "options": mapped({"type": ["string", "integer", "number"]}),
    "inputs": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/input"}},
}
ABOUT: Final[Schema] = {"version": TEXT, "task": TEXT, "description": TEXT, "license": TEXT}


def input_of(by: str, **digests: Schema) -> Schema:
    """Return an input of a merge: an adapter, or a merge that runs first."""
    merge = table(recipe_file._STEP_KEYS, ["inputs"], **STEP)
    known = recipe_file._INPUT_KEYS[by]
    properties = {by: TEXT, "weight": {"type": "number"}, "merge": merge, **digests}
    return table(known, ["weight"], **properties) | {"oneOf": [{"required": [by]}, {"required": ["merge"]}]}


def project() -> Schema:
    """`adapters.toml`."""
    ranks = {"rank": {"anyOf": [RANK, TEXT]}}
    adapter = {"anyOf": [TEXT, table(project_file._ADAPTER_KEYS, spec=TEXT, remote=TEXT, **ranks)]}
    lists = dict.fromkeys(project_file._LISTS, TEXTS)
    remote = {"kind": TEXT, "url": TEXT, "path": TEXT, "namespaces": TEXTS, "signatures": one_of(SIGNATURE_POLICIES)}
    policy = table(
        project_file._POLICY_KEYS,
        **lists,
        max_rank=RANK,
        exclude_newer=TEXT,
        tests=one_of(TESTS_POLICIES),
        tests_by=TEXTS,
        tests_max_age=TEXT,
        tests_bounds=mapped({"type": "number"}),
        tests_never=TEXT,
    )
    return table(
        project_file._TABLES,
        project=table(["base"], base=TEXT),
        remotes=mapped(table(project_file._REMOTE_KEYS, **remote) | {"additionalProperties": TEXT}),
        adapters=mapped(adapter),
        groups=mapped(mapped(adapter)),
        aliases=mapped(mapped({"anyOf": [TEXT, mapped({"anyOf": [{"type": "number"}, FREE]}), {"type": "number"}]})),
        merges=mapped(table(project_file._MERGE_KEYS, ["inputs"], **STEP, **ABOUT, group=TEXT)),
        policy=policy,
    ) | {"$defs": {"input": input_of("adapter")}}


def recipe() -> Schema:
    """Return a merge as a file."""
    own = {"format": {"const": 1}, "name": TEXT, "base": DIGEST, "digest": DIGEST}
    metrics = mapped({"type": ["number", "string"]})
    digests = {"digest": DIGEST, "sha256": DIGEST, "config_sha256": DIGEST}
    known = recipe_file._TOP_KEYS
    top = table(known, ["format", "inputs"], **own, **ABOUT, **STEP, metrics=metrics)
    return top | {"$defs": {"input": input_of("spec", **digests)}}


def lock() -> Schema:
    """`adapters.lock`."""
    size = {"type": "integer", "minimum": 0}
    file = table(lock_file._FILE_KEYS, lock_file._FILE_KEYS, path=TEXT, sha256=DIGEST, size=size)
    build = {"key": TEXT, "digest": DIGEST, "base": DIGEST, "rank": RANK, "group": TEXT, "source": mapped(TEXT)}
    build |= {"files": listed(file) | {"minItems": 1}}
    needed = ["key", "version", "digest", "source", "files"]
    adapter = {"wanted": TEXT, "name": TEXT, "version": TEXT, "contract": DIGEST}
    recipe = table(lock_file._RECIPE, ["inputs"], **STEP)
    merge = table(lock_file._MERGE, needed, **build, **ABOUT, recipe=recipe)
    policy = {key: {"type": ["string", "array", "integer"]} for key in lock_file._POLICY}
    base = {"spec": TEXT, "hub_id": TEXT, "weights": DIGEST, "tensors": DIGEST, "structure": DIGEST}
    return table(
        ["schema", "base", "policy", "adapter", "merge"],
        ["schema"],
        schema={"const": "adapterhub-lock/1"},
        base=table(lock_file._BASE, ["spec"], **base),
        policy=table(lock_file._POLICY, **policy),
        adapter=listed(table(lock_file._ADAPTER, [*needed, "wanted", "name"], **build, **adapter)),
        merge=listed(merge),
    ) | {"$defs": {"input": input_of("spec", digest=DIGEST, sha256=DIGEST, config_sha256=DIGEST)}}


def manifest() -> Schema:
    """`adapterhub.json`; other keys are kept, so that a newer version can add some."""
    size = {"type": "integer", "minimum": 0}
    entry = {"path": one_of(MEDIA_TYPES), "sha256": DIGEST, "size_bytes": size, "media_type": TEXT}
    file = table(entry, ["path", "sha256", "size_bytes"], **entry) | {"additionalProperties": True}
    parent = {"digest": DIGEST, "spec": TEXT, "weight": {"type": "number"}}
    number = {"type": "integer"}
    kinds = {f.name: number if "int" in str(f.type) else TEXT for f in dataclasses.fields(BaseHints)}
    base = {"weights": DIGEST, "tensors": DIGEST, "structure": DIGEST, "samples": {}, "files": {}}
    free = dict.fromkeys(("recipe", "behaviour", "metrics", "annotations"), FREE)
    known = {"schema", *(f.name for f in dataclasses.fields(Manifest))} - {"extra"}
    return table(
        known,
        ["schema", "name", "version", "base", "method", "files"],
        schema={"const": "adapterhub/1"},
        name=TEXT,
        **ABOUT,
        base={"type": "object", "properties": base | {"hints": {"type": "object", "properties": kinds}}},
        method=TEXTS,
        files=listed(file) | {"minItems": 2},
        rank={"type": "integer"},
        alpha={"type": "number"},
        target_modules=TEXTS,
        dtype=TEXT,
        parameters=number,
        parents=listed(table(parent, ["spec", "weight"], **parent) | {"additionalProperties": True}),
        **free,
        card=TEXT,
    ) | {"additionalProperties": True}


FILES: Final = {"project": project, "lock": lock, "recipe": recipe, "manifest": manifest}


def text_of(name: str) -> str:
    """Return the schema of a file as JSON."""
    make = FILES[name]
    title = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": (make.__doc__ or "").partition("\n")[0],
    }
    return json.dumps(title | make(), indent=1) + "\n"
