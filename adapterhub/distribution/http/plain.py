"""Describes an adapter that a server offers without a manifest, without downloading its weights.

The server lists the sha256 of large files, and a safetensors header has ranks and shapes. So the description uses a
file with the header and a hole for the numbers. The weights come later and are checked against that sha256.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.errors import DigestMismatch, RefusedAdapter
from adapterhub.core.limits import limits
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.http.etag import git_sha1
from adapterhub.distribution.http.wire import Wire
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, MEDIA_TYPES, WEIGHTS_FILE, FileEntry
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.release import Release
from adapterhub.formats.safetensors.file import LENGTH_BYTES, TensorFile, parse_header
from adapterhub.formats.safetensors.header import adapter_limits
from adapterhub.library.directory import PlainFolder

FIRST_BYTES = 64 << 10
"""The first read of a weights file; most headers are shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A file as a listing describes it; its bytes were not read. `git_sha1` is None for an LFS file."""

    path: str
    size_bytes: int
    sha256: Digest | None
    git_sha1: str | None = None


def described(
    wire: Wire, files: Mapping[str, ListedFile], spec: AdapterSpec, *, origin: str, version: str | None
) -> Release:
    """The adapter that these files are, under the name in `spec`; `files` are by their paths on the server.

    Raises:
        RefusedAdapter: the adapter is not safe to store.
    """
    with tempfile.TemporaryDirectory(prefix="adapt-look-") as name:
        folder, known = Path(name), dict[str, FileEntry]()
        for place, item in sorted(files.items()):
            with wire.plainly(f"`{item.path}` of `{origin}`"):
                known[item.path] = _place(wire, place, item, folder / item.path)
        return PlainFolder(folder, version=version, origin=origin, known=known).releases(spec)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The config and the tensor header of a build on a server, read without its weights.

    `commit` is that of the repository, or the digest of an image.
    """

    repo: str
    commit: str
    config: AdapterConfig
    weights: TensorFile


def read_contents(
    wire: Wire, release: Release, repo: str, commit: str, path_of: Callable[[FileEntry], str]
) -> Contents:
    """Config and tensors of a build, by range requests; `path_of` is the URL path of a file.

    Raises:
        DigestMismatch: the config differs from the manifest.
    """
    config, weights = (release.manifest.file(name) for name in (CONFIG_FILE, WEIGHTS_FILE))
    assert config is not None
    assert weights is not None  # a manifest names both
    with wire.plainly(f"`{repo}`"):
        raw = wire.get(path_of(config))
        head = header_of(wire, path_of(weights), weights.size_bytes)
    if digest_of(raw) != config.sha256:
        raise DigestMismatch(f"{repo}: {CONFIG_FILE}", expected=config.sha256, actual=digest_of(raw))
    where = f"{repo}: {WEIGHTS_FILE}"
    tensors = parse_header(io.BytesIO(head), path=Path(WEIGHTS_FILE), size_bytes=weights.size_bytes, where=where)
    return Contents(
        repo=repo, commit=commit, config=AdapterConfig.parse(raw, f"{repo}: {CONFIG_FILE}"), weights=tensors
    )


def header_of(wire: Wire, path: str, size_bytes: int) -> bytes:
    """Length and header of a safetensors file of `size_bytes`, by one or two range requests."""
    first = wire.get_range(path, 0, min(size_bytes, FIRST_BYTES))
    end = min(LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little"), size_bytes)
    if end <= len(first) or end > LENGTH_BYTES + adapter_limits().header_bytes:
        return first
    return first + wire.get_range(path, len(first), end)


def _place(wire: Wire, path: str, item: ListedFile, target: Path) -> FileEntry:
    """Write the part of a file that has to be read, and return its entry."""
    name, size = item.path, item.size_bytes
    most = limits().file_bytes if name == WEIGHTS_FILE else limits().text_bytes
    if size > most:
        raise RefusedAdapter(
            f"refused `{path}`. Nothing was stored", [("E_LIMIT", f"holds {size} bytes, expected at most {most}")]
        )
    told = item.sha256
    if told is None or name in (CONFIG_FILE, CARD_FILE):
        body = wire.get(path)
        digest = _checked(body, item, path)
    else:
        body, digest = header_of(wire, path, size) if name == WEIGHTS_FILE else b"", told
    with target.open("xb") as sink:
        sink.write(body)
        sink.truncate(size)
    return FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES.get(name, ""))


def _checked(body: bytes, item: ListedFile, where: str) -> Digest:
    """The digest of a file, checked against the listing."""
    actual = digest_of(body)
    if item.sha256 is not None and actual != item.sha256:
        raise DigestMismatch(where, expected=item.sha256, actual=actual)
    if item.git_sha1 is not None:
        name = git_sha1(body)
        if name != item.git_sha1:
            raise DigestMismatch(where, expected=item.git_sha1, actual=name)
    return actual
