"""What the front of llama.cpp's server makes of the names in requests: one digest, or the base."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final

from packaging.version import Version

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, AdapterNotFound, SpecError, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.access.tenants import Tenant
from adapterhub.inference.serving.aliases import MovingNames, ServedAliases
from adapterhub.inference.serving.effects import AWAKE, Asleep
from adapterhub.inference.serving.refusal import ensure_unlike_base

_LOOK_UPS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An adapter that the engine has loaded, under the name that lists show; `label` is such as `legal-qa==1.2.0`.

    `calling` describes how to prompt it, for the list of models.
    """

    name: str
    label: str
    digest: Digest
    calling: Mapping[str, Any] = field(default_factory=dict)
    asleep: Asleep = AWAKE


def _looked_up_once(aliases: ServedAliases, threads: Executor) -> MovingNames:
    """Look an alias up that no request has named before; the requests that name it share the look-up."""

    async def known() -> ServedAliases:
        return aliases

    async def ensure(_: Sequence[str]) -> None:
        """Accept all: `Names.find` refuses adapters that the engine has not loaded."""

    return MovingNames(known, ensure, threads, threads)


class Names:
    """Leads each name of a request to the digest of one loaded adapter, or to the base.

    `served` are in the order in which the engine loaded them, each digest once. `moving` are the aliases of the start;
    `aliases` knows what these mean, and is asked once what another one means. `Swaps` looks them up again.

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
        self._take(served)
        self.denied = denied or Denied()
        self._moving = tuple(moving)
        self.threads = ThreadPoolExecutor(_LOOK_UPS, "adapterhub-names")
        self._aliases, self._unknown = aliases, None if aliases is None else _looked_up_once(aliases, self.threads)

    def naming(self, served: Sequence[Served], *, is_new: bool) -> Names:
        """Other names for loaded adapters: those of the same engine, or of a new one, which loaded `served`, in order.

        Raises:
            UsageProblem: an adapter has the name of the base.
        """
        made = copy(self)
        made.served = {} if is_new else dict(self.served)
        made._take(served)  # noqa: SLF001 - its own
        return made

    def _take(self, served: Sequence[Served]) -> None:
        for one in served:
            ensure_unlike_base(self.base, one.name, one.label)
        for one in served:
            self.served.setdefault(one.digest, one)
        self._by_name = {one.name: one for one in served}

    # ------------------------------------------------------------ names
    async def exact(self, name: str, key: str | None = None) -> str:
        """Return the exact spec that an alias means for a request key; other names unchanged."""
        if self._aliases is None or self._unknown is None or name == self.base:
            return name
        known = self._aliases.chosen(name, key)
        if known is None:
            with contextlib.suppress(AdapterHubError):  # `find` refuses what has no meaning
                return await self._unknown.exact(name, key)
        return known or name

    def find(self, name: str) -> Served | None:
        """Return the adapter that `name` means: by its served name, or the newest that fits it as a spec.

        None for the base.

        Raises:
            AdapterNotFound: it means neither.
            AdapterDenied: it means an adapter that is not served any more.
        """
        if name == self.base:
            return None
        fitting = [self._by_name[name]] if name in self._by_name else self._fitting(name)
        allowed = [one for one in fitting if self.denied.reason(one.label, one.digest) is None]
        if fitting and not allowed:
            self.denied.ensure_allowed(fitting[0].label, fitting[0].digest)
        if not allowed:
            raise AdapterNotFound(
                f"no adapter `{shown(name)}` is served; GET /v1/models lists them",
                hint="name one of those, or add it to the command line of `adapt serve`",
            )
        return allowed[0]

    def _fitting(self, name: str) -> list[Served]:
        """Return the adapters that fit `name` as a spec, the newest first."""
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

    # ------------------------------------------------------------ what the engine and the client get
    def scales(self, served: Served | None) -> list[dict[str, float]]:
        """Return the number and scale of each loaded adapter: 1 for `served`, 0 for every other."""
        chosen = None if served is None else served.digest
        return [{"id": at, "scale": float(digest == chosen)} for at, digest in enumerate(self.served)]

    def may_use(self, tenant: Tenant, served: Served | None) -> bool:
        """Return whether a tenant may use the adapter, or the base."""
        return tenant.base if served is None else tenant.allows(served.label.partition("==")[0])

    def listing(self, tenant: Tenant | None = None, others: Sequence[str] = ()) -> dict[str, Any]:
        """Return the answer to GET /v1/models; `others` are names that every client may use."""
        rows = [(self.base, None), *((one.name, one) for one in self._by_name.values())]
        names = [name for name, one in rows if tenant is None or self.may_use(tenant, one)]
        names += [name for name in self._moving if tenant is None or tenant.allows(name.partition("@")[0])]
        made: list[dict[str, Any]] = []
        for name in dict.fromkeys((*names, *others)):
            calling = self._by_name[name].calling if name in self._by_name else None
            row = {"id": name, "object": "model", "owned_by": "adapterhub"}
            made.append(row | {"calling": calling} if calling else row)
        return {"object": "list", "data": made}
