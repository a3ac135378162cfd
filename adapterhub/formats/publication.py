"""Which job of a CI published a release, as a registry attests it.

A registry signs an in-toto statement, in the bundle that `model.sig` is, with the key of its log: clients know that key
already, and anyone who can sign for the log could also change every other key of the registry. The predicate is
in-toto's for releases of a registry; its member `adapterhub` is ours. The entry of the release in the log has `stated`,
so that a registry can neither add, take away nor change an attestation later.

Sources: in-toto Statement v1, in-toto predicate `release` v0.1, purl-spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of, strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import MEDIA_TYPES, Manifest
from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES, STATEMENT_TYPE, Bundle, SignedObject, pre_authentication
from adapterhub.formats.treelog import LogKey, LogSigner

RELEASE_PREDICATE: Final = "https://in-toto.io/attestation/release/v0.1"
MOST_CLAIMS: Final = 64
GITHUB: Final = "https://token.actions.githubusercontent.com"
_SHOWN: Final = 160


def released_digests(manifest: Manifest) -> tuple[Digest, Digest]:
    """Return the digests by which a registry may name a build: its manifest's, or without one that of its files."""
    files = {entry.path: hex_of(entry.sha256) for entry in manifest.files}
    named = [[path, files[path]] for path in sorted(MEDIA_TYPES) if path in files]
    return manifest.digest, digest_of(canonical_json(named))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Documented, keys="issuer claims by"):
    """A job of a CI: who vouches for it, and what it was."""

    issuer: str
    claims: Annotated[Mapping[str, str], "such as repository, ref, environment, workflow_ref and run_id"]

    @property
    def by(self) -> str:
        """The job in words, such as `GitHub workflow acme/training@refs/heads/main, run 77`."""
        told = {name: shown(text, _SHOWN) for name, text in self.claims.items()}
        whose = told.get("repository") or told.get("project_path") or told.get("sub") or "no name"
        ref, run = told.get("ref"), told.get("run_id") or told.get("pipeline_id") or told.get("job_id")
        kind = "GitHub workflow" if self.issuer == GITHUB else f"job of {shown(urlsplit(self.issuer).netloc, _SHOWN)},"
        return f"{kind} {whose}{f'@{ref}' if ref else ''}{f', run {run}' if run else ''}"

    @property
    def stated(self) -> Digest:
        """The digest of issuer and claims, which the log has."""
        return digest_of(canonical_json({"issuer": self.issuer, "claims": dict(self.claims)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """That a job published a version of a repository, with these bytes. `time` is when, RFC 3339."""

    repository: str
    version: str
    digest: Digest
    time: str
    job: Job

    @property
    def statement(self) -> bytes:
        """The bytes to sign."""
        subject = {"name": self.repository, "digest": {"sha256": hex_of(self.digest)}}
        about = {"repository": self.repository, "version": self.version, "time": self.time}
        job = {"issuer": self.job.issuer, "claims": dict(self.job.claims)}
        purl = f"pkg:generic/{self.repository}@{quote(self.version, safe='')}"
        predicate = {"purl": purl, "adapterhub": {"schema": 1, **about, **job}}
        return canonical_json(
            {"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": RELEASE_PREDICATE, "predicate": predicate}
        )

    def signed(self, signer: LogSigner) -> bytes:
        """Return the attestation: the statement in a bundle, signed with the key of a log."""
        payload = self.statement
        signature = signer.signature(pre_authentication(payload))
        return Bundle(hint=signer.key.fingerprint, payload=payload, signature=signature).to_bytes()

    @classmethod
    def opened(cls, raw: bytes, key: LogKey) -> Publication:
        """Read an attestation that the key of a log signed.

        Raises:
            ValueError: it is broken, or not signed by the key; the message is the reason.
        """
        bundle = Bundle.parse(raw)
        if bundle.hint != key.fingerprint or not key.verifies(bundle.signature, pre_authentication(bundle.payload)):
            raise ValueError("is not signed by the key of the registry's log")
        return cls._parse(bundle.payload)

    @classmethod
    def _parse(cls, payload: bytes) -> Publication:
        top = SignedObject(strict_json(payload, limit_bytes=SIGNATURE_LIMIT_BYTES), "statement")
        top.expect("_type", STATEMENT_TYPE)
        top.expect("predicateType", RELEASE_PREDICATE)
        subjects, told = top.items("subject"), top.inner("predicate").inner("adapterhub")
        if len(subjects) != 1:
            raise ValueError(f"statement.subject: expected one, got {len(subjects)}")
        claims: dict[str, Any] = told.inner("claims").value
        if len(claims) > MOST_CLAIMS or not all(isinstance(text, str) for text in claims.values()):
            raise ValueError(f"statement.predicate.adapterhub.claims: expected at most {MOST_CLAIMS} texts")
        time = told.text("time")
        parse_time(time)
        return cls(
            repository=told.text("repository"),
            version=told.text("version"),
            digest=subjects[0].inner("digest").hexadecimal("sha256"),
            time=time,
            job=Job(issuer=told.text("issuer"), claims=claims),
        )
