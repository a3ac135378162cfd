"""The settings of a serving process, passed through the environment to the engine's processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.home import default_root
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.inference.serving.aliases import TTL_S

_PREFIX: Final = "ADAPTERHUB_SERVE_"
_POLICIES: Final = ("require", "warn", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """The sources of adapters while an engine runs, and the limits on what it gets.

    `max_rank` is the engine's own limit, None if unknown. `remote` is the only server to search, by name or URL; None
    means the remotes that have the namespace of a request. `signatures` overrides the policies of the library. With
    `follow`, the server follows the events of its registries. `deny` and `deny_file` list the builds that are not
    served, as `access.denied.Denied` reads them. An alias is looked up again after `alias_ttl_s` seconds. `tenants` is
    the file of the tenants, `audit_log` the file of the audit log, `route` the routing file of the model name `auto`.
    `preload` and `pins` name adapters that are loaded before the first request. With `tested`, nothing is served
    without a PASS on the served base, whatever the policy says.
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
        """Return the environment variables from which `from_environ` reads these settings.

        None for one that is not set.
        """
        found = {"ADAPTERHUB_HOME": str(self.root.absolute())}
        for setting in _settings():
            value = getattr(self, setting.name)
            if value not in {setting.default, None, ()}:
                found[_variable(setting)] = _written(value)
        return found

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ServeSettings:
        """Return the settings in `environ`, with defaults for missing ones.

        Raises:
            UsageProblem: a value is invalid; names the variable.
        """
        given = {one: text for one in _settings() if (text := environ.get(_variable(one)))}
        read = {one.name: _READERS[str(one.type)](_variable(one), text) for one, text in given.items()}
        signatures = read.get("signatures")
        if signatures is not None and signatures not in _POLICIES:
            raise UsageProblem(f"{_PREFIX}SIGNATURES is `{shown(signatures)}`, expected {', '.join(_POLICIES)}")
        return cls(root=default_root(environ).absolute(), **read)


def _settings() -> Iterator[Field[Any]]:
    return (one for one in fields(ServeSettings) if one.name != "root")


def _variable(setting: Field[Any]) -> str:
    return _PREFIX + {"pins": "PIN"}.get(setting.name, setting.name.upper())


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return "\n".join(value)
    if isinstance(value, Path):
        return str(value.absolute())
    return f"{value:g}" if isinstance(value, float) else str(int(value) if isinstance(value, bool) else value)


def _rank(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UsageProblem(f"{variable} is `{shown(text)}`, expected a rank of at least 1")
    return int(text)


def _seconds(variable: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageProblem(f"{variable} is `{shown(text)}`, expected seconds of at least 0")
    return seconds


_READERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "int | None": _rank,
    "float": _seconds,
    "bool": lambda _, text: text != "0",
    "str | None": lambda _, text: text,
    "Path | None": lambda _, text: Path(text),
    "tuple[str, ...]": lambda _, text: tuple(text.splitlines()),
}
"""How the text of a variable is read, by the type of the setting."""
