"""Which contract the result of a merge has: that of its one parent, where it claims to be the same adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import CouldNotTell, DigestMismatch, shown
from adapterhub.formats.contract.reading import contract_in
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.weights.catalogue import SUMS
from adapterhub.weights.recipes.toml.values import Inner

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.weights.recipes.combination import Combination, Ingredient


def is_same_adapter(combination: Combination) -> bool:
    """Whether the result claims to be its one parent in another rank or precision."""
    first = combination.inputs[0]
    is_alone = len(combination.inputs) == 1 and first.weight == 1 and not isinstance(first, Inner)
    return is_alone and combination.method in SUMS


def carried_contract(combination: Combination, asked: PromptForm | None = None) -> tuple[Contract | None, list[str]]:
    """The parent's contract for the result, and why it has none where that is worth a warning.

    The rule hangs on the combination alone, so a recipe gives the same manifest again. `asked` is the prompt form that
    the user gives the result.

    Raises:
        DigestMismatch: the parent's contract is not the file of its manifest.
        Malformed: it breaks its format.
    """
    if not is_same_adapter(combination):
        return None, []
    [parent] = combination.leaves()
    try:
        contract = contract_in(parent.folder)
    except CouldNotTell as error:
        return None, [f"the result carries no contract: {error.message}"]
    if contract is None:
        return None, []
    _ensure_own(parent, contract)
    if asked is not None and asked != contract.prompt:
        label = shown(parent.label, 200)
        return None, [f"the result carries no contract: that of `{label}` asks as {contract.prompt.label}"]
    return contract, []


def _ensure_own(parent: Ingredient, contract: Contract) -> None:
    expected = (parent.pinned().expected or {}).get(CONTRACT_FILE)
    actual = digest_of(contract.to_bytes())
    if expected is not None and actual != expected:
        raise DigestMismatch(str(parent.folder / CONTRACT_FILE), expected=expected, actual=actual)
