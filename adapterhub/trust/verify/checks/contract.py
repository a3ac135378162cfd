"""Checks the form of a behaviour contract, and that the manifest asks the adapter as the contract does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from adapterhub.core.errors import CouldNotTell, DigestMismatch, Malformed
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.trust.verify.report import Finding
from adapterhub.trust.verify.subject import Subject

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract


def contract_of(subject: Subject) -> Contract | None:
    """The contract among the files of an adapter; None where there is none.

    Raises:
        Malformed, DigestMismatch, CouldNotTell: as `parse_contract`.
        OSError: the file cannot be read.
    """
    entry = subject.listing.taken.get(CONTRACT_FILE)
    if entry is None:
        return None
    from adapterhub.formats.contract.reader import MAX_BYTES, claims_contract, parse_contract

    raw = bytes(entry.held.read(0, min(entry.held.size_bytes, MAX_BYTES + 1)))
    return parse_contract(raw) if claims_contract(raw) else None


def check(subject: Subject) -> Iterator[Finding]:
    """A contract that breaks its format, or that asks in another form than the manifest."""
    try:
        contract = contract_of(subject)
    except (Malformed, DigestMismatch) as error:
        for line in error.message.split("\n")[1:] or [error.message]:
            yield Finding(
                code="E_CONTRACT", severity="error", where=CONTRACT_FILE, message=line.strip(), hint=error.hint
            )
        return
    except CouldNotTell as error:
        yield Finding(
            code="U_CONTRACT", severity="unknown", where=CONTRACT_FILE, message=error.message, hint=error.hint
        )
        return
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        yield Finding(code="E_CONTRACT", severity="error", where=CONTRACT_FILE, message=message)
        return
    if contract is None or subject.manifest is None or subject.manifest.prompt == contract.prompt:
        return
    yield Finding(
        code="E_CONTRACT",
        severity="error",
        where=CONTRACT_FILE,
        message="asks in another prompt form than the manifest states in `behaviour.prompt`",
        expected=subject.manifest.prompt.label if subject.manifest.prompt else "no contract",
        hint="`adapt contract record` writes both",
    )
