"""The servers that a library knows by name, their namespaces, and their tokens.

    remotes.json      names, URLs, namespaces, the default; may be shared
    credentials.json  tokens, readable by their owner only

`hub`, the Hugging Face Hub, always exists. A token belongs to a URL, not to a name: changing the URL of a remote drops
its token, and no server ever sees the token of another.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from adapterhub.core.digests import canonical_json, strict_json
from adapterhub.core.disk.files import check_private, not_read, read_owned, write_durably
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Conflict, Malformed, NotAllowed, NotFound, UsageProblem, shown
from adapterhub.core.hosts import is_loopback
from adapterhub.core.specs import parse_namespace
from adapterhub.formats.treelog import LogKey, parse_witness
from adapterhub.trust.signing.policy import SignaturePolicy, strict_policy

HUB_NAME = "hub"
HUB_URL = "https://huggingface.co"
MAX_URL_CHARACTERS = 1000
MAX_HOST_CHARACTERS = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
_PORTS = {"http": 80, "https": 443}
_OCI_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_MAX_OCI_PATH = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """One remote. `name` is "" for a remote that the user names by its URL.

    `kind` names the protocol that it speaks, see `distribution.remote_kinds`; `hub` is the Hugging Face Hub's. Only
    this remote offers builds of its `namespaces`; a name without a namespace is looked up in their order. `signatures`
    is the signature policy: require, warn or off; None leaves it to the general policy. `witness` is the key of a
    witness that must have co-signed the log of the server.
    """

    name: str
    url: str
    namespaces: Annotated[tuple[str, ...], "namespaces assigned to this server, in order"] = ()
    is_default: bool = False
    signatures: Annotated[SignaturePolicy | None, "its signature policy; null: the general policy"] = None
    kind: str = HUB_NAME
    witness: LogKey | None = None

    @property
    def label(self) -> str:
        """The server in words."""
        return f"remote `{self.name}`" if self.name else f"server `{self.url}`"

    @property
    def is_plain_text(self) -> bool:
        """Whether tokens and adapters go over a network unencrypted."""
        return urlsplit(self.url).scheme == "http" and not is_loopback(urlsplit(self.url).hostname)


HUB = Remote(name=HUB_NAME, url=HUB_URL)


def parse_url(text: str, scheme: str = "") -> str:
    """Return the canonical form of a server's URL: lower-case scheme and host, no default port, no slash at the end.

    Raises:
        UsageProblem: unless it has a host and at most a path, and is of `scheme`; without one, http or https.
    """
    problem, such_as = "", f"write it as in `{scheme or 'https'}://registry.example.org`"
    try:
        place = urlsplit(text)
        port, host = place.port, (place.hostname or "").lower()
    except ValueError as error:
        raise UsageProblem(f"`{shown(text)}` is not the URL of a server: {error}", hint=such_as) from None
    if len(text) > MAX_URL_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
        problem = "expected printable ASCII without spaces"
    elif place.scheme not in ([scheme] if scheme else _PORTS) or not host:
        other = ', or its kind beside it, such as `kind = "oci"`' if host else ""
        problem = f"expected {scheme}://…" if scheme else f"expected http://… or https://…{other}"
    elif place.username is not None or place.password is not None:
        problem = "a URL holds no user or password; `adapt remote login` keeps a token"
    elif place.query or place.fragment:
        problem = "expected nothing after the path"
    elif not _is_host(host) or ("[" in place.netloc and ":" not in host):
        problem = f"`{shown(host)}` is not the name or address of a host"
    elif port == 0:
        problem = "no server listens on port 0"
    elif "\\" in place.path or not {".", ".."}.isdisjoint(place.path.split("/")):
        problem = "expected a path without `.`, `..` and backslashes"
    if problem:
        raise UsageProblem(f"`{shown(text)}` is not the URL of a server: {problem}", hint=such_as)
    name = f"[{host}]" if ":" in host else host
    shown_port = f":{port}" if port is not None and port != _PORTS.get(place.scheme, 443) else ""
    return f"{place.scheme}://{name}{shown_port}{place.path.rstrip('/')}"


def is_oci_path(text: str) -> bool:
    """Return whether `text` can name a repository of an OCI registry."""
    return len(text) <= _MAX_OCI_PATH and _OCI_PATH.fullmatch(text) is not None


def kind_in(address: str) -> str:
    """Return the kind of remote that an address shows: that of its scheme, for `http` and `https` the Hub's."""
    scheme, is_there, _ = address.partition("://")
    return scheme if is_there and scheme not in _PORTS and _NAME.fullmatch(scheme) else HUB_NAME


