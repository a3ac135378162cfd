"""The settings of one server: where it stores data, who may read, and its limits."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import CHECK_FILE, UsageProblem, shown
from adapterhub.core.limits import parse_amount
from adapterhub.formats.treelog import LogKey

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MEBIBYTE = 1 << 20
SECRET_BYTES = 32
_SECRET_LIMIT_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits on what clients send; sizes in bytes, times in seconds. A default of 0 means no limit."""

    json_body_bytes: int = 4 * MEBIBYTE
    commit_body_bytes: int = 512 * MEBIBYTE
    regular_file_bytes: int = 10 * MEBIBYTE  # larger files need LFS or Xet
    file_bytes: int = 1 << 40
    multipart_from_bytes: int = 256 * MEBIBYTE
    part_bytes: int = 64 * MEBIBYTE
    operations: int = 20_000  # of one commit
    files: int = 20_000  # of one repository at one commit
    refs: int = 5_000  # branches and tags of one repository beside the tags of versions
    href_ttl_s: int = 3600
    uploads_at_once: int = 64  # of one server; a token gets another slot while more are free than it holds
    head_s: float = 10  # from a request's first byte, or the connection's start, to the end of the head
    body_grace_s: float = 30  # how far a body may fall behind the minimum rate
    body_bytes_per_second: int = 1024  # minimum rate of a body while the server waits for it
    body_s: float = 4 * 3600  # total time that the server waits for one body
    answer_stall_s: float = 120  # how long a client may read nothing of its answer before the server disconnects
    database_connections: int = 20  # of one server to PostgreSQL
    token_requests_per_minute: int = 0  # of one token, at one server; a burst may use a whole minute's share
    address_requests_per_minute: int = 0  # of one address without a valid token, at one server
    similar_requests_per_minute: int = 30  # for like updates, of one token, or of one address without one
    token_upload_bytes_per_day: int = 0  # of one token, by LFS and Xet
    xet_free_bytes: int = 256 * MEBIBYTE  # of files that one user may unpack in a day, however few chunks they need
    xet_ratio: int = 16  # bytes of files that each sent byte of chunks allows beyond these
    namespace_bytes: int = 0  # of all commits and uploads; each file counts once in a repository
    namespace_repos: int = 0
    namespace_webhooks: int = 20  # of a namespace and its repositories
    webhook_retry_s: int = 5  # before the first repeat of a failed delivery; each further wait is four times as long
    git_at_once: int = 8  # clones and fetches by git of one server, shared as uploads are
    git_commits: int = 20_000  # of a repository that git may clone
    git_entries: int = 2_000_000  # of the folders that change in such a repository, over all commits
    git_pack_bytes: int = 1024 * MEBIBYTE  # of what one clone or fetch gets beside files in LFS
    log_days: int = 0  # of the log of changes; older entries go, 0 keeps all
    followers_at_once: int = 512  # requests of one server that wait for the next event

    def with_values(self, assignments: tuple[str, ...]) -> ServerLimits:
        """Return these limits with `NAME=VALUE` applied; a number of bytes may have a unit (`10GB`, `512MiB`).

        Raises:
            UsageProblem: an unknown limit, a value that is not a whole number, or 0 for a limit that needs a bound.
        """
        known = {f.name: f.default for f in fields(self)}
        changed: dict[str, Any] = {}
        for text in assignments:
            name, _, value = text.partition("=")
            least = 0 if known.get(name) == 0 else 1
            number = parse_amount(value, in_bytes="bytes" in name) if name in known else None
            if number is None or number < least:
                size = ", or a size such as 10GB or 512MiB" if "bytes" in name else ""
                raise UsageProblem(
                    f"limit `{shown(text)}`: expected NAME=VALUE with a whole number above 0{size}",
                    hint=f"the limits are {', '.join(sorted(known))}",
                )
            changed[name] = number
        return replace(self, **changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Place:
    """A bucket and its address.

    `prefix` is empty or ends in a slash. `endpoint` is None for AWS; `public_endpoint` is the address for clients where
    that differs. Credentials come from the environment as for every S3 client (`AWS_ACCESS_KEY_ID` and so on, a web
    identity, or the machine's own role).
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    region: str = "us-east-1"
    link_ttl_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one server.

    `public_url` is the address that clients use when the server is behind a proxy; None takes the address of each
    request. `secret` signs short-lived links, and its holder can upload; servers that share a database share it. `s3`
    is None when blobs lie under `root`. The server believes X-Forwarded-For only from `trusted_proxies`. Webhooks reach
    public addresses by https, and those in `webhook_networks` also by http. With `derives`, the server itself makes the
    records of weights that its pages show. `sign_in_file` names the issuer at which people sign in; None leaves tokens
    as the only way. The registry keeps what `witnesses` co-sign of its log.
    """

    root: Path
    secret: bytes = field(repr=False)
    database_url: str | None = None
    public_url: str | None = None
    anonymous_read: bool = True
    limits: ServerLimits = ServerLimits()
    s3: S3Place | None = None
    trusted_proxies: tuple[Network, ...] = ()
    webhook_networks: tuple[Network, ...] = ()
    log_requests: bool = False
    derives: bool = True
    sign_in_file: Path | None = None
    witnesses: tuple[LogKey, ...] = ()

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the database; by default, a SQLite file under `root`."""
        return self.database_url or f"sqlite:///{self.root / 'registry.db'}"


def load_settings(
    root: Path,
    *,
    serves: bool = True,
    secret_file: Path | None = None,
    public_url: str | None = None,
    limits: ServerLimits | None = None,
    **more: Any,
) -> Settings:
    """Return the settings of a server over `root`, which is created when absent; `secret_file` holds its secret.

    Without `secret_file`, the secret lies in `root`; the first start creates it. What does not serve needs no secret
    and creates nothing.
    """
    secret = b""
    if serves:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        close_to_others(root)
        secret = _read_secret(secret_file) if secret_file else _secret(root / "secret")
    return Settings(
        root=root,
        secret=secret,
        public_url=public_url.rstrip("/") if public_url else None,
        limits=limits or ServerLimits(),
        **more,
    )


def close_to_others(root: Path) -> None:
    """Take from other users of the machine what earlier versions, or `mkdir`, left them in the folder of a registry.

    Folders of another owner stay: a volume that its platform mounts has the rights that it was given.
    """
    for path in (root, *root.iterdir()):
        is_link, mode = path.is_symlink(), path.lstat().st_mode & 0o777
        if not is_link and mode & 0o077:
            with contextlib.suppress(PermissionError):
                path.chmod(mode & 0o700)


def parse_s3(url: str, *, endpoint: str | None, public_endpoint: str | None, region: str, link_ttl_s: int) -> S3Place:
    """Parse `s3://bucket[/prefix]`.

    Raises:
        UsageProblem: `url` or an endpoint is malformed.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise UsageProblem(f"blobs `{shown(url)}`: expected s3://BUCKET or s3://BUCKET/PREFIX")
    for name, value in (("endpoint", endpoint), ("public endpoint", public_endpoint)):
        if value is not None and not value.startswith(("http://", "https://")):
            raise UsageProblem(f"S3 {name} `{shown(value)}`: expected a URL such as https://s3.example.org")
    prefix = prefix.strip("/")
    return S3Place(
        bucket=bucket,
        prefix=f"{prefix}/" if prefix else "",
        endpoint=endpoint.rstrip("/") if endpoint else None,
        public_endpoint=public_endpoint.rstrip("/") if public_endpoint else None,
        region=region,
        link_ttl_s=link_ttl_s,
    )


def parse_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Parse addresses and networks such as `10.0.0.0/8`.

    Raises:
        UsageProblem: a text that is neither.
    """
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError:
            raise UsageProblem(f"`{shown(text)}`: expected an address or a network such as 10.0.0.0/8") from None
    return tuple(found)


def _secret(path: Path) -> bytes:
    if not path.exists():
        temporary = path.with_name(f"secret.{secrets.token_hex(8)}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(secrets.token_bytes(SECRET_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)  # two servers that start at the same time agree on one secret
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    try:
        secret = read_plain(path, _SECRET_LIMIT_BYTES)
    except OSError as error:
        raise UsageProblem(f"`{shown(str(path))}`: {error.strerror}", hint=CHECK_FILE) from None
    if len(secret) != SECRET_BYTES:
        raise UsageProblem(
            f"`{shown(str(path))}`: expected {SECRET_BYTES} bytes, found {len(secret)}",
            hint="remove the file to make a new secret; upload links of the last hour stop working",
        )
    return secret


def _read_secret(path: Path) -> bytes:
    try:
        secret = read_plain(path, _SECRET_LIMIT_BYTES).strip()
    except OSError as error:
        raise UsageProblem(f"secret file `{shown(str(path))}`: {error.strerror}", hint=CHECK_FILE) from None
    if not SECRET_BYTES <= len(secret) <= _SECRET_LIMIT_BYTES:
        raise UsageProblem(
            f"secret file `{shown(str(path))}`: expected {SECRET_BYTES} to {_SECRET_LIMIT_BYTES} bytes, "
            f"found {len(secret)}",
            hint="make a secret: `openssl rand -hex 32 > secret`",
        )
    return secret
