"""One configuration of each kind in the default suite; `python -m tests.peft_variants` judges all of PEFT's."""

from __future__ import annotations

import pytest

from tests.peft_variants import judge, reasons
from tests.peft_variants.configuration import Configuration
from tests.peft_variants.judge import judged
from tests.peft_variants.own import OWN

pytestmark = pytest.mark.filterwarnings("ignore")

BY_TITLE = {one.title: one for one in OWN}


@pytest.mark.parametrize("one", OWN, ids=list(BY_TITLE))
def test_every_kind_equals_peft_or_is_refused_for_a_true_reason(one: Configuration) -> None:
    assert judged(one).faults == ()


def test_a_refusal_without_a_true_reason_counts_as_misled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "ATTACHED", (*reasons.ATTACHED, "PSOFT"))

    verdict = judged(BY_TITLE["Psoft"])

    assert verdict.grade == "misled"
    assert {fault.step for fault in verdict.faults} >= {"attach", "bank"}


def test_other_numbers_than_those_of_peft_count_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "TOLERANCE", -1.0)

    verdict = judged(BY_TITLE["LoRA"])

    assert verdict.grade == "wrong"
    assert {fault.step for fault in verdict.faults} == {"attach", "bank", "merge 1", "merge 2"}


def test_an_adapter_that_is_taken_in_spite_of_a_reason_counts_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "ATTACHED", ())

    assert judged(BY_TITLE["LoRA"]).grade == "wrong"