def parse_address(text: str, kind: str) -> str:
    """Return the address of a remote. A kind other than the Hub's checks the rest of its addresses when it opens them.

    Raises:
        UsageProblem: `kind` is not a word, or `text` is not an address.
    """
    if not _NAME.fullmatch(kind):
        raise UsageProblem(f"`{shown(kind)}` is not a kind of remote, expected a word such as `oci`")
    if kind == HUB_NAME or text.startswith(f"{kind}://"):
        return parse_url(text, "" if kind == HUB_NAME else kind)
    if not 0 < len(text) <= MAX_URL_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageProblem(f"`{shown(text)}` is not an address: expected printable ASCII without spaces")
    return text


def _is_host(host: str) -> bool:
    """Return whether `host` is a DNS name without a final dot, or a complete IP address."""
    import ipaddress  # 2 ms of import that `list` and `search` do not need

    if ":" in host or host.rpartition(".")[2].isdecimal() or host.startswith("0x"):
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(host))
        return False
    return len(host) <= MAX_HOST_CHARACTERS and all(_LABEL.fullmatch(label) for label in host.split("."))


def parse_remote_name(text: str) -> str:
    """Return the name of a remote.

    Raises:
        UsageProblem: unless it is 1 to 64 of `a-z0-9._-` and begins with a letter or digit.
    """
    if not _NAME.fullmatch(text):
        raise UsageProblem(f"`{shown(text)}` is not a valid name for a remote: expected 1 to 64 of a-z, 0-9 and `._-`")
    return text


