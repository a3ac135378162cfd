"""Is this folder an adapter that may be stored and loaded? One check a file; a check yields findings, it never raises.

`open_subject` reads what every check needs (names, config, header); `verify` runs the checks on it. A new check is a
new file here with `check(subject) -> Iterator[Finding]`; files that begin with an underscore are no checks.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from adapterhub.digests import Progress
from adapterhub.errors import Malformed, MalformedConfig, MalformedManifest, MalformedTensorFile
from adapterhub.fingerprint import BaseFingerprint
from adapterhub.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from adapterhub.tensorfacts import TensorFacts
from adapterhub.verify._keys import AdapterKeys, sort_keys
from adapterhub.verify._report import Facts, Finding, Report, Severity, Status
from adapterhub.verify._subject import Subject
from adapterhub.verify.config import read_config_file
from adapterhub.verify.container import read_weights_header
from adapterhub.verify.digests import read_manifest_file
from adapterhub.verify.files import list_folder

__all__ = [
    "AdapterKeys",
    "Facts",
    "Finding",
    "Report",
    "Severity",
    "Status",
    "Subject",
    "checks",
    "open_subject",
    "sort_keys",
    "verify",
    "verify_folder",
]


def open_subject(
    folder: Path,
    *,
    base_tensors: Iterable[TensorFacts] | Mapping[str, TensorFacts] | None = None,
    base_fingerprint: BaseFingerprint | None = None,
    manifest: Manifest | None = None,
    base_named: bool = False,
    progress: Progress | None = None,
) -> tuple[Subject | None, list[Finding]]:
    """The adapter in `folder` and what was found on the way; never raises for what is in the folder.

    Without a subject the findings hold an error that says why. With `manifest`, the folder's own `adapterhub.json` is
    not read. `base_named` says that somebody names the base; giving its tensors or a manifest with a fingerprint says
    so too. `progress` gets the bytes read of the weights when the checks run.
    """
    listing = list_folder(folder)
    findings = list(listing.findings)
    config = weights = None
    if CONFIG_FILE in listing.taken:
        try:
            config = read_config_file(listing.taken[CONFIG_FILE])
        except MalformedConfig as error:
            findings.append(_refusal(error, error.code, error.where, error.reason))
    if WEIGHTS_FILE in listing.taken:
        try:
            weights = read_weights_header(listing.taken[WEIGHTS_FILE])
        except MalformedTensorFile as error:
            findings.append(_refusal(error, error.code, error.where, error.reason))
    if manifest is None and MANIFEST_FILE in listing.taken:
        try:
            manifest = read_manifest_file(listing.taken[MANIFEST_FILE])
        except MalformedManifest as error:
            findings += [_refusal(error, "E_MANIFEST", error.where, problem) for problem in error.problems]
    if config is None or weights is None:
        return None, findings
    if base_tensors is not None and not isinstance(base_tensors, Mapping):
        base_tensors = {facts.name: facts for facts in base_tensors}
    declares = manifest is not None and manifest.base.fingerprint is not None
    return Subject(
        folder=folder,
        listing=listing,
        config=config,
        weights=weights,
        base_tensors=base_tensors,
        base_fingerprint=base_fingerprint,
        manifest=manifest,
        base_named=base_named or base_tensors is not None or declares,
        progress=progress,
    ), findings


def _refusal(error: Malformed, code: str, where: str, reason: str) -> Finding:
    return Finding(code=code, severity="error", where=where, message=reason, hint=error.hint)


def checks() -> tuple[str, ...]:
    """Names of the checks, which are the files of this folder."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def verify(subject: Subject, *, seen: Iterable[Finding] = ()) -> Report:
    """Run every check; `seen` are findings to report with theirs, such as those of `open_subject`."""
    findings = list(seen)
    for name in checks():
        module = importlib.import_module(f"adapterhub.verify.{name}")
        try:
            findings.extend(module.check(subject))
        except MalformedConfig as error:  # patterns that ran out of time, in whichever check
            findings.append(_refusal(error, error.code, CONFIG_FILE, error.reason))
        except MalformedTensorFile as error:  # a file that changed under us
            findings.append(_refusal(error, error.code, WEIGHTS_FILE, error.reason))
    try:
        facts = subject.facts
    except MalformedConfig:  # said above
        facts = None
    return Report.of(findings, facts)


def verify_folder(
    folder: Path,
    *,
    base_tensors: Iterable[TensorFacts] | Mapping[str, TensorFacts] | None = None,
    base_fingerprint: BaseFingerprint | None = None,
    manifest: Manifest | None = None,
    base_named: bool = False,
    progress: Progress | None = None,
) -> Report:
    """`open_subject` and `verify` in one: a report whatever the folder holds."""
    subject, findings = open_subject(
        folder,
        base_tensors=base_tensors,
        base_fingerprint=base_fingerprint,
        manifest=manifest,
        base_named=base_named,
        progress=progress,
    )
    return verify(subject, seen=findings) if subject is not None else Report.of(findings)
