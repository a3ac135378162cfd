"""Checks the form of a behaviour contract, and that the manifest states the same prompt form as the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from adapterhub.core.errors import CouldNotTell, DigestMismatch, Malformed
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.subject import Subject

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract


def contract_of(subject: Subject) -> Contract | None:
    """Return the contract among the files of an adapter; None if there is none.

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
    """Yield a contract that breaks its format, or that has another prompt form than the manifest."""
    try:
        contract = contract_of(subject)
    except (Malformed, DigestMismatch) as error:
        for line in error.message.split("\n")[1:] or [error.message]:
            yield Finding("E_CONTRACT", CONTRACT_FILE, line.strip(), hint=error.hint)
        return
    except CouldNotTell as error:
        yield Finding("U_CONTRACT", CONTRACT_FILE, error.message, hint=error.hint)
        return
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        yield Finding("E_CONTRACT", CONTRACT_FILE, message)
        return
    if contract is None or subject.manifest is None or subject.manifest.prompt == contract.prompt:
        return
    yield Finding(
        "E_CONTRACT",
        CONTRACT_FILE,
        "asks in another prompt form than the manifest states in `behaviour.prompt`",
        expected=subject.manifest.prompt.label if subject.manifest.prompt else "no contract",
        hint="`adapt contract record` writes both",
    )
