"""The examples of a card come from a public contract, in the words that a hub sends; the author's own go before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.formats.cards.card import make_card, refusals_of, widget_of
from adapterhub.formats.cards.metadata import read_metadata
from adapterhub.formats.contract.contract import Asked, Contract
from adapterhub.formats.prompts.form import RAW, PromptForm, Turn
from adapterhub.library.installed import Added
from tests.support.contracts import small_contract

FRAME = PromptForm(form="template", template="Q: {input}\nA:")
CHAT = PromptForm(form="chat", system="Be brief.")
TALK: Asked = (Turn(role="user", content="hi"), Turn(role="assistant", content="yo"), Turn(role="user", content="and?"))


def contract(prompt: PromptForm = RAW, asked: tuple[Asked, ...] = ("one", "two", "three"), **changed: Any) -> Contract:
    [golden] = small_contract().goldens
    goldens = tuple(
        replace(golden, id=f"golden-{at}", asked=text, prompt_sha256=digest_of(str(at).encode()), answer=f" yes {at}\n")
        for at, text in enumerate(asked)
    )
    return small_contract(prompt=prompt, goldens=goldens, **changed)


def output(at: int) -> dict[str, str]:
    return {"text": f" yes {at}\n"}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (contract(), [{"text": "one", "output": output(0)}, {"text": "two", "output": output(1)}]),
        (contract(FRAME, ("one",)), [{"text": "Q: one\nA:", "output": output(0)}]),
        (
            contract(CHAT, ("one",)),
            [
                {
                    "messages": [
                        {"role": "system", "content": "Be brief."},
                        {"role": "user", "content": "one"},
                    ],
                    "output": output(0),
                }
            ],
        ),
        (contract(CHAT, (TALK,)), None),
        (contract(asked=("x" * 5000, "two")), [{"text": "two", "output": output(1)}]),
        (contract().without_texts(), []),
        (contract(kind="embed"), []),
    ],
    ids=["raw", "template", "chat", "turns", "long", "digests", "encoder"],
)
def test_the_first_two_goldens_are_shown(given: Contract, shown: list[dict[str, Any]] | None) -> None:
    if shown is None:
        shown = [{"messages": [{"role": "system", "content": "Be brief."}, *map(dict, TALK)], "output": output(0)}]
    assert widget_of(given) == shown


def test_a_card_has_them_unless_its_author_wrote_some(add: Callable[[str], Added]) -> None:
    manifest = add("legal-qa").build.manifest
    strange = contract(asked=('a: "b"\n- \u202ec', "---\n"))
    card = make_card(manifest, contract=strange)
    own = make_card(replace(manifest, card="---\nwidget:\n- text: mine\n---\nhello"), contract=strange)

    assert read_metadata(card.text).values["widget"] == widget_of(strange)
    assert read_metadata(own.text).values["widget"] == [{"text": "mine"}]
    assert refusals_of(manifest, card) == []
    assert "widget" not in read_metadata(make_card(manifest).text).values
