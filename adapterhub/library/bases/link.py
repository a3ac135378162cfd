"""The link of a copy to a base, as the record of the copy keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from adapterhub.core.digests import Digest, Json
from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict, digest_at
from adapterhub.formats.documented import Documented
from adapterhub.formats.documents import object_at

METHOD: Final = 1
"""The version of the proof: links of another version count no more, and `adapt base add` makes them again."""

OF_A_SOURCE: Final = frozenset({BaseVerdict.SAME_WEIGHTS_QUANTISED, BaseVerdict.LIKELY_SAME_QUANTISED})
_KEPT: Final = OF_A_SOURCE | {BaseVerdict.SAME_SHAPES}


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyLink(Documented, keys="source verdict evidence accepted", title="Source"):
    """A base whose copy another one is, and why; SAME_SHAPES if the files disprove a copy that the samples allow."""

    source: Annotated[Digest, "the digest of the source's weights"]
    verdict: Annotated[BaseVerdict, "`SAME_WEIGHTS_QUANTISED` or `LIKELY_SAME_QUANTISED`"]
    evidence: Annotated[tuple[str, ...], "one sentence each"]
    accepted: Annotated[bool, "whether the user lets the copy stand for the source where it only likely is"] = False

    @property
    def is_source(self) -> bool:
        """Whether the copy is one of this base, as far as is known."""
        return self.verdict in OF_A_SOURCE

    def to_json_kept(self) -> dict[str, Any]:
        """Return the link as a record keeps it."""
        kept = {"source": self.source, "verdict": self.verdict.value, "evidence": list(self.evidence)}
        return kept | {"accepted": self.accepted, "method": METHOD}

    def comparison(self, form: str) -> BaseComparison:
        """Return the link as a comparison."""
        likely = self.verdict is BaseVerdict.LIKELY_SAME_QUANTISED
        verdict = BaseVerdict.ACCEPTED_QUANTISED if likely and self.accepted else self.verdict
        return BaseComparison(verdict=verdict, form=form or None, differences=self.evidence)


def links_at(value: Json, path: str) -> tuple[CopyLink, ...]:
    """Return the links of a record, read strictly; those of another method are left out.

    Raises:
        ValueError: with the path of the first wrong value.
    """
    if not isinstance(value, list):
        raise ValueError(f"{path}: expected a list, got {shown(value)}")
    found = (_link_at(each, f"{path}[{at}]") for at, each in enumerate(value))
    return tuple(link for link in found if link is not None)


def _link_at(value: Json, path: str) -> CopyLink | None:
    value = object_at(value, path)
    if value.get("method") != METHOD:
        return None
    named = {verdict.value: verdict for verdict in _KEPT}
    if value.get("verdict") not in named:
        raise ValueError(f"{path}.verdict: expected {' or '.join(sorted(named))}, got {shown(value.get('verdict'))}")
    evidence, accepted = value.get("evidence"), value.get("accepted")
    if not isinstance(evidence, list) or not all(isinstance(sentence, str) for sentence in evidence):
        raise ValueError(f"{path}.evidence: expected a list of texts, got {shown(evidence)}")
    if not isinstance(accepted, bool):
        raise ValueError(f"{path}.accepted: expected true or false, got {shown(accepted)}")
    source = digest_at(value.get("source"), f"{path}.source")
    return CopyLink(source=source, verdict=named[value["verdict"]], evidence=tuple(evidence), accepted=accepted)
