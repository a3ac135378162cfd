"""The derived record of a build: what its weights are like, module by module, small enough to keep beside it.

It follows only from `adapter_config.json` and `adapter_model.safetensors`, so it may be deleted and made again at any
time; `deriving` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from adapterhub.core.digests import Digest
from adapterhub.formats.documented import Documented

SCHEMA: Final = "adapterhub/derived/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecord(
    Documented, keys="name kind out in=width parts rank scale norm effective_rank singular_values=values reason"
):
    """One module. The figures are None if they were not computed; `reason` then holds the cause."""

    name: str
    kind: Annotated[str, "linear, conv, embedding or experts"]
    out: int
    width: Annotated[int, "input width"]
    parts: int
    rank: int
    scale: float
    norm: Annotated[float | None, "Frobenius norm of the update"] = None
    effective_rank: Annotated[float | None, "exponential of the entropy of the singular values"] = None
    values: Annotated[tuple[float, ...], "the largest singular values, descending"] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord(Documented):
    """Whether an engine reads the adapter as it was trained, as far as that shows without its base."""

    engine: str
    reads: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedRecord(Documented, keys="schema weights config norm others modules findings engines reason"):
    """The derived record of one build. Without modules, `reason` holds the cause.

    `weights` and `config` are the digests of the two files. `norm` is the Frobenius norm of the whole update. `others`
    counts the tensors that are not factors. `findings` are those of the config and the numbers; `adapt verify` looks at
    more.
    """

    weights: Digest
    config: Digest
    modules: tuple[ModuleRecord, ...] = ()
    norm: Annotated[float | None, "Frobenius norm of the whole update"] = None
    others: int = 0
    findings: Annotated[tuple[tuple[str, str], ...], "code and text, as `adapt verify` has them"] = ()
    engines: tuple[EngineRecord, ...] = ()
    reason: str = ""
    schema: str = SCHEMA

    @classmethod
    def from_json(cls, value: Any) -> DerivedRecord:
        """Read the value that `to_json` makes.

        Raises:
            ValueError: it has another schema, or another form; make the record again.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']}, expected {SCHEMA}")
            attributes = ModuleRecord.document_attributes()
            modules = tuple(_module(one, attributes) for one in value["modules"])
            findings = tuple((str(code), str(text)) for code, text in value["findings"])
            engines = tuple(
                EngineRecord(**one | {"reasons": tuple(one["reasons"]), "notes": tuple(one["notes"])})
                for one in value["engines"]
            )
            lists = {"modules": modules, "findings": findings, "engines": engines}
            return cls(**{key: value[key] for key in cls.document_attributes()} | lists)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a derived record: {error}") from None


def _module(value: Mapping[str, Any], attributes: Mapping[str, str]) -> ModuleRecord:
    fields = {attribute: value[key] for key, attribute in attributes.items()}
    return ModuleRecord(**fields | {"values": tuple(fields["values"])})
