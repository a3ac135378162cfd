"""A result as its tester states it: an in-toto statement about the manifest of one build, read strictly.

`reports.statement` writes the statement. Fields that this reader does not know are passed over, as in-toto says; all
that it knows are claims, until a signature says whose they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, cast

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import Digest, parse_digest, strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.documents import JSON_KINDS, DocumentReader

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
RESULT_SCHEMA: Final = "adapterhub/result/1"
RESULTS: Final = {"PASS": "PASSED", "CHANGED": "FAILED"}
"""The words of in-toto for verdicts; it has none for UNKNOWN."""

RESULT_LIMIT_BYTES: Final = 64 << 10
CLOCKS_DIFFER_S: Final = 300.0
"""How far ahead the clock of a tester may be."""

_LARGEST_SEQUENCE: Final = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What a statement says: the verdict on one manifest, by one contract, on one base.

    `rules` is the digest of the project's rules that were checked with the contract, None without any. `sequence`
    counts the statements of one key about one manifest; `time` is Unix time. `bounds` are those that decided.
    `base_alone` says that the base was measured, too.
    """

    name: Annotated[str, "as the tester names the build"]
    manifest: Digest
    contract: Digest
    base: Annotated[Digest, "of the base that was asked"]
    rules: Annotated[Digest | None, "digest of the rules that were checked, too"]
    dtype: str
    load_in: str
    verdict: Annotated[Literal["PASS", "CHANGED"], "`PASS` or `CHANGED`"]
    sequence: Annotated[int, "counts the results of one key on one build"]
    time: float
    bounds: Mapping[str, float] = field(default_factory=dict)
    base_alone: Annotated[bool, "whether the base was measured, too"] = False

    @property
    def question(self) -> tuple[object, ...]:
        """What was checked: a later statement on the same supersedes an earlier one."""
        return (*self._about, *(("base_alone",) if self.base_alone else ()))

    @property
    def _about(self) -> tuple[object, ...]:
        return self.manifest, self.contract, self.base, self.rules, self.dtype, self.load_in

    def is_outweighed_by(self, other: Attested) -> bool:
        """Whether it is a PASS of a check that did not measure the base alone, and `other` did and says CHANGED."""
        is_weaker = other.base_alone and not self.base_alone and self._about == other._about
        return is_weaker and (self.verdict, other.verdict) == ("PASS", "CHANGED")

    @classmethod
    def parse(cls, payload: bytes) -> Attested:
        """Read the bytes of a statement.

        Raises:
            ValueError: they are none about a contract's result; the first problem with its place.
        """
        value = strict_json(payload, limit_bytes=RESULT_LIMIT_BYTES)
        if not isinstance(value, dict):
            raise ValueError("statement: expected an object")  # noqa: TRY004 - one class for the caller
        reader = _Reader()
        made = reader.statement(value)
        if reader.problems:
            raise ValueError(reader.lines[0])
        assert made is not None
        return made


class _Reader(DocumentReader):
    kinds = JSON_KINDS

    def statement(self, top: dict[str, Any]) -> Attested | None:
        self.is_text(top, "_type", STATEMENT_TYPE)
        self.is_text(top, "predicateType", PREDICATE_TYPE)
        subjects = list(self.tables(top, "subject", most=1, required=True))
        predicate = self.take(top, "predicate", dict, required=True) or {}
        said = self.take(predicate, "adapterhub", dict, "predicate.", required=True) or {}
        self.is_text(said, "schema", RESULT_SCHEMA, "predicate.adapterhub.")
        parts: dict[str, tuple[str, dict[str, Any]]] = {}
        for place, one in self.tables(predicate, "configuration", "predicate.", most=16, required=True):
            if parts.setdefault(str(one.get("name")), (place, one))[1] is not one:
                self.say(f"{place}name", f"`{shown(one.get('name'))}` is there twice")
        verdict = self.text(said, "verdict", "predicate.adapterhub.", required=True)
        result = self.text(predicate, "result", "predicate.", required=True)
        failed = self.texts(predicate, "failedTests", "predicate.")
        if self.problems:
            return None
        if RESULTS.get(verdict or "") != result or (result == "PASSED" and failed):
            self.say("predicate.result", f"contradicts itself: {shown(result)} with the verdict {shown(verdict)}")
        if len(subjects) != 1:
            self.say("subject", f"expected one, got {len(subjects)}")
        sequence = self.take(said, "sequence", int, "predicate.adapterhub.", required=True)
        if sequence is not None and not 1 <= sequence <= _LARGEST_SEQUENCE:
            self.say("predicate.adapterhub.sequence", "expected a whole number from 1")
        time = self.checked(said, "time", parse_time, "predicate.adapterhub.", required=True)
        digests = {name: self.digest(parts, name) for name in ("contract", "base")}
        rules = self.digest(parts, "rules") if "rules" in parts else None
        place, base = parts.get("base", ("", {}))
        notes = self.take(base, "annotations", dict, place) or {}
        dtype, load_in = (self.text(notes, key, f"{place}annotations.") or "" for key in ("dtype", "load_in"))
        where, held = parts.get("bounds", ("", {}))
        held = self.take(held, "annotations", dict, where) or {}
        bounds = {name: self.number(held, name, f"{where}annotations.") for name in held}
        base_alone = self.take(said, "base_alone", bool, "predicate.adapterhub.")
        manifest = self.digest({"subject": subjects[0]}, "subject") if subjects else None
        if self.problems:
            return None
        return Attested(
            name=self.text(subjects[0][1], "name", "subject[0].") or "",
            manifest=cast("Digest", manifest),
            rules=rules,
            dtype=dtype,
            load_in=load_in,
            verdict=cast("Literal['PASS', 'CHANGED']", verdict),
            sequence=cast("int", sequence),
            time=cast("float", time),
            bounds=bounds,
            base_alone=base_alone is True,
            **cast("dict[str, Digest]", digests),
        )

    def is_text(self, holder: Mapping[str, Any], key: str, expected: str, path: str = "") -> None:
        """Record a text that is not the expected one."""
        if holder.get(key) != expected:
            self.say(f"{path}{key}", f"expected `{expected}`, got {shown(holder.get(key))}")

    def digest(self, parts: Mapping[str, tuple[str, dict[str, Any]]], name: str) -> Digest | None:
        """The SHA-256 of a part."""
        if name not in parts:
            self.say("predicate.configuration", f"names no {name}")
            return None
        place, part = parts[name]
        inner = self.take(part, "digest", dict, place, required=True) or {}
        found: Digest | None = self.checked(
            inner, "sha256", lambda text: parse_digest(f"sha256:{text}"), f"{place}digest.", required=True
        )
        return found
