"""One registered base: its fingerprint and tensors, its file, and the components of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final

from adapterhub.core.digests import canonical_json, strict_json
from adapterhub.core.errors import BaseNotFound, Malformed, SpecError, shown
from adapterhub.core.made_names import made_name
from adapterhub.core.specs import BaseSpec, looks_like_revision
from adapterhub.formats.base.fingerprint import BaseFingerprint, fingerprint_tensors
from adapterhub.formats.base.hints import BaseHints
from adapterhub.formats.diffusion.components import COMPONENTS, stated_component
from adapterhub.formats.documented import Documented
from adapterhub.formats.safetensors.facts import TensorFacts

SCHEMA: Final = "adapterhub/base/1"
LIMIT_BYTES: Final = 512 << 20
_KEYS: Final = ("schema", "alias", "path", "hub", "fingerprint", "hints", "tensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests(Documented, keys="weights tensors structure files?", title="Fingerprint"):
    """The [fingerprint](fingerprint.md) of a base."""

    weights: Annotated[str, "digest of names and values"]
    tensors: Annotated[str, "digest of values"]
    structure: Annotated[str, "digest of names and shapes"]
    files: Annotated[str | None, "digest of its files, if known"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BaseRecord(Documented, keys="alias path fingerprint=digests hints=names parts?=by_component", title="Base"):
    """One base. `alias` is "" for a folder that is not registered; `tensors` are sorted by name, buffers too.

    `components`: for a pipeline of several models, the hints of each; its tensors are named `unet.conv_in.weight`.
    `component`: the one that this record is, of a pipeline; `path` is its folder, or the file of the whole pipeline.
    """

    alias: Annotated[str, "`sdxl`, or `sdxl/unet` for a component"]
    path: Annotated[Path | None, "its folder, or the file of the whole pipeline"]
    hub: str | None
    fingerprint: BaseFingerprint
    hints: BaseHints
    tensors: tuple[TensorFacts, ...]
    components: Mapping[str, BaseHints] = field(default_factory=dict, hash=False)
    component: str = ""

    @property
    def label(self) -> str:
        """Its name in messages: alias, else Hub id, else folder."""
        return self.alias or self.hub or str(self.path or self.fingerprint.weights)

    @property
    def digests(self) -> Digests:
        """Its fingerprint without the samples."""
        own = self.fingerprint
        return Digests(weights=own.weights, tensors=own.tensors, structure=own.structure, files=own.files or None)

    @property
    def names(self) -> Mapping[str, Any]:
        """Names for display, never proof, such as `hub_id`, `model_type` and `parameters`."""
        found: Mapping[str, Any] = self.hints.to_json()
        return found

    @property
    def by_component(self) -> Mapping[str, BaseRecord] | None:
        """Of a pipeline, each component by its name."""
        return {part.component: part for part in self.parts()} or None

    def __repr__(self) -> str:
        return f"<Base {self.label}, {len(self.tensors)} tensors, {self.fingerprint.weights[:19]}>"

    def to_bytes(self) -> bytes:
        """The record's file."""
        value: dict[str, Any] = {
            "schema": SCHEMA,
            "alias": self.alias,
            "path": str(self.path) if self.path else None,
            "hub": self.hub,
            "fingerprint": self.fingerprint.to_json(),
            "hints": self.hints.to_json(),
            "tensors": [fact.to_json() for fact in self.tensors],
        }
        if self.components:
            value["components"] = {name: hints.to_json() for name, hints in self.components.items()}
        return canonical_json(value)

    def part(self, component: str) -> BaseRecord:
        """One component of a pipeline as a base of its own, under the names that the model itself has.

        Raises:
            BaseNotFound: the pipeline has no such component.
        """
        if component not in self.components:
            listed = ", ".join(f"`{self.label}/{name}`" for name in self.components) or "it is one model"
            raise BaseNotFound(f"no component `{shown(component)}` in `{self.label}`", hint=f"expected {listed}")
        fingerprint, tensors = _part(self.tensors, component)
        return replace(
            self,
            alias=f"{self.alias}/{component}" if self.alias else "",
            path=self.path / component if self.path and self.path.suffix != ".safetensors" else self.path,
            fingerprint=fingerprint,
            hints=replace(self.components[component], hub_id=self.hints.hub_id, commit=self.hints.commit),
            tensors=tensors,
            components={},
            component=component,
        )

    def parts(self) -> tuple[BaseRecord, ...]:
        """Every component of a pipeline; nothing for a base that is one model."""
        return tuple(self.part(component) for component in self.components)

    def narrowed(
        self,
        modules: Iterable[str] = (),
        annotations: Mapping[str, Any] | None = None,
        *,
        declared: BaseFingerprint | None = None,
    ) -> BaseRecord:
        """The component of a pipeline that an adapter is for.

        It is the one that the adapter has `declared` as its base, else as its `annotations` state, else by its
        `modules`. The record itself where several components, or none, have all of them.
        """
        for part in self.parts():
            if declared is not None and part.fingerprint.weights == declared.weights:
                return part
        stated = stated_component(annotations or {})
        if stated in self.components:
            return self.part(stated)
        wanted = list(modules)
        fitting = [part for part in self.parts() if wanted and part.has(wanted)]
        return fitting[0] if len(fitting) == 1 else self

    def has(self, modules: list[str]) -> bool:
        """Whether the base has all of an adapter's modules, under the names of either release of transformers."""
        from adapterhub.formats.modules.base_names import find_names

        own = frozenset(fact.name.rpartition(".")[0] for fact in self.tensors)
        names = find_names(modules, own)
        return all(names.here(module) in own for module in modules)

    def exported(self) -> BaseRecord:
        """The record for another machine: without the folder of this one."""
        return replace(self, alias=self.alias or default_alias(self), path=None)

    @classmethod
    def parse(cls, raw: bytes, where: str) -> BaseRecord:
        """Read what `to_bytes` writes, strictly.

        Raises:
            Malformed: the message names the file, the place in it, and the problem.
        """
        try:
            return cls._read(strict_json(raw, limit_bytes=LIMIT_BYTES))
        except ValueError as error:
            raise Malformed(
                f"{shown(where, 200)}: not a usable base record: {error}",
                hint="delete the file and add the base again with `adapt base add PATH --as NAME`",
            ) from None

    @classmethod
    def _read(cls, value: object) -> BaseRecord:
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}")
        absent = [key for key in _KEYS if key not in value]
        if absent:
            raise ValueError(f"{absent[0]}: missing")
        for key, kinds in (("alias", (str,)), ("path", (str, type(None))), ("hub", (str, type(None)))):
            if not isinstance(value[key], kinds):
                raise ValueError(f"{key}: expected text, got {shown(value[key])}")  # noqa: TRY004 - gathered as one
        if not isinstance(value["tensors"], list):
            raise ValueError("tensors: expected a list")  # noqa: TRY004 - as above
        tensors = tuple(TensorFacts.from_json(t, f"tensors[{i}]") for i, t in enumerate(value["tensors"]))
        return cls(
            alias=value["alias"],
            path=Path(value["path"]) if value["path"] else None,
            hub=value["hub"],
            fingerprint=BaseFingerprint.from_json(value["fingerprint"], "fingerprint"),
            hints=BaseHints.from_json(value["hints"], "hints"),
            tensors=tensors,
            components=_components(value.get("components", {}), tensors),
        )