class Remotes:
    """The named servers of the library under `root`. Cheap to make; files are read when needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "remotes.json"
        self._secrets = root / "credentials.json"

    # ------------------------------------------------------------ names
    def all(self) -> list[Remote]:
        """Every remote in the order of lookup; `hub` comes last unless the user moved it."""
        added = self._read()
        return added if HUB_NAME in map(attrgetter("name"), added) else [*added, HUB]

    def default(self) -> Remote | None:
        """Return the default remote, if one is set."""
        return next((remote for remote in self._read() if remote.is_default), None)

    def get(self, text: str) -> Remote:
        """Return the remote with that name or URL; any URL is accepted.

        Raises:
            NotFound: no remote has that name.
            UsageProblem: the URL is not valid.
        """
        everything = self.all()
        if "://" in text:
            kind = kind_in(text)
            url = text if any(r.url == text for r in everything) else parse_address(text, kind)
            return next((r for r in everything if r.url == url), Remote(name="", url=url, kind=kind))
        found = next((remote for remote in everything if remote.name == text), None)
        if found is None:
            known = ", ".join(f"`{remote.name}`" for remote in everything)
            raise NotFound(
                f"no remote `{shown(text)}`; there are {known}", hint=f"`adapt remote add {shown(text)} URL` names one"
            )
        return found

    def of_namespace(self, namespace: str) -> list[Remote]:
        """Return the remotes that this namespace belongs to, in order."""
        return [remote for remote in self.all() if namespace in remote.namespaces]

    def add(
        self,
        name: str,
        url: str,
        *,
        namespaces: Sequence[str] = (),
        default: bool = False,
        signatures: SignaturePolicy | None = None,
        kind: str = "",
        witness: str | None = None,
    ) -> Remote:
        """Add a server at the end of the order. Adding it again changes its namespaces and the default.

        Without a `kind`, the address shows it.

        The signature policy and the witness do not change unless one is given, so that no one drops it by accident.

        Raises:
            UsageProblem: the name, the address or the key of the witness is not valid.
            Conflict: the name belongs to another URL, or another remote has one of the namespaces.
        """
        made = Remote(
            name=parse_remote_name(name),
            url=parse_address(url, kind or kind_in(url)),
            namespaces=tuple(dict.fromkeys(parse_namespace(n) for n in namespaces)),
            is_default=default,
            signatures=signatures,
            kind=kind or kind_in(url),
            witness=None if witness is None else parse_witness(witness),
        )
        with self._changing():
            known = self._read()
            same = next((r for r in [*known, HUB] if r.name == name), None)
            if same is not None and (same.url, same.kind) != (made.url, made.kind):
                raise Conflict(
                    f"`{name}` is {same.url}",
                    hint=f"`adapt remote remove {name}` first" if name != HUB_NAME else "choose another name",
                )
            self._ensure_free(known, made)
            if same is not None:
                kept_policy, kept_witness = signatures or same.signatures, made.witness or same.witness
                made = replace(made, signatures=kept_policy, witness=kept_witness)
            others = [replace(r, is_default=r.is_default and not default) for r in known]
            if any(r.name == name for r in others):
                kept = [made if r.name == name else r for r in others]
            else:
                kept = [*others, made]
            self._write(kept)
        return made

    def witness_of(self, url: str) -> LogKey | None:
        """Return the witness of a server, for any name of the server; None if no remote has one for it."""
        return next((one.witness for one in self.all() if one.url == url and one.witness is not None), None)

    def set_signatures(self, name: str, policy: SignaturePolicy | None) -> Remote:
        """Set the signature policy of a server; None leaves it to the general policy.

        Raises:
            NotFound: no remote has that name.
        """
        with self._changing():
            made = replace(self.get(name), signatures=policy)
            known = self._read()
            is_listed = any(r.name == made.name for r in known)
            self._write([made if r.name == made.name else r for r in known] if is_listed else [*known, made])
        return made

    def remove(self, name: str) -> Remote:
        """Delete a remote, and its token unless another name has the same URL.

        Raises:
            NotFound: no remote has that name.
        """
        with self._changing():
            known = self._read()
            gone = next((r for r in known if r.name == name), None)
            if gone is None:
                why = "is always there" if name == HUB_NAME else "was never added"
                raise NotFound(f"remote `{shown(name)}` {why}", hint="`adapt remote list` shows them")
            kept = [r for r in known if r.name != name]
            self._write(kept)
            if gone.url not in {r.url for r in [*kept, HUB]}:
                self._write_tokens({url: t for url, t in self._tokens().items() if url != gone.url})
        return gone

    def problems(self) -> list[str]:
        """Return the signature policies in the file that are not valid, and count as `require`."""
        return [
            f"`{self._path}`: remotes[{index}].signatures: {problem}"
            for index, item in enumerate(self._json(self._path).get("remotes", []))
            if (stored := item.get("signatures")) is not None and (problem := strict_policy(stored)[1])
        ]

    # ------------------------------------------------------------ tokens
    def token(self, url: str) -> str | None:
        """Return the token stored for exactly this URL.

        Raises:
            NotAllowed: others can read the file.
        """
        return self._tokens().get(url)

    def has_token(self, remote: Remote) -> bool:
        """Return whether a token is stored for it."""
        return self.token(remote.url) is not None

    def login(self, remote: Remote, token: str) -> None:
        """Store a token.

        Raises:
            UsageProblem: the text cannot be a token.
        """
        if not _TOKEN.fullmatch(token):
            raise UsageProblem(
                "a token is one line of printable characters without spaces", hint="copy it again, without the line end"
            )
        with self._changing():
            self._write_tokens({**self._tokens(), remote.url: token})

    def logout(self, remote: Remote) -> bool:
        """Delete the token; returns whether there was one."""
        with self._changing():
            tokens = self._tokens()
            there = tokens.pop(remote.url, None) is not None
            if there:
                self._write_tokens(tokens)
        return there

    # ------------------------------------------------------------ files
    def _changing(self) -> AbstractContextManager[None]:
        return Root(self._root).lock("remotes", exclusive=True)

    def _ensure_free(self, known: Sequence[Remote], made: Remote) -> None:
        for other in known:
            taken = [n for n in made.namespaces if n in other.namespaces and other.name != made.name]
            if taken:
                raise Conflict(
                    f"the namespace `{taken[0]}` belongs to remote `{other.name}`",
                    hint="a namespace belongs to one remote, so that no one else can publish under it",
                )

    def _read(self) -> list[Remote]:
        value = self._json(self._path)
        items = value.get("remotes", [])
        if not isinstance(items, list):
            raise self._malformed(self._path, "remotes: expected a list")
        found = [self._remote(index, item, value.get("default")) for index, item in enumerate(items)]
        if len(set(map(attrgetter("name"), found))) != len(found):
            raise self._malformed(self._path, "a name is given twice")
        return found

    def _remote(self, index: int, item: object, default: object) -> Remote:
        where = f"remotes[{index}]"
        if (
            not isinstance(item, Mapping)
            or not isinstance(item.get("name"), str)
            or not isinstance(item.get("url"), str)
            or not isinstance(kind := item.get("kind", HUB_NAME), str)
        ):
            raise self._malformed(self._path, f"{where}: expected an object with the texts `name` and `url`")
        namespaces = item.get("namespaces", [])
        if not isinstance(namespaces, list) or not all(isinstance(n, str) for n in namespaces):
            raise self._malformed(self._path, f"{where}.namespaces: expected a list of texts")
        signatures = item.get("signatures")
        try:
            return Remote(
                name=parse_remote_name(item["name"]),
                url=parse_address(item["url"], kind),
                kind=kind,
                namespaces=tuple(parse_namespace(n) for n in namespaces),
                is_default=item["name"] == default,
                signatures=None if signatures is None else strict_policy(signatures)[0],
                witness=None if (witness := item.get("witness")) is None else parse_witness(str(witness)),
            )
        except UsageProblem as error:
            raise self._malformed(self._path, f"{where}: {error.message}") from None

    def _write(self, remotes: Sequence[Remote]) -> None:
        value: dict[str, Any] = {
            "remotes": [
                {"name": r.name, "url": r.url, "namespaces": list(r.namespaces)}
                | ({"signatures": r.signatures} if r.signatures else {})
                | ({"kind": r.kind} if r.kind != HUB_NAME else {})
                | ({"witness": str(r.witness)} if r.witness else {})
                for r in remotes
            ]
        }
        default = next((r.name for r in remotes if r.is_default), None)
        if default is not None:
            value["default"] = default
        self._save(self._path, value, mode=0o644)

    def _tokens(self) -> dict[str, str]:
        value = self._json(self._secrets)
        if self._secrets.exists():
            check_private(self._secrets, "holds tokens")
        tokens = value.get("tokens", {})
        if not isinstance(tokens, dict) or not all(isinstance(t, str) for t in tokens.values()):
            raise self._malformed(self._secrets, "tokens: expected an object of texts")
        return dict(tokens)

    def _write_tokens(self, tokens: Mapping[str, str]) -> None:
        if tokens or self._secrets.exists():
            self._save(self._secrets, {"tokens": dict(tokens)}, mode=0o600)

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            value = strict_json(read_owned(path, "says which servers are asked", limit_bytes=1 << 20))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise not_read(error, path, NotAllowed) from None
        except ValueError as error:
            raise self._malformed(path, str(error)) from None
        if not isinstance(value, dict):
            raise self._malformed(path, "expected an object")
        return value

    def _save(self, path: Path, value: dict[str, Any], *, mode: int) -> None:
        try:
            write_durably(path, canonical_json(value) + b"\n", mode=mode)
        except OSError as error:
            raise Root(self._root).explain(error) from error

    @staticmethod
    def _malformed(path: Path, reason: str) -> Malformed:
        return Malformed(f"`{path}`: {reason}", hint="mend the file, or delete it and `adapt remote add` again")
