"""What the front of llama.cpp's server makes of the names in requests: one digest, or the base."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from packaging.version import Version

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, AdapterNotFound, SpecError, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.access.tenants import Tenant
from adapterhub.inference.serving.aliases import ServedAliases
from adapterhub.inference.serving.refusal import ensure_unlike_base

_LOOK_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An adapter that the engine has loaded, under the name that lists show; `label` is such as `legal-qa==1.2.0`.

    `calling` says how to ask it, for the list of models.
    """

    name: str
    label: str
    digest: Digest
    calling: Mapping[str, Any] = field(default_factory=dict)


class Names:
    """Leads each name of a request to the digest of one loaded adapter, or to the base.

    `served` are in the order in which the engine loaded them, each digest once. `moving` are the aliases of the start;
    `aliases` says what these and others mean, among the adapters that were loaded.

    Raises:
        UsageProblem: an adapter has the name of the base.
    """

    def __init__(
        self,
        base: str,
        served: Sequence[Served] = (),
        *,
        base_digest: str = "",
        denied: Denied | None = None,
        moving: Sequence[str] = (),
        aliases: ServedAliases | None = None,
    ) -> None:
        self.base, self.base_digest = base, base_digest
        self.served: dict[Digest, Served] = {}
        for one in served:
            self.served.setdefault(one.digest, one)
        self._by_name = {one.name: one for one in served}
        self.denied = denied or Denied()
        self._moving, self._aliases = tuple(moving), aliases
        self._looking: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        for one in served:
            ensure_unlike_base(base, one.name, one.label)

    # ------------------------------------------------------------ names
    def find(self, name: str, key: str | None = None) -> Served | None:
        """The adapter that `name` means: by its served name, or the newest that fits it as a spec; None for the base.

        `key` chooses between the targets of an alias. May wait for a server that knows an alias.

        Raises:
            AdapterNotFound: it means neither.
            AdapterDenied: it means an adapter that is not served any more.
        """
        if name == self.base:
            return None
        if self._aliases is not None and "@" in name:
            name = self._meant(self._aliases, name, key)
        fitting = [self._by_name[name]] if name in self._by_name else self._fitting(name)
        allowed = [one for one in fitting if self.denied.reason(one.label, one.digest) is None]
        if fitting and not allowed:
            self.denied.ensure_allowed(fitting[0].label, fitting[0].digest)
        if not allowed:
            raise AdapterNotFound(f"no adapter `{shown(name)}` is served; GET /v1/models lists them")
        return allowed[0]

    def may_wait(self, name: str) -> bool:
        """Whether `find` may wait for a server that knows the alias `name`."""
        return self._aliases is not None and "@" in name and self._aliases.is_due(name)

    def _fitting(self, name: str) -> list[Served]:
        """The adapters that fit `name` as a spec, the newest first."""
        try:
            spec = AdapterSpec.parse(name)
        except SpecError:
            return []
        if spec.base is not None and spec.base.text != self.base:
            return []
        fitting = []
        for at, one in enumerate(self.served.values()):
            full_name, version = one.label.rsplit("==", 1)
            if (
                full_name == spec.full_name
                and spec.matches(version)
                and one.digest.startswith(spec.digest_prefix or "")
            ):
                fitting.append((Version(version), at, one))
        return [one for *_, one in sorted(fitting, key=lambda found: found[:2], reverse=True)]

    # ------------------------------------------------------------ aliases
    def refresh(self) -> bool:
        """Look every alias up again at its next request."""
        if self._aliases is not None:
            self._aliases.forget()
        return self._aliases is not None

    def _meant(self, aliases: ServedAliases, name: str, key: str | None) -> str:
        """The exact spec that an alias means; other names unchanged.

        One request looks it up. Those that come meanwhile take its old meaning, and wait only where it has none.
        """
        if aliases.is_due(name):
            with self._lock:
                looking = self._looking.get(name)
                is_ours = looking is None
                if looking is None:
                    looking = self._looking[name] = threading.Event()
            if is_ours:
                try:
                    with contextlib.suppress(AdapterHubError):
                        aliases.look_up(name, self._ensure_loaded)
                finally:
                    with self._lock:
                        del self._looking[name]
                    looking.set()
            elif aliases.chosen(name, key) is None:
                looking.wait(_LOOK_S)
        return aliases.chosen(name, key) or name

    def _ensure_loaded(self, specs: Sequence[str]) -> None:
        for spec in map(AdapterSpec.parse, specs):
            if spec.digest_prefix not in self.served:
                raise AdapterNotFound(f"{spec.full_name}{spec.specifiers} was not loaded when the server started")

    # ------------------------------------------------------------ what the engine and the client get
    def scales(self, served: Served | None) -> list[dict[str, float]]:
        """The number and scale of each loaded adapter: 1 for `served`, 0 for every other."""
        chosen = None if served is None else served.digest
        return [{"id": at, "scale": float(digest == chosen)} for at, digest in enumerate(self.served)]

    def may_use(self, tenant: Tenant, served: Served | None) -> bool:
        """Whether a tenant may use the adapter, or the base."""
        return tenant.base if served is None else tenant.allows(served.label.partition("==")[0])

    def listing(self, tenant: Tenant | None = None, others: Sequence[str] = ()) -> dict[str, Any]:
        """The answer to GET /v1/models; `others` are names that every client may use."""
        rows = [(self.base, None), *((one.name, one) for one in self._by_name.values())]
        names = [name for name, one in rows if tenant is None or self.may_use(tenant, one)]
        names += [name for name in self._moving if tenant is None or tenant.allows(name.partition("@")[0])]
        made: list[dict[str, Any]] = []
        for name in dict.fromkeys((*names, *others)):
            calling = self._by_name[name].calling if name in self._by_name else None
            row = {"id": name, "object": "model", "owned_by": "adapterhub"}
            made.append(row | {"calling": calling} if calling else row)
        return {"object": "list", "data": made}
