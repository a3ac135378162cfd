"""Documents of tests and of contracts."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from adapterhub.api.steps.contracts import recording, running
from adapterhub.cli.documents._values import document_of
from adapterhub.formats.contract import results, standards

Tested = document_of(results.Tested)

CONTRACTS = {
    "test": list[Tested],
    "contract-record": document_of(recording.RecordedContract),
    "contract-results": list[document_of(recording.SignedResults)],
    "contract-export": document_of(running.EmittedTask),
    "contract-policy": document_of(standards.Standards),
}
