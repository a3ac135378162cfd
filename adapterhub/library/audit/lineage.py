"""The parents of a merged adapter: whether each is recorded by its digest and installed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adapterhub.core.errors import shown
from adapterhub.formats.manifest import MANIFEST_FILE, Parent
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.trust.findings import Finding

_FROM_MODELS: str = "extract"
"""The one method whose sources are models, not adapters."""


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """Parents that nothing identifies, parents that are not here, and a merge that names none."""
    manifest = subject.manifest
    if manifest is None:
        return
    method = manifest.recipe.get("method")
    if manifest.recipe and not manifest.parents and method != _FROM_MODELS:
        message = f"was made by `{shown(str(method))}`, but names no adapter that it was made from"
        hint = "merge it again with `adapt merge`, which records its parents"
        yield Finding("W_LINEAGE", MANIFEST_FILE, message, hint=hint)
    for index, parent in enumerate(manifest.parents):
        where = f"{MANIFEST_FILE}: parents[{index}]"
        if parent.digest is None:
            held = ", only the digests of its files" if _is_held_to_bytes(manifest.recipe, parent) else ""
            message = f"its parent `{shown(parent.spec)}` has no digest of a manifest{held}: so its build is unknown"
            hint = "`adapt add` the parent first, and merge again by its name"
            yield Finding("W_PARENT_DIGEST", where, message, hint=hint)
        elif around.build_with(parent.digest) is None:
            message = f"its parent `{shown(parent.spec)}` ({parent.digest[:19]}…) is not installed here"
            hint = f"`adapt install '{shown(_exact(parent))}'` installs it, so that it is audited too"
            yield Finding("W_PARENT_ABSENT", where, message, hint=hint)


def _exact(parent: Parent) -> str:
    """Return the spec of a parent with its digest."""
    return f"{parent.spec.partition('#')[0]}#{parent.digest}"


def _is_held_to_bytes(recipe: Mapping[str, object], parent: Parent) -> bool:
    """Return whether the recipe has the sha256 of the folder that the parent was."""
    inputs = recipe.get("inputs")
    named = [i for i in inputs if isinstance(i, dict)] if isinstance(inputs, list) else []
    return any(i.get("spec") == parent.spec and i.get("sha256") for i in named)
