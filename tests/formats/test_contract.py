"""The file of a behaviour contract: one contract, one byte string; bounds, demands and the plan of an author."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.errors import CouldNotTell, Malformed, UsageProblem
from adapterhub.formats.contract.contract import (
    Demand,
    packed,
    packed_latent,
    packed_odds,
    private_texts,
    unpacked,
    unpacked_latent,
    unpacked_odds,
)
from adapterhub.formats.contract.reader import claims_contract, parse_contract, read_plan
from adapterhub.formats.contract.standards import Bounds
from adapterhub.formats.prompts.form import PromptForm
from tests.support.contracts import changed_line, image_contract, small_contract


def test_a_contract_has_one_byte_string() -> None:
    contract = small_contract(bounds=Bounds(same=0.95), prompt=PromptForm(form="template", template="Q: {input}\nA:"))
    raw = contract.to_bytes()

    assert parse_contract(raw) == contract
    assert parse_contract(raw).to_bytes() == raw
    assert parse_contract(raw).digest == contract.digest


@given(
    st.floats(0, 30),
    st.floats(0, 30),
    st.floats(-1, 20),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
def test_every_recording_is_read_back(loss: float, base_loss: float, margin: float, answer: str) -> None:
    contract = small_contract()
    golden = replace(contract.goldens[0], loss=loss, base_loss=base_loss, margin=margin, answer=answer)
    raw = replace(contract, goldens=(golden,)).to_bytes()

    assert parse_contract(raw).to_bytes() == raw


def test_lines_keep_the_order_of_the_file() -> None:
    head, *lines = small_contract().to_bytes().splitlines(keepends=True)
    raw = head + b"".join(reversed(lines))

    assert parse_contract(raw).to_bytes() == raw


def test_another_evals_file_is_no_contract() -> None:
    assert not claims_contract(b'{"prompt": "what is \\"adapterhub/tests/1\\"?"}\n')
    assert claims_contract(b'{"a": 1}\n{"schema": "adapterhub/tests/9"}\n')


def test_images_are_a_second_version_for_which_a_seed_makes_another_golden() -> None:
    contract = image_contract()
    raw = contract.to_bytes()

    assert raw.startswith(b'{"image":{"guidance":7.5,"height":64,"scheduler":"sha256:')
    assert b'"schema":"adapterhub/tests/2"' in raw
    assert parse_contract(raw) == contract
    assert [golden.seed for golden in contract.distinct] == [0, 1]
    private = contract.without_texts()
    assert parse_contract(private.to_bytes()) == private
    assert b"a cat" not in private.to_bytes()


def test_a_latent_survives_packing() -> None:
    assert unpacked_latent(packed_latent([1.0, -0.3, 4000.0])) == pytest.approx([1.0, -0.3, 4000.0], rel=1e-3)
    with pytest.raises(OverflowError):
        packed_latent([1e9])


def test_log_odds_or_a_bound_on_the_drift_are_a_third_version() -> None:
    plain = small_contract()
    golden = replace(plain.goldens[0], odds=packed_odds([9, 8, 0.5]), base_odds=packed_odds([-1, 2, -3]))
    with_odds = replace(plain, goldens=(golden,), sensitivity=2.5)
    bound = replace(plain, bounds=Bounds(drift=0.05))

    assert b'"schema":"adapterhub/tests/1"' in plain.to_bytes()
    for contract in (with_odds, bound):
        assert b'"schema":"adapterhub/tests/3"' in contract.to_bytes()
        assert parse_contract(contract.to_bytes()) == contract
    assert with_odds.without_texts() == plain.without_texts()
    with pytest.raises(Malformed, match="written otherwise"):
        parse_contract(changed_line(plain.to_bytes(), 1, schema="adapterhub/tests/3"))


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=9))
def test_log_odds_survive_packing(odds: list[float]) -> None:
    assert unpacked_odds(packed_odds(odds), len(odds)) == pytest.approx(odds, rel=5e-4, abs=1e-7)


def test_log_odds_without_end_are_held() -> None:
    assert unpacked_odds(packed_odds([math.inf, -math.inf]), 2) == [1000, -1000]
    with pytest.raises(ValueError, match="expected 3 numbers"):
        unpacked_odds(packed_odds([1, 2]), 3)


def test_a_bound_on_the_drift_is_the_most() -> None:
    assert Bounds(drift=0.05).tightened({"drift": 0.01}).drift == 0.01
    with pytest.raises(UsageProblem, match="can only be tightened"):
        Bounds(drift=0.05).tightened({"drift": 0.1})


def test_a_newer_format_is_not_judged() -> None:
    raw = changed_line(small_contract().to_bytes(), 1, schema="adapterhub/tests/9", more=1)

    with pytest.raises(CouldNotTell, match="written by a newer version"):
        parse_contract(raw)


def test_digests_stand_for_texts() -> None:
    public = small_contract()
    private = public.without_texts()

    assert parse_contract(private.to_bytes()) == private
    assert b"hi" not in private.to_bytes().split(b"\n")[1]
    assert private.goldens[0].prompt_sha256 == public.goldens[0].prompt_sha256


@pytest.mark.parametrize(("goldens", "same", "lost"), [
    (8, 0.9, 1), (16, 0.9, 2), (20, 0.9, 2), (30, 0.9, 3), (20, 0.95, 1), (20, 1.0, 0), (4, 0.9, 1),
])  # fmt: skip
def test_one_answer_in_ten_may_be_lost(goldens: int, same: float, lost: int) -> None:
    assert Bounds(same=same).may_lose(goldens) == lost


@pytest.mark.parametrize(("chosen", "problem"), [
    ({"same": 0.5}, "looser"), ({"kl": 0.1}, "looser"), ({"same": 2}, "from 0 to 1"), ({"sane": 1}, "no bound"),
])  # fmt: skip
def test_a_bound_is_only_tightened(chosen: dict[str, float], problem: str) -> None:
    assert Bounds().tightened({"same": 1.0, "kl": 0.01}) == Bounds(same=1.0, kl=0.01)
    with pytest.raises(UsageProblem, match=problem):
        Bounds().tightened(chosen)


@pytest.mark.parametrize(("demand", "text", "problem"), [
    (Demand(equals="a"), "b", "is not"),
    (Demand(contains=("a", "b")), "a", "does not contain `b`"),
    (Demand(not_contains=("arr",)), "harr", "contains `arr`"),
    (Demand(starts_with="a"), "ba", "does not start"),
    (Demand(one_of=("x", "y")), "z", "none of the 2"),
    (Demand(max_chars=2), "abc", "has 3 characters"),
    (Demand(json=True), "{", "is not JSON"),
    (Demand(json={"type": "object", "required": ["n"]}), "{}", "has no `n`"),
    (Demand(json={"properties": {"n": {"type": "integer", "minimum": 1}}}), '{"n": 0}', "below 1"),
    (Demand(json={"items": {"enum": [1, "a"]}}), '[1, "a", true]', "not one of the values"),
    (Demand(json={"const": 1}), "true", "not the constant"),
    (Demand(label="joy"), "sad", "label"),
])  # fmt: skip
def test_a_demand_says_what_an_answer_lacks(demand: Demand, text: str, problem: str) -> None:
    assert problem in demand.problem(text, label="sad")
    assert Demand(contains=("b",), json={"type": "object"}).problem('{"b": 1}') == ""


def test_a_vector_survives_packing() -> None:
    assert unpacked(packed([1.0, -0.5, 0.25])) == pytest.approx([1.0, -0.5, 0.25], abs=0.005)
    for broken in ("", "AAAA", "AAAAAA==", "%%%"):
        with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
            unpacked(broken)


def test_a_plan_holds_inputs_demands_and_the_form(tmp_path: Path) -> None:
    (tmp_path / "tests.toml").write_text(
        '[prompt]\nform = "raw"\n[bounds]\nsame = 0.95\n[[golden]]\ninput = "one"\ncompletion = "1"\n'
        '[[never]]\ninput = "x"\nnot_contains = ["arr"]\n[[leave_alone]]\ninput = "y"\nrise = 0.2\n'
    )
    plan = read_plan(tmp_path / "tests.toml")

    assert (plan.goldens[0].id, plan.goldens[0].completion, plan.bounds.same) == ("golden-1", "1", 0.95)
    assert plan.expects[0].binds_merges
    assert plan.leave_alone[0].rise == 0.2


@pytest.mark.parametrize(("text", "problem"), [
    ("a = 1", "no such key"),
    ("", "holds no test"),
    ('[[golden]]\nid = "A b"\ninput = "x"', "expected 1 to 64"),
    ("[[golden]]\ninput = 3", "expected text"),
    ('[[never]]\ninput = "x"', "demands nothing"),
    ('[[expect]]\ninput = "x"\nmatches = "a*"', "no such key"),
    ('[image]\nsteps = 1000\n[[golden]]\ninput = "x"', "image.steps: expected 1 to 50"),
    ('[[golden]]\ninput = "x"\nseed = -1', "expected 0 to"),
    ('[bounds]\nsame = 7\n[[golden]]\ninput = "x"', "from 0 to 1"),
])  # fmt: skip
def test_a_wrong_plan_names_the_place(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "tests.toml").write_text(text)

    with pytest.raises(Malformed, match=problem):
        read_plan(tmp_path / "tests.toml")


@pytest.mark.parametrize("text", [
    "AKIAABCDEFGHIJKLMNOP", "ann@example.org", "+49 30 1234567", "4111 1111 1111 1111", "-----BEGIN RSA PRIVATE KEY-----",
])  # fmt: skip
def test_private_texts_are_noticed_and_not_repeated(text: str) -> None:
    contract = small_contract()
    contract = replace(contract, goldens=(replace(contract.goldens[0], answer=f"write to {text}"),))

    (found,) = private_texts(contract)
    assert found.startswith("golden-1: a")
    assert text not in found
    assert private_texts(small_contract()) == []
