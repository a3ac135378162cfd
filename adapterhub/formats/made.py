"""How a merge was made, as an in-toto statement: SLSA provenance with the parents, the base and the recipe.

The subject is the build's manifest, which already holds parents and recipe; the statement says it in a form that other
programs read, and a signature says who stands for it. A reader takes only what agrees with the manifest.

Sources: in-toto Statement v1, SLSA provenance v1.
"""

from __future__ import annotations

from typing import Any, Final

from adapterhub.core.digests import canonical_json, hex_of, strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.signature import STATEMENT_TYPE
from adapterhub.formats.signed import SIGNATURE_LIMIT_BYTES, SignedObject

PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:adapterhub:merge:1"
BUILDER: Final = "urn:adapterhub"


def made_statement(manifest: Manifest, full_name: str, version: str) -> dict[str, Any]:
    """The statement about a build that has a recipe; `version` is that of adapterhub."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"{full_name} {manifest.version}", "digest": {"sha256": hex_of(manifest.digest)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": _definition(manifest),
            "runDetails": {"builder": {"id": BUILDER, "version": {"adapterhub": version}}},
        },
    }


def _definition(manifest: Manifest) -> dict[str, Any]:
    """What was made from what: each parent with the digest of its manifest and its weight, then the base."""
    materials: list[dict[str, Any]] = [
        {"name": parent.spec, "annotations": {"weight": parent.weight}}
        | ({"digest": {"sha256": hex_of(parent.digest)}} if parent.digest else {})
        for parent in manifest.parents
    ]
    if manifest.base.fingerprint is not None:
        digest = {"sha256": hex_of(manifest.base.fingerprint.weights)}
        materials.append({"name": "base", "digest": digest})
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {"recipe": dict(manifest.recipe)},
        "internalParameters": {},
        "resolvedDependencies": materials,
    }


def check_made(payload: bytes, manifest: Manifest) -> None:
    """Compare the bytes of a statement with the manifest that it is offered for.

    Raises:
        ValueError: it is none, is about another build, or says otherwise than the manifest; the first difference.
    """
    top = SignedObject(strict_json(payload, limit_bytes=SIGNATURE_LIMIT_BYTES), "statement")
    top.expect("_type", STATEMENT_TYPE)
    top.expect("predicateType", PREDICATE_TYPE)
    subjects = top.items("subject")
    about = subjects[0].inner("digest").hexadecimal("sha256") if len(subjects) == 1 else None
    if about != manifest.digest:
        raise ValueError(f"is about {shown(about)}, not about {manifest.digest}")
    definition = top.inner("predicate").inner("buildDefinition")
    definition.expect("buildType", BUILD_TYPE)
    for key, value in _definition(manifest).items():
        if canonical_json(definition.value.get(key)) != canonical_json(value):
            raise ValueError(f"{key}: says otherwise than the manifest")
