"""Parses the names in requests: repository ids, branches and tags, commits, file paths."""

from __future__ import annotations

import re
from typing import NewType

from adapterhub.core.errors import SpecError, shown
from adapterhub.core.specs import version_key
from adapterhub_registry.errors import HttpRefusal, bad_request, name_reserved, out_of_bounds, repo_not_found

RepoId = NewType("RepoId", str)
"""`namespace/name`; only `parse_repo_id` makes one."""

_KINDS = ("models", "datasets", "spaces", "kernels", "buckets")
_PAGES = (
    "api",
    "oauth",
    "login",
    "settings",
    "docs",
    "static",
    "metrics",
    "healthz",
    "livez",
    "_xet",
    "_lfs",
    ".well-known",
)
RESERVED_NAMESPACES = frozenset({*_KINDS, *_PAGES})
MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 255
MAX_FOLDERS = 32
"""The depth limit of a committed file. The Hub documents no such limit."""
MAX_REF_CHARACTERS = 200
COMMIT = re.compile(r"[0-9a-f]{40}")
COMMIT_PREFIX = re.compile(r"[0-9a-f]{7,40}")
SHA256 = re.compile(r"[0-9a-f]{64}")

PART = re.compile(r"[A-Za-z0-9_.-]{1,96}")
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_REF_PREFIXES = ("refs/", "heads/", "tags/", "remotes/")  # git reads these as prefixes of a ref
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_PATH_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


def parse_repo_id(namespace: str, name: str) -> RepoId:
    """Parse the id of a new or existing repository.

    Raises:
        HttpRefusal: 400, with the rule that the id breaks.
    """
    text = f"{namespace}/{name}"
    for part in (namespace, name):
        if not PART.fullmatch(part) or "--" in part or ".." in part or part.strip(".") == "":
            raise bad_request(
                f"repository `{shown(text)}`: expected `namespace/name`, each of 1 to 96 letters, digits, "
                "`.`, `_`, `-`, without `--` or `..`"
            )
    if name.endswith(".git") or namespace.endswith(".git"):
        raise bad_request(f"repository `{shown(text)}`: a name cannot end in `.git`; choose another name")
    if namespace.lower() in RESERVED_NAMESPACES:
        raise name_reserved(shown(text))
    return RepoId(text)


def known_repo_id(namespace: str, name: str) -> RepoId:
    """Return the id of a repository in a URL; a malformed id is a 404, like any repository that does not exist."""
    try:
        return parse_repo_id(namespace, name)
    except HttpRefusal:
        raise repo_not_found(shown(f"{namespace}/{name}")) from None


def split(repo: str) -> tuple[str, str]:
    """Return the namespace and the name in `namespace/name`, neither checked."""
    namespace, _, name = repo.partition("/")
    return namespace, name


def parse_ref_name(text: str) -> str:
    """Parse the name of a branch or tag by git's rules; a name that looks like a commit id is refused.

    Raises:
        HttpRefusal: 400.
    """
    wrong = (
        not 1 <= len(text) <= MAX_REF_CHARACTERS
        or _REF_FORBIDDEN.search(text)
        or text.startswith(("/", "-", "."))
        or text.lower().startswith(_REF_PREFIXES)
        or text.endswith(("/", ".", ".lock"))
        or text in {"@", "HEAD"}
        or not text.isprintable()
    )
    if wrong:
        raise bad_request(f"`{shown(text)}` is not a valid name for a branch or tag, expected a name as git allows it")
    if COMMIT_PREFIX.fullmatch(text):
        raise bad_request(
            f"`{text}` is not a valid name for a branch or tag: it looks like a commit id; choose another name"
        )
    return text


def parse_path(text: str, *, what: str = "path") -> str:
    """Parse a path in a repository: relative, with `/`, without `.`, `..`, `.git` or control characters.

    Raises:
        HttpRefusal: 422.
    """
    segments = text.split("/")
    wrong = (
        _PATH_FORBIDDEN.search(text)
        or len(text.encode("utf-8", "replace")) > MAX_PATH_BYTES
        or any(
            part in {"", ".", ".."}
            or part.lower() == ".git"
            or len(part.encode("utf-8", "replace")) > MAX_SEGMENT_BYTES
            for part in segments
        )
    )
    if wrong:
        raise out_of_bounds(f"{what} `{shown(text)}`: expected a relative path without `.`, `..`, `.git` or `\\`")
    return text


def parse_sha256(text: str, *, what: str = "oid") -> str:
    """Parse the 64 lower-case hex digits of a sha256.

    Raises:
        HttpRefusal: 400.
    """
    if not SHA256.fullmatch(text):
        raise bad_request(f"{what} `{shown(text)}`: expected the 64 lower-case hex digits of a sha256")
    return text


def key_of_version(text: str) -> str:
    """Return the key of a version that a caller names, as the column `version_key` has it.

    Of other text one that none has.
    """
    try:
        return version_key(text)
    except SpecError:
        return ""
