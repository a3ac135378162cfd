"""The base of an adapter: whether its content is known and registered here, and which mismatches a user allowed."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.digests import hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import shown
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.library.bases.records import BaseRecord
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify import open_subject
from adapterhub.trust.verify.checks.base import check as declared_base
from adapterhub.trust.verify.checks.fit import check as shapes

_MISMATCH: str = "E_BASE_MISMATCH"


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """Check that it is declared, registered, unchanged on the disk, and fits by shapes; note allowed mismatches."""
    manifest = subject.manifest
    if manifest is None:
        return
    yield from _allowed(subject, around)
    fingerprint = subject.base.fingerprint
    if fingerprint is None:
        named = f", only the name `{shown(manifest.base.hints.hub_id)}`" if manifest.base.hints.hub_id else ""
        pin = (
            f"`adapt base pin {manifest.name} BASE` records it"
            if subject.build
            else "`adapt add … --base BASE` records it"
        )
        message = f"declares no fingerprint of its base{named}: nothing proves which model it was made for"
        yield Finding("U_BASE", MANIFEST_FILE, message, hint=pin)
        return
    if manifest.base.fingerprint is None:
        message = "its base was pinned here; its author declared none"
        yield Finding("N_BASE_PINNED", MANIFEST_FILE, message)
    record = around.base_of(fingerprint)
    if record is None:
        message = f"its base {fingerprint.weights[:19]}… ({shown(subject.base.label)}) is not registered here"
        hint = "`adapt base add PATH --as NAME` registers it, so that the base it runs on can be checked"
        yield Finding("W_BASE_UNREGISTERED", MANIFEST_FILE, message, hint=hint)
        return
    yield from _fit(subject, record, around)
    if around.with_bytes:
        yield from _changed(record, around)


def _fit(subject: AuditedAdapter, record: BaseRecord, around: Surroundings) -> Iterator[Finding]:
    """Errors of the two checks of `verify` that compare with a base; config and header are read, no numbers."""
    assert subject.manifest is not None  # `check` made sure
    opened, _ = open_subject(
        subject.folder,
        base_tensors=record.weights,
        base_fingerprint=record.fingerprint,
        base_type=record.hints.model_type,
        manifest=subject.manifest.with_base(subject.base),
        judge=around.library.bases.judged,
    )
    if opened is None:  # damaged; `--verify` says how
        return
    for look in (declared_base, shapes):
        yield from (finding for finding in look(opened) if finding.code == _MISMATCH)


def _allowed(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """Mismatches that `--allow-base-mismatch` recorded for this build."""
    assert subject.manifest is not None  # `check` made sure
    digest = hex_of(subject.manifest.digest)
    for path in sorted((around.library.root / "mismatches").glob(f"{digest}-*.json")):
        try:
            value = read_json(path)
            named = shown(str(value["named"])) if isinstance(value, dict) else "unknown"
        except (OSError, ValueError, KeyError):
            named = "unknown"
        message = f"was allowed to run on the base `{named}`, whose weights differ from those of its own base"
        hint = f"delete `{path}` to undo that"
        yield Finding("W_BASE_ALLOWED", MANIFEST_FILE, message, hint=hint)


def _changed(record: BaseRecord, around: Surroundings) -> Iterator[Finding]:
    """Whether the folder of the base still holds the registered weights; each base is checked once."""
    if record.path is None or not record.path.exists():
        return
    if record.alias not in around.looked_at:
        around.looked_at[record.alias] = around.library.bases.look_again(record, progress=around.progress).fingerprint
    verdict = compare(record.fingerprint, around.looked_at[record.alias]).verdict
    if verdict not in (BaseVerdict.SAME_WEIGHTS, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION):
        message = f"`{record.path}` holds weights that differ from those registered as `{record.alias}`"
        hint = f"find out who changed them; `adapt base add {record.path} --as NAME` registers what is there"
        yield Finding(_MISMATCH, str(record.path), message, hint=hint)
