"""The settings of a serving process, passed through the environment to the engine's processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.disk.home import default_root
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.inference.serving.aliases import TTL_S

_MAX_RANK: Final = "ADAPTERHUB_SERVE_MAX_RANK"
_REMOTE: Final = "ADAPTERHUB_SERVE_REMOTE"
_OFFLINE: Final = "ADAPTERHUB_SERVE_OFFLINE"
_ALIAS_TTL: Final = "ADAPTERHUB_SERVE_ALIAS_TTL_S"
_SIGNATURES: Final = "ADAPTERHUB_SERVE_SIGNATURES"
_FOLLOW: Final = "ADAPTERHUB_SERVE_FOLLOW"
_DENY: Final = "ADAPTERHUB_SERVE_DENY"
_DENY_FILE: Final = "ADAPTERHUB_SERVE_DENY_FILE"
_TENANTS: Final = "ADAPTERHUB_SERVE_TENANTS"
_AUDIT_LOG: Final = "ADAPTERHUB_SERVE_AUDIT_LOG"
_PRELOAD: Final = "ADAPTERHUB_SERVE_PRELOAD"
_PIN: Final = "ADAPTERHUB_SERVE_PIN"
_ROUTE: Final = "ADAPTERHUB_SERVE_ROUTE"
_TESTED: Final = "ADAPTERHUB_SERVE_TESTED"
_POLICIES: Final = ("require", "warn", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """The sources of adapters while an engine runs, and the limits on what it gets.

    `max_rank` is the engine's own limit, None if unknown. `remote` is the only server to search, by name or URL; None
    means the remotes that have the namespace of a request. `signatures` overrides the policies of the library. With
    `follow`, the server follows the events of its registries. `deny` and `deny_file` list what is not served, as
    `access.denied.Denied` reads them. An alias is looked up again after `alias_ttl_s` seconds. `tenants` is the file of
    the tenants, `audit_log` the file of the audit log, `route` the routing file of the model name `auto`. `preload` and
    `pins` name adapters that are loaded before the first request. With `tested`, nothing is served without a PASS on
    the served base, whatever the policy says.
    """

    root: Path
    max_rank: int | None = None
    remote: str | None = None
    offline: bool = False
    signatures: str | None = None
    follow: bool = False
    deny: tuple[str, ...] = ()
    deny_file: Path | None = None
    alias_ttl_s: float = TTL_S
    tenants: Path | None = None
    audit_log: str | None = None
    preload: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    tested: bool = False
    route: Path | None = None

    def to_environ(self) -> dict[str, str]:
        """The environment variables from which `from_environ` reads these settings."""
        pairs = {
            "ADAPTERHUB_HOME": str(self.root.absolute()),
            _MAX_RANK: str(self.max_rank or ""),
            _REMOTE: self.remote or "",
            _OFFLINE: "1" if self.offline else "",
            _SIGNATURES: self.signatures or "",
            _FOLLOW: "1" if self.follow else "",
            _DENY: "\n".join(self.deny),
            _DENY_FILE: str(self.deny_file.absolute()) if self.deny_file else "",
            _ALIAS_TTL: f"{self.alias_ttl_s:g}" if self.alias_ttl_s != TTL_S else "",
            _TENANTS: str(self.tenants.absolute()) if self.tenants else "",
            _AUDIT_LOG: self.audit_log or "",
            _PRELOAD: "\n".join(self.preload),
            _PIN: "\n".join(self.pins),
            _TESTED: "1" if self.tested else "",
            _ROUTE: str(self.route.absolute()) if self.route else "",
        }
        return {name: value for name, value in pairs.items() if value}

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ServeSettings:
        """The settings in `environ`, with defaults for missing ones.

        Raises:
            UsageProblem: a value is invalid; names the variable.
        """
        rank, signatures = environ.get(_MAX_RANK, ""), environ.get(_SIGNATURES, "")
        if rank and not (rank.isascii() and rank.isdigit() and int(rank)):
            raise UsageProblem(f"{_MAX_RANK} is `{shown(rank)}`, expected a rank of at least 1")
        if signatures and signatures not in _POLICIES:
            raise UsageProblem(f"{_SIGNATURES} is `{shown(signatures)}`, expected {', '.join(_POLICIES)}")
        return cls(
            root=default_root(environ).absolute(),
            max_rank=int(rank) if rank else None,
            remote=environ.get(_REMOTE) or None,
            offline=environ.get(_OFFLINE, "") not in {"", "0"},
            signatures=signatures or None,
            follow=environ.get(_FOLLOW, "") not in {"", "0"},
            deny=tuple(environ.get(_DENY, "").splitlines()),
            deny_file=Path(named) if (named := environ.get(_DENY_FILE)) else None,
            alias_ttl_s=_seconds(environ.get(_ALIAS_TTL, "")),
            tenants=Path(named) if (named := environ.get(_TENANTS)) else None,
            audit_log=environ.get(_AUDIT_LOG) or None,
            preload=tuple(environ.get(_PRELOAD, "").splitlines()),
            pins=tuple(environ.get(_PIN, "").splitlines()),
            tested=environ.get(_TESTED, "") not in {"", "0"},
            route=Path(named) if (named := environ.get(_ROUTE)) else None,
        )


def _seconds(text: str) -> float:
    try:
        seconds = float(text or TTL_S)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageProblem(f"{_ALIAS_TTL} is `{shown(text)}`, expected seconds of at least 0")
    return seconds
