"""A PEFT repository without a manifest: what an adapter there is, read without downloading its weights.

The server says the sha256 of LFS files, and the header of a safetensors file says ranks and shapes. So the weights are
described by their first bytes, in a file with a hole where the numbers are, and come later, held against that sha256.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from adapterhub.digests import Digest, digest_of, parse_digest
from adapterhub.directory import PlainFolder
from adapterhub.errors import DigestMismatch, RefusedAdapter
from adapterhub.hub._wire import Wire, file_path, git_sha1
from adapterhub.manifest import CARD_FILE, CONFIG_FILE, MEDIA_TYPES, WEIGHTS_FILE, FileEntry
from adapterhub.specs import AdapterSpec
from adapterhub.tensorfile import ADAPTER_LIMITS, LENGTH_BYTES
from adapterhub.transfer import Release

FIRST_BYTES = 64 << 10
"""Read at once of a weights file; most headers are shorter."""


def plain_release(
    wire: Wire, api: HfApi, repo: str, commit: str, spec: AdapterSpec, *, version: str | None
) -> Release | None:
    """The adapter at one commit, under the name that `spec` asks for; None when there is no adapter.

    Raises:
        RefusedAdapter: one that must not be stored.
    """
    origin = f"{repo} at {commit[:12]}"
    with wire.plainly(f"`{origin}`"):
        paths = api.get_paths_info(repo, [*MEDIA_TYPES, CARD_FILE], revision=commit)
    files = {item.path: item for item in paths if isinstance(item, RepoFile)}
    if CONFIG_FILE not in files:
        return None
    with tempfile.TemporaryDirectory(prefix="adapt-look-") as name:
        folder, known = Path(name), dict[str, FileEntry]()
        for path, item in sorted(files.items()):
            with wire.plainly(f"`{path}` of `{repo}`"):
                known[path] = _place(wire, file_path(repo, commit, path), item, folder / path)
        plain = PlainFolder(folder, version=version or f"0+{commit[:12]}", origin=origin, known=known)
        return plain.releases(spec)[0]


def header_of(wire: Wire, path: str, size_bytes: int) -> bytes:
    """Length and header of a safetensors file of `size_bytes`, by one or two range requests."""
    first = wire.get_range(path, 0, min(size_bytes, FIRST_BYTES))
    end = min(LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little"), size_bytes)
    if end <= len(first) or end > LENGTH_BYTES + ADAPTER_LIMITS.header_bytes:
        return first
    return first + wire.get_range(path, len(first), end)


def _place(wire: Wire, path: str, item: Any, target: Path) -> FileEntry:  # noqa: ANN401 - RepoFile, untyped in old clients
    """Put a file into the folder, as far as it has to be read, and say what it is."""
    name, size = str(item.path), int(item.size)
    limit = ADAPTER_LIMITS.file_bytes
    if limit is not None and size > limit:
        raise RefusedAdapter(
            f"refused `{path}`. Nothing was stored", [("E_LIMIT", f"holds {size} bytes, expected at most {limit}")]
        )
    told = _sha256_of(item)
    if told is None or name in (CONFIG_FILE, CARD_FILE):
        body = wire.get(path)
        digest = _checked(body, item, told, path)
    else:
        body, digest = header_of(wire, path, size) if name == WEIGHTS_FILE else b"", told
    with target.open("xb") as sink:
        sink.write(body)
        sink.truncate(size)
    return FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES.get(name, ""))


def _sha256_of(item: Any) -> Digest | None:  # noqa: ANN401 - a file of the hub client, untyped
    return None if item.lfs is None else parse_digest(f"sha256:{item.lfs.sha256}")


def _checked(body: bytes, item: Any, told: Digest | None, where: str) -> Digest:  # noqa: ANN401 - a file of the hub client, untyped
    """The digest of a file, which is the one that the listing gives."""
    actual = digest_of(body)
    if told is not None and actual != told:
        raise DigestMismatch(where, expected=told, actual=actual)
    if told is None and item.blob_id and len(item.blob_id) == hashlib.sha1(usedforsecurity=False).digest_size * 2:
        name = git_sha1(body)
        if name != item.blob_id:
            raise DigestMismatch(where, expected=str(item.blob_id), actual=name)
    return actual
