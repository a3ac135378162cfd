"""What the ETag of a file says about its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from adapterhub.core.errors import DigestMismatch


def check_etag(body: bytes, headers: Mapping[str, str], what: str) -> None:
    """Check a file against the digest in its ETag: the git blob's sha1, or the sha256 of an LFS file.

    Raises:
        DigestMismatch: the bytes differ from the digest.
    """
    etag = headers.get("x-linked-etag", headers.get("etag", "")).removeprefix("W/").strip('"')
    if not all(c in "0123456789abcdef" for c in etag):
        return
    if len(etag) == 64:  # noqa: PLR2004 - sha256
        actual = hashlib.sha256(body).hexdigest()
    elif len(etag) == 40 and "x-repo-commit" in headers:  # noqa: PLR2004 - sha1
        actual = git_sha1(body)
    else:
        return
    if actual != etag:
        raise DigestMismatch(what, expected=etag, actual=actual, hint="nothing was stored; try again")


def git_sha1(body: bytes) -> str:
    """The git blob hash of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
