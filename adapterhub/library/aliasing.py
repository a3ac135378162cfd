"""Resolves `@word` in a spec where the word is an alias: it means exactly one build."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adapterhub.core.errors import AdapterHubError, AdapterNotFound, Conflict, UsageProblem
from adapterhub.core.specs import AdapterName, AdapterSpec
from adapterhub.formats.alias import Alias, AliasTarget, earlier, parse_alias
from adapterhub.library.store.aliases import not_here

if TYPE_CHECKING:
    from adapterhub.core.digests import Digest
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed


def alias_of(library: Library, spec: AdapterSpec) -> Alias | None:
    """Return the alias that `spec` names: of the project, or of the library.

    None if its `@word` is a base or nothing.

    Raises:
        AmbiguousSpec: adapters of several namespaces have such an alias.
        Conflict: an alias of the project has the name of a base.
        Malformed: its file is damaged.
    """
    if spec.base is None or spec.base.kind != "alias":
        return None
    found = library.project_alias(spec)
    if found is not None:
        ensure_no_base(library, found.name, found.adapter)
    return found or library.aliases.meant(spec)


def ensure_no_base(library: Library, name: str, adapter: str, built_for: Collection[str] = ()) -> None:
    """Raise if an alias of an adapter would have the name of a base, registered or in `built_for`.

    Raises:
        Conflict: it would.
    """
    if name in library.bases.aliases() or name in built_for:
        raise Conflict(
            f"`{name}` is a base, so `{adapter}@{name}` already means something. Nothing was changed",
            hint="choose another name for the alias; `adapt base list` shows the bases",
        )


def exact(spec: AdapterSpec, alias: Alias, target: AliasTarget) -> AdapterSpec:
    """`spec` with the digest of the target in place of the alias. Versions that `spec` names still have to fit."""
    namespace, _, name = alias.adapter.rpartition("/")
    return replace(
        spec,
        namespace=namespace or None,
        name=AdapterName(name),
        base=None,
        specifiers=spec.specifiers or f"=={target.version}",
        digest_prefix=target.digest,
    )


def without_alias(library: Library, spec: AdapterSpec) -> AdapterSpec:
    """`spec` unchanged, or with an exact digest in place of its alias.

    Of several targets, it takes the one with the largest weight; `library.note_choice` gets a sentence about that.
    """
    alias = alias_of(library, spec)
    return spec if alias is None else at_main(library, spec, alias)


def at_main(library: Library, spec: AdapterSpec, alias: Alias) -> AdapterSpec:
    """Return `spec` with the digest of the alias's main target; a note lists the other targets."""
    if len(alias.targets) > 1:
        library.note_choice(
            f"`{alias}` is {alias.text()}; this takes {alias.main.version}, the one with the largest weight"
        )
    return exact(spec, alias, alias.main)


def build_under(library: Library, alias: Alias, target: AliasTarget) -> Installed:
    """Return the installed build that a target is.

    Raises:
        AdapterNotFound: it is not installed.
    """
    namespace, _, name = alias.adapter.rpartition("/")
    for build in _under(library, target.digest, name, namespace):
        if build.manifest.digest == target.digest and build.full_name == alias.adapter:
            return build
    if alias == library.project_alias(AdapterSpec.parse(str(alias))):
        hint = "run `adapt sync`, which brings what the project locks"
    elif alias.place:
        hint = f"`adapt install {alias.adapter}=={target.version}#{target.digest[:19]}` installs it"
    else:
        hint = f"install it again, or `adapt alias set {alias.name} {alias.adapter}==VERSION` moves the alias"
    raise AdapterNotFound(not_here(alias, target), hint=hint)


def _under(library: Library, digest: Digest, name: str, namespace: str) -> Iterator[Installed]:
    """Yield the build of a digest, found without a look at the other versions; then others of the name."""
    with contextlib.suppress(AdapterHubError, OSError):
        yield library.read_build(library.folder_for(library.store.read_manifest(digest), namespace or None))
    yield from library.still_in(library.catalog.folders(name, namespace, digest=digest))


def roll_back(library: Library, adapter: str, name: str, *, to: int | None = None) -> Alias:
    """Point an alias at what it was one step before, or after the move number `to`.

    Raises:
        NotFound: there is no such alias or move, or nothing before.
        AdapterNotFound: what it was is not installed any more.
    """
    with library.store.lock("publish", exclusive=False):  # no `remove` runs meanwhile
        alias = library.aliases.ever(adapter, name)
        if alias is not None:
            for target in earlier(alias, to):
                library.settle(build_under(library, alias, target))
        return library.aliases.roll_back(adapter, name, to=to)


def point(library: Library, name: str, targets: Sequence[tuple[Installed, float]]) -> Alias:
    """Point the alias `name` of an adapter at installed builds of it, each with a weight.

    Raises:
        SpecError, UsageProblem: the alias may not have this name or these targets.
        Conflict: a base has the name.
        AdapterNotFound: a build was removed meanwhile.
    """
    name = parse_alias(name)
    names = sorted({build.full_name for build, _ in targets})
    if len(names) > 1:
        raise UsageProblem(
            f"an alias belongs to one adapter, and these are {', '.join(names)}. Nothing was changed",
            hint="set it for each adapter by itself",
        )
    ensure_no_base(library, name, names[0], [build.base_name for build, _ in targets])
    made = [
        AliasTarget(version=build.manifest.version, digest=build.manifest.digest, weight=weight)
        for build, weight in targets
    ]
    with library.store.lock("publish", exclusive=False):  # no `remove` runs meanwhile
        alias = Alias(adapter=names[0], name=name)
        for target in made:
            library.settle(build_under(library, alias, target))
        return library.aliases.move(names[0], name, made)
