"""Match an orphan with adapters of the library: by the digests of its files, then of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final

from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.disk.files import open_plain
from adapterhub.core.errors import AdapterHubError, MalformedTensorFile
from adapterhub.formats.base.precision import may_be_same, stored_bytes
from adapterhub.formats.base.weight_reader import read_facts
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.formats.safetensors.facts import TensorFacts, sample_offsets
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.library.identify._orphan import Orphan, plain_tensor_name
from adapterhub.library.identify._report import Match
from adapterhub.library.library import Library

_LOOKED_AT: Final = 12
"""Tensors whose samples decide whether an installed adapter is read whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A build that the store knows; `folder` is None for one that was removed and not swept yet."""

    name: str
    manifest: Manifest
    base: BaseRef
    weights: Path
    folder: Path | None


def builds_known(library: Library) -> list[Known]:
    """Installed builds, then those of which only the store still has the manifest."""
    found = [
        Known(
            name=f"{b.full_name}=={b.manifest.version}",
            manifest=b.manifest,
            base=b.base,
            weights=b.folder / WEIGHTS_FILE,
            folder=b.folder,
        )
        for b in library.installed()
    ]
    seen = {known.manifest.digest for known in found}
    for path in sorted(library.root.glob("manifests/sha256/*.json")):
        with suppress(AdapterHubError, ValueError, OSError):  # `verify` reports the damage
            digest = parse_digest(f"sha256:{path.stem}")
            if digest in seen:
                continue
            manifest = library.store.read_manifest(digest)
            entry = manifest.file(WEIGHTS_FILE)
            if entry is not None:
                weights = library.store.blob_path(entry.sha256)
                name = f"{manifest.name}=={manifest.version}"
                found.append(Known(name=name, manifest=manifest, base=manifest.base, weights=weights, folder=None))
    return found


def by_files(
    library: Library, builds: Sequence[Known], digests: Mapping[str, Digest], orphan: Orphan
) -> Iterator[Match]:
    """Adapters that have these very files, and objects of the store that no adapter names."""
    named: set[Digest] = set()
    own = set(digests.values())
    weights = digests.get(orphan.weights.path.name) if orphan.weights is not None else None
    for known in builds:
        expected = {entry.path: entry.sha256 for entry in known.manifest.files}
        shared = [path for path, digest in expected.items() if digest in own]
        if not shared:
            continue
        named |= {expected[path] for path in shared}
        if expected[WEIGHTS_FILE] == weights:
            is_whole = len(shared) == len(expected)
            how = "every file has the same bytes" if is_whole else "the weights file has the same bytes"
            yield _match(known, "proven", how)
        elif weights is None or not orphan.pairs:
            yield _match(known, "possible", f"`{shared[0]}` has the same bytes, which other adapters may have, too")
    for name, digest in digests.items():
        if digest not in named and library.store.has_blob(digest):
            how = f"`{name}` is an object of the store that no adapter names any more"
            yield Match(what="object", name=digest, sure="proven", how=how, folder=library.store.blob_path(digest))
    manifest = orphan.manifest
    if manifest is not None and not any(known.manifest.digest == manifest.digest for known in builds):
        is_true = {e.path: e.sha256 for e in manifest.files}.items() <= digests.items()
        how = "its own manifest says so, " + ("about these very bytes" if is_true else "but about other bytes")
        name = f"{manifest.name}=={manifest.version}"
        sure = "likely" if is_true else "possible"
        yield Match(what="adapter", name=name, sure=sure, how=how, digest=manifest.digest)  # type: ignore[arg-type]  # the two words


def by_tensors(builds: Sequence[Known], orphan: Orphan) -> Iterator[Match]:
    """Adapters that hold the same tensors in another file, or the same numbers in another precision."""
    assert orphan.weights is not None
    own = _telling(_facts(orphan.weights.path))
    if not own:
        return
    for known in builds:
        try:
            header = read_header(known.weights)
            is_exact, is_near = _samples_agree(own, header)
            if is_exact:
                theirs = _telling(_facts(known.weights))
                match = _shared(known, own, theirs)
                if match is not None:
                    yield match
            elif is_near:
                how = "every number that was sampled is the same but for its precision"
                yield _match(known, "likely", how)
        except (AdapterHubError, OSError):  # a damaged one is for `verify` to tell
            continue


def by_update(library: Library, orphan: Orphan, found: set[str | None]) -> Iterator[Match]:
    """Installed adapters, beside those with digests in `found`, whose update is that of a PEFT folder or near it."""
    weights = orphan.weights.path if orphan.weights is not None else None
    if weights is None or not (weights.parent / CONFIG_FILE).is_file() or find_spec("numpy") is None:
        return
    if weights.name != WEIGHTS_FILE:
        return
    from adapterhub.formats.derived.likeness import NEAR, SAME
    from adapterhub.library.find.likeness import similar_to

    with suppress(AdapterHubError, OSError):  # it has no update to compare, or none that can be read
        for one in similar_to(library, weights.parent, above=NEAR, with_parents=False).similar:
            if one.build.digest in found or not one.exact:
                continue
            is_same = abs(one.cosine) >= SAME
            how = "its update is that of this adapter in other numbers" if is_same else "its update is near"
            yield Match(
                what="adapter",
                name=f"{one.build.full_name}=={one.build.version}",
                sure="likely" if is_same else "possible",
                how=", ".join((f"{how}: cosine {one.cosine:.4f}", *one.scale_words, *one.notes)),
                digest=one.build.digest,
                folder=library.root / one.build.folder,
            )


def _shared(known: Known, own: Sequence[TensorFacts], theirs: Sequence[TensorFacts]) -> Match | None:
    mine, yours = (Counter((f.dtype, f.shape, f.sha256) for f in facts) for facts in (own, theirs))
    common = (mine & yours).total()
    if common == mine.total() == yours.total():
        return _match(known, "proven", f"all {common} tensors have the same bytes, in another file")
    if not common:
        return None
    return _match(known, "likely", f"{common} of its {mine.total()} tensors are tensors of that adapter")


def _facts(path: Path) -> tuple[TensorFacts, ...]:
    return read_facts([path], cache_folder=None)[path]


def _telling(facts: Sequence[TensorFacts]) -> list[TensorFacts]:
    """Those that can tell anything: a tensor of one number all over (an untrained B) is that of every adapter."""
    return [f for f in facts if len(set(_numbers(f.dtype, f.samples))) > 1]


def _samples_agree(own: Sequence[TensorFacts], header: TensorFile) -> tuple[bool, bool]:
    """Whether some tensor has the samples of one there, and whether all do that have its name, in any precision."""
    step = max(1, len(own) // _LOOKED_AT)
    looked_at = own[::step][:_LOOKED_AT]
    by_name = {plain_tensor_name(spec.name): spec for spec in header.tensors}
    by_shape: dict[tuple[str, tuple[int, ...]], list[TensorSpec]] = {}
    for spec in header.tensors:
        by_shape.setdefault((spec.dtype, spec.shape), []).append(spec)
    near = 0
    with open_plain(header.path) as stream:
        for fact in looked_at:
            same = by_name.get(plain_tensor_name(fact.name))
            there = [same] if same is not None else by_shape.get((fact.dtype, fact.shape), [])
            for spec in there:
                samples = _samples(stream, spec)
                if (spec.dtype, spec.shape, samples) == (fact.dtype, fact.shape, fact.samples):
                    return True, True
                near += spec is same and spec.shape == fact.shape and _is_near(fact, spec.dtype, samples)
    return False, near == len(looked_at)


def _samples(stream: IO[bytes], spec: TensorSpec) -> bytes:
    width, found = stored_bytes(spec.dtype), bytearray()
    for offset in sample_offsets(spec):
        stream.seek(spec.start + offset)
        found += stream.read(width)
    if len(found) % width:
        raise MalformedTensorFile(str(getattr(stream, "name", "")), "ends inside a tensor")
    return bytes(found)


def _is_near(fact: TensorFacts, dtype: str, samples: bytes) -> bool:
    if dtype == fact.dtype:
        return False  # another precision of itself it is not
    pairs = zip(_numbers(fact.dtype, fact.samples), _numbers(dtype, samples), strict=True)
    return all(may_be_same(fact.dtype, mine, dtype, theirs) for mine, theirs in pairs)


def _numbers(dtype: str, raw: bytes) -> list[bytes]:
    width = stored_bytes(dtype)
    return [raw[at : at + width] for at in range(0, len(raw), width)]


def _match(known: Known, sure: str, how: str) -> Match:
    if known.folder is None:
        how += "; it was removed, and the store still has it"
    return Match(
        what="adapter",
        name=known.name,
        sure=sure,  # type: ignore[arg-type]  # one of the three
        how=how,
        digest=known.manifest.digest,
        folder=known.folder,
    )
