"""What one server is told at its start: where it keeps things, who may read, and how much it takes."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from adapterhub.errors import UsageProblem, shown

MEBIBYTE = 1 << 20
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what strangers send; sizes in bytes, times in seconds."""

    json_body_bytes: int = 4 * MEBIBYTE
    commit_body_bytes: int = 512 * MEBIBYTE
    regular_file_bytes: int = 10 * MEBIBYTE  # larger files go by LFS or Xet
    file_bytes: int = 1 << 40
    multipart_from_bytes: int = 256 * MEBIBYTE
    part_bytes: int = 64 * MEBIBYTE
    operations: int = 20_000  # of one commit
    files: int = 20_000  # of one repository at one commit
    href_ttl_s: int = 3600
    uploads_at_once: int = 64

    def with_values(self, assignments: tuple[str, ...]) -> Limits:
        """These limits with `NAME=VALUE` applied.

        Raises:
            UsageProblem: a name that is no limit, or a value that is no positive whole number.
        """
        known = {f.name for f in fields(self)}
        changed: dict[str, int] = {}
        for text in assignments:
            name, _, value = text.partition("=")
            if name not in known or not value.isascii() or not value.isdigit() or int(value) < 1:
                raise UsageProblem(
                    f"limit `{shown(text)}`: expected NAME=VALUE with a whole number above 0",
                    hint=f"the limits are {', '.join(sorted(known))}",
                )
            changed[name] = int(value)
        return replace(self, **changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One server. `public_url` is what clients see when a proxy stands before it; None: what each request was sent to.

    `secret` signs short-lived links; whoever has it can upload.
    """

    root: Path
    secret: bytes = field(repr=False)
    database_url: str | None = None
    public_url: str | None = None
    anonymous_read: bool = True
    limits: Limits = Limits()

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database: the given one, or a SQLite file under `root`."""
        return self.database_url or f"sqlite:///{self.root / 'registry.db'}"


def load_settings(
    root: Path,
    *,
    database_url: str | None = None,
    public_url: str | None = None,
    anonymous_read: bool = True,
    limits: Limits | None = None,
) -> Settings:
    """Settings over `root`, which is made when absent, with the secret that lies in it (made on the first start)."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Settings(
        root=root,
        secret=_secret(root / "secret"),
        database_url=database_url,
        public_url=public_url.rstrip("/") if public_url else None,
        anonymous_read=anonymous_read,
        limits=limits or Limits(),
    )


def _secret(path: Path) -> bytes:
    if not path.exists():
        temporary = path.with_name(f"secret.{secrets.token_hex(8)}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(secrets.token_bytes(SECRET_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)  # two first starts at once agree on one secret
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise UsageProblem(
            f"`{shown(str(path))}`: expected {SECRET_BYTES} bytes, found {len(secret)}",
            hint="remove the file; links that were handed out in the last hour stop working",
        )
    return secret
