"""What the front of llama.cpp's server makes of the names in requests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.version import Version

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, AdapterNotFound, SpecError
from adapterhub.core.specs import AdapterSpec
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.access.tenants import Tenant
from adapterhub.inference.serving.aliases import ServedAliases


class Names:
    """Translates names for the engine.

    `adapters` are in the order in which the engine loaded them; `builds` has the full name with version and the digest
    of each, such as `("acme/legal-qa==1.2.0", "sha256:…")`, so that other spellings find them, too. `callings` say how
    to ask each, for the list of models. `moving` are the
    aliases of the start; `aliases` says what these and others mean, among the adapters that were loaded.
    """

    def __init__(
        self,
        base: str,
        adapters: Sequence[str],
        builds: Sequence[tuple[str, Digest]] = (),
        callings: Sequence[Mapping[str, Any]] = (),
        denied: Denied | None = None,
        base_digest: str = "",
        *,
        moving: Sequence[str] = (),
        aliases: ServedAliases | None = None,
    ) -> None:
        self.base = base
        self.base_digest = base_digest
        self._callings = dict(zip(adapters, callings, strict=False))
        self.adapters = tuple(adapters)
        self.builds = dict(zip(adapters, builds, strict=False))
        self.denied = denied or Denied()
        self._moving, self._aliases = tuple(moving), aliases
        self._looking = threading.Lock()

    def find(self, name: str, key: str | None = None) -> str | None:
        """The served name that `name` means: itself, or the newest adapter that fits it as a spec; None for neither.

        `key` chooses between the targets of an alias.

        Raises:
            AdapterDenied: it means an adapter that is not served any more.
        """
        if self._aliases is not None and "@" in name:
            name = self._meant(self._aliases, name, key)
        fitting = [name] if name == self.base or name in self.adapters else self._fitting(name)
        allowed = [one for one in fitting if one not in self.builds or self.denied.reason(*self.builds[one]) is None]
        if fitting and not allowed:
            self.denied.ensure_allowed(*self.builds[fitting[0]])
        return allowed[0] if allowed else None

    def _fitting(self, name: str) -> list[str]:
        """The served names of the adapters that fit `name` as a spec, the newest first."""
        try:
            spec = AdapterSpec.parse(name)
        except SpecError:
            return []
        if spec.base is not None and spec.base.text != self.base:
            return []
        fitting = []
        for at, (served, (label, digest)) in enumerate(self.builds.items()):
            full_name, version = label.rsplit("==", 1)
            if full_name == spec.full_name and spec.matches(version) and digest.startswith(spec.digest_prefix or ""):
                fitting.append((Version(version), at, served))
        return [served for *_, served in sorted(fitting, reverse=True)]

    def refresh(self) -> bool:
        """Look every alias up again at its next request."""
        if self._aliases is not None:
            self._aliases.forget()
        return self._aliases is not None

    def _meant(self, aliases: ServedAliases, name: str, key: str | None) -> str:
        """The exact spec that an alias means; other names unchanged. One request at a time looks it up."""
        if aliases.is_due(name) and self._looking.acquire(blocking=False):
            try:
                with contextlib.suppress(AdapterHubError):
                    aliases.look_up(name, self._ensure_loaded)
            finally:
                self._looking.release()
        return aliases.chosen(name, key) or name

    def _ensure_loaded(self, specs: Sequence[str]) -> None:
        for spec in map(AdapterSpec.parse, specs):
            if all(digest != spec.digest_prefix for _, digest in self.builds.values()):
                raise AdapterNotFound(f"{spec.full_name}{spec.specifiers} was not loaded when the server started")

    def scales(self, name: str) -> list[dict[str, float]]:
        """The number and scale of each adapter for requests that mean `name`, which `find` returned."""
        return [{"id": at, "scale": 1.0 if one == name else 0.0} for at, one in enumerate(self.adapters)]

    def label(self, name: str) -> str | None:
        """The name and version of a served adapter; None for the base."""
        return None if name == self.base else self.builds[name][0] if name in self.builds else name

    def may_use(self, tenant: Tenant, name: str) -> bool:
        """Whether a tenant may use the adapter, or the base, of that served name."""
        label = self.label(name)
        return tenant.base if label is None else tenant.allows(label.partition("==")[0].partition("@")[0])

    def listing(self, tenant: Tenant | None = None, others: Sequence[str] = ()) -> dict[str, Any]:
        """The answer to GET /v1/models; `others` are names that every client may use."""
        served = (self.base, *self.adapters, *self._moving)
        names = [*(name for name in served if tenant is None or self.may_use(tenant, name)), *others]
        rows: list[dict[str, Any]] = [{"id": name, "object": "model", "owned_by": "adapterhub"} for name in names]
        for row in rows:
            if row["id"] in self._callings:
                row["calling"] = self._callings[row["id"]]
        return {"object": "list", "data": rows}
