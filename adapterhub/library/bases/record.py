"""What the library knows of one base: its fingerprint, its tensors, its names, and of a copy its sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final

from adapterhub.core.digests import canonical_json, strict_json
from adapterhub.core.errors import BaseNotFound, Malformed, SpecError, shown
from adapterhub.core.specs import BaseSpec, looks_like_revision, made_name
from adapterhub.formats.base.fingerprint import (
    BaseFingerprint,
    BaseHints,
    BaseVerdict,
    fingerprint_tensors,
    structure_of,
    weights_of,
)
from adapterhub.formats.diffusion.components import COMPONENTS, stated_component
from adapterhub.formats.documented import Documented
from adapterhub.formats.safetensors.header import TensorFacts
from adapterhub.library.bases.link import CopyLink, links_at

SCHEMA: Final = "adapterhub/base/1"
LIMIT_BYTES: Final = 512 << 20
ACCEPTS: Final = "likely"
"""What a user may accept of a copy."""
_KEYS: Final = ("schema", "alias", "path", "hub", "fingerprint", "hints", "tensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests(Documented, keys="weights tensors structure files?", title="Fingerprint"):
    """The [fingerprint](base-identity.md) of a base."""

    weights: Annotated[str, "digest of names and values"]
    tensors: Annotated[str, "digest of values"]
    structure: Annotated[str, "digest of names and shapes"]
    files: Annotated[str | None, "digest of its files, if known"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied(Documented):
    """What the library knows of the source of a quantised copy."""

    form: Annotated[str | None, "the format of most of its weights, such as `fp8-block`"]
    unknown: Annotated[str | None, "a format in it that cannot be read here"]
    sources: Annotated[tuple[CopyLink, ...], "the registered bases that it is a copy of, one model in all precisions"]
    accepts: Annotated[str, "`likely`: the user accepted what is no proof; else empty"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BaseRecord(Documented, keys="alias path fingerprint=digests hints=names copy? parts?=by_component", title="Base"):
    """One base. `alias` is "" for a folder that is not registered; `tensors` are sorted by name, buffers too.

    `components`: for a pipeline of several models, the hints of each; its tensors are named `unet.conv_in.weight`.
    `component`: the one that this record is, of a pipeline; `path` is its folder, or the file of the whole pipeline.
    `links`, `accepts`: of a quantised copy, the bases that it was made from, and whether the user accepts likely ones.
    """

    alias: Annotated[str, "`sdxl`, or `sdxl/unet` for a component"]
    path: Annotated[Path | None, "its folder, or the file of the whole pipeline"]
    hub: str | None
    fingerprint: BaseFingerprint
    hints: BaseHints
    tensors: tuple[TensorFacts, ...]
    components: Mapping[str, BaseHints] = field(default_factory=dict, hash=False)
    component: str = ""
    links: tuple[CopyLink, ...] = ()
    accepts: str = ""

    @property
    def is_copy(self) -> bool:
        """Whether it is one model, in codes and scales."""
        return self.fingerprint.copy is not None and not self.components

    @property
    def copy(self) -> Copied | None:
        """Of a quantised copy, what is known of its source."""
        facts = self.fingerprint.copy
        if facts is None or not self.is_copy:
            return None
        return Copied(
            form=facts.form or None, unknown=facts.unknown or None, sources=self.links_that_count, accepts=self.accepts
        )

    @property
    def links_that_count(self) -> tuple[CopyLink, ...]:
        """The links to sources of the strongest kind that it has: proven, then accepted, then likely."""
        sources = tuple(link for link in self.links if link.is_source)
        best = min(map(_rank_of, sources), default=0)
        return tuple(link for link in sources if _rank_of(link) == best)

    @property
    def standing(self) -> str:
        """How a copy is known to be one: `proven`, `accepted` or `likely`; "" if no source is registered."""
        return next((STANDINGS[_rank_of(link)] for link in self.links_that_count), "")

    @property
    def weights(self) -> tuple[TensorFacts, ...]:
        """The tensors that adapters are made for, buffers too: those of its source for a quantised copy."""
        return weights_of(self.fingerprint, self.tensors)

    @property
    def known_weights(self) -> tuple[TensorFacts, ...] | None:
        """As `weights`; None for a copy in a format that is not known here, which has more than can be named."""
        copy = self.fingerprint.copy
        return None if copy is not None and copy.unknown else self.weights

    @property
    def label(self) -> str:
        """Its name in messages: its own, the Hub id or the folder."""
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
        """Return the record's file."""
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
        value |= {"links": [link.to_json_kept() for link in self.links]} if self.links else {}
        return canonical_json(value | ({"accepts": self.accepts} if self.accepts else {}))

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
            links=(),
            accepts="",
        )

    def parts(self) -> tuple[BaseRecord, ...]:
        """Every component of a pipeline; nothing for a base that is one model."""
        return tuple(map(self.part, self.components))

    def narrowed(
        self,
        modules: Iterable[str] = (),
        annotations: Mapping[str, Any] | None = None,
        *,
        declared: BaseFingerprint | None = None,
    ) -> BaseRecord:
        """Return the component of a pipeline that an adapter is for.

        It is the one that the adapter has `declared` as its base, or the one that its `annotations` state, or the one
        with its `modules`. The record itself where several components, or none, have all of them.
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
        from adapterhub.formats.naming.files import find_in_files

        shapes = {fact.name: fact.shape for fact in self.weights}
        return find_in_files(dict.fromkeys(modules), shapes, self.hints.model_type).is_complete

    def exported(self) -> BaseRecord:
        """Return the record for another machine: without the folder, the links and the acceptance of this one."""
        return replace(self, alias=self.alias or default_alias(self), path=None, links=(), accepts="")

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
                raise ValueError(f"{key}: expected text, got {shown(value[key])}")
        if not isinstance(value["tensors"], list):
            raise ValueError("tensors: expected a list")
        tensors = tuple(TensorFacts.from_json(t, f"tensors[{i}]") for i, t in enumerate(value["tensors"]))
        return cls(
            alias=value["alias"],
            path=Path(value["path"]) if value["path"] else None,
            hub=value["hub"],
            fingerprint=BaseFingerprint.from_json(value["fingerprint"], "fingerprint"),
            hints=BaseHints.from_json(value["hints"], "hints"),
            tensors=tensors,
            components=_components(value.get("components", {}), tensors),
            links=links_at(value.get("links", []), "links"),
            accepts=_accepts(value.get("accepts", "")),
        )


STANDINGS: Final = ("proven", "accepted", "likely")


def _rank_of(link: CopyLink) -> int:
    likely = link.verdict is BaseVerdict.LIKELY_SAME_QUANTISED
    return 0 if not likely else 1 if link.accepted else 2


def _accepts(value: object) -> str:
    if value not in ("", ACCEPTS):
        raise ValueError(f"accepts: expected `{ACCEPTS}`, got {shown(value)}")
    return str(value)


def _components(value: object, tensors: Iterable[TensorFacts]) -> dict[str, BaseHints]:
    """Return the components of a record, which must be those of its tensors."""
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


def fingerprinted_again(record: BaseRecord) -> BaseFingerprint:
    """Return the fingerprint that the tensors of a record have.

    Raises:
        ValueError: there are no weights, or those of a copy's source are not the ones that it records.
    """
    given, copy = record.fingerprint, record.fingerprint.copy
    parts = {fact.name for fact in record.tensors} - given.samples.keys() if copy else set()
    shapes = ((fact.name, fact.shape) for fact in record.weights)
    if copy is not None and not copy.unknown and structure_of(shapes) != copy.structure:
        raise ValueError("copy.structure: expected the digest of the source's names and shapes")
    return fingerprint_tensors(record.tensors, files=given.files, copy=copy, parts=parts)


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
        raise SpecError(alias, "not the name of a base, expected one word such as `base-7b`")


def default_alias(record: BaseRecord) -> str:
    """Return the name of the repository or folder in lower case, a dash for each character that no name has."""
    name = record.hub.rpartition("/")[2] if record.hub else record.path.name if record.path else ""
    alias = made_name(name)
    hint = f"`adapt base add {record.path} --as NAME` gives it one"
    if not alias or looks_like_revision(alias):
        raise SpecError(name, "no name of a base can be made of this folder's name", hint=hint)
    try:
        check_alias(alias)
    except SpecError as error:
        raise SpecError(
            name, f"no name of a base can be made of this folder's name: {error.reason}", hint=hint
        ) from None
    return alias