def _components(value: object, tensors: Iterable[TensorFacts]) -> dict[str, BaseHints]:
    """The components of a record, which must be those of its tensors."""
    if not isinstance(value, dict) or not value.keys() <= set(COMPONENTS):
        raise ValueError(f"components: expected an object by {', '.join(COMPONENTS)}, got {shown(value)}")
    if value and {fact.name.partition(".")[0] for fact in tensors} != value.keys():
        raise ValueError("components: expected the first part of every tensor's name, and no other")
    return {name: BaseHints.from_json(value[name], f"components.{name}") for name in COMPONENTS if name in value}


@lru_cache(maxsize=32)
def _part(tensors: tuple[TensorFacts, ...], component: str) -> tuple[BaseFingerprint, tuple[TensorFacts, ...]]:
    """Fingerprint and tensors of one component, without its name in front."""
    prefix = f"{component}."
    own = tuple(replace(t, name=t.name[len(prefix) :]) for t in tensors if t.name.startswith(prefix))
    return fingerprint_tensors(own), own


@lru_cache(maxsize=8)
def parsed(raw: bytes, where: str) -> BaseRecord:
    """As `BaseRecord.parse`, cached: every look at an adapter needs its base, whose record takes 15 ms to read."""
    return BaseRecord.parse(raw, where)


def check_alias(alias: str) -> None:
    """Raise unless `alias` is one word, which names a base everywhere.

    Raises:
        SpecError: it is a path, a Hub id or a digest.
    """
    if BaseSpec.parse(alias).kind != "alias":
        raise SpecError(alias, "not an alias, expected one word such as `base-7b`")


def default_alias(record: BaseRecord) -> str:
    """The name of the repository or folder in lower case; a dash replaces each character that aliases forbid."""
    name = record.hub.rpartition("/")[2] if record.hub else record.path.name if record.path else ""
    alias = made_name(name)
    hint = f"`adapt base add {record.path} --as NAME` gives it one"
    if not alias or looks_like_revision(alias):
        raise SpecError(name, "no alias can be made of this folder's name", hint=hint)
    try:
        check_alias(alias)
    except SpecError as error:
        raise SpecError(name, f"no alias can be made of this folder's name: {error.reason}", hint=hint) from None
    return alias
