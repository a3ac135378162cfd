"""The strict reader: what it takes, and what it says of what it does not take."""

import pytest

from adapterhub.core.errors import SpecError, UsageProblem, problem_list
from adapterhub.formats.documents import JSON_KINDS, MAX_TEXT_CHARACTERS, PROBLEMS_SHOWN, DocumentReader, toml_of


class JsonReader(DocumentReader):
    kinds = JSON_KINDS
    null_is_absent = False


@pytest.mark.parametrize(
    ("item", "kind", "expected"),
    [("a", str, "a"), (3, int, 3), (3, float, 3.0), (0.5, float, 0.5), ([1], list, [1]), ({}, dict, {}), (True, bool, True)],
)  # fmt: skip
def test_a_value_of_the_kind_is_taken(item, kind, expected):
    reader = DocumentReader()

    assert (reader.take({"k": item}, "k", kind), reader.lines) == (expected, [])


@pytest.mark.parametrize(
    ("item", "kind", "said"),
    [
        (3, str, "top.k: expected text, got a whole number `3`"),
        ("3", int, "top.k: expected a whole number, got text `3`"),
        (True, int, "top.k: expected a whole number, got true or false"),
        (1 << 10_000, str, "top.k: expected text, got a whole number"),
        (float("nan"), float, "top.k: expected a finite number, got a number `nan`"),
        (1 << 10_000, float, "top.k: expected a finite number, got a whole number"),
        ([], dict, "top.k: expected a table, got a list"),
        ("\x1b[2J", int, "top.k: expected a whole number, got text `\\x1b[2J`"),
    ],
)
def test_a_value_of_another_kind_is_a_problem_with_its_place(item, kind, said):
    reader = DocumentReader()

    assert (reader.take({"k": item}, "k", kind, "top."), reader.lines) == (None, [said])


def test_a_number_keeps_its_sign_and_must_be_there():
    reader = DocumentReader()

    assert str(reader.number({"w": -0.0}, "w")) == "-0.0"
    assert (reader.number({}, "w"), reader.lines) == (0.0, ["w: missing, expected a finite number"])


def test_what_is_missing_is_a_problem_only_where_it_is_required():
    reader = DocumentReader()

    reader.take({}, "a", str)
    reader.take({}, "b", str, required=True)

    assert reader.lines == ["b: missing, expected text"]


def test_null_is_a_value_in_json_alone():
    lenient, strict = DocumentReader(), JsonReader()

    assert (lenient.take({"k": None}, "k", str), lenient.lines) == (None, [])
    assert (strict.take({"k": None}, "k", str), strict.lines) == (None, ["k: expected string, got null"])


def test_an_unknown_key_is_told_with_the_nearest_or_all():
    reader = DocumentReader()

    reader.known({"rnak": 1, "zzzz": 2, "base": 3}, ("rank", "base"), "t.")

    assert reader.lines == ["t.rnak: no such key; did you mean `rank`?", "t.zzzz: no such key; there are rank, base"]


def test_what_a_parser_refuses_is_told_in_its_words():
    def spec(text):
        raise SpecError(text, "not a name", hint="write `x`")

    def usage(text):
        raise UsageProblem(f"{text} is odd")

    reader = DocumentReader()

    assert reader.checked({"a": "X"}, "a", spec) is None
    assert reader.checked({"b": "y"}, "b", usage) is None
    assert reader.checked({"c": "z"}, "c", int) is None
    assert reader.lines[:2] == ["a: `X`: not a name; write `x`", "b: y is odd"]
    assert reader.lines[2].startswith("c: invalid literal")


@pytest.mark.parametrize(
    ("text", "said"),
    [("x" * (MAX_TEXT_CHARACTERS + 1), "at most 4096 characters, got 4097"), ("\ud800", "holds half a character (a surrogate)")],
)  # fmt: skip
def test_text_is_short_and_whole(text, said):
    reader = DocumentReader()

    assert (reader.text({"k": text}, "k"), reader.lines) == (None, [f"k: {said}"])


def test_the_items_of_a_list_have_places():
    reader = DocumentReader()

    texts = reader.texts({"l": ["a", 1, "b"]}, "l")
    tables = list(reader.tables({"t": [{"x": 1}, 2]}, "t"))

    assert (texts, tables) == (("a", "b"), [("t[0].", {"x": 1})])
    assert reader.lines == [
        "l[1]: expected text, got a whole number `1`",
        "t[1]: expected a table, got a whole number `2`",
    ]


def test_a_list_beyond_its_limit_is_one_problem():
    reader = DocumentReader()

    assert list(reader.tables({"t": [1, 2, 3]}, "t", most=2)) == []
    assert reader.lines == ["t: 3 entries, expected at most 2"]


def test_a_million_wrong_items_are_no_million_problems():
    reader = DocumentReader()

    reader.texts({"l": [1] * 1_000_000}, "l")

    assert len(reader.problems) == PROBLEMS_SHOWN + 1


def test_problems_beyond_the_limit_are_counted():
    assert problem_list("t", ["a", "b", "c"], 2) == "t\n  a\n  b\n  and 1 more"
    assert problem_list("t", ["a", "b"], 2) == "t\n  a\n  b"


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b"a = \xff", "not UTF-8 at byte 4"), (b"a" + b".a" * 600 + b" = 1", "line 1: more than 500 dots"), (b"a = = 1", "not TOML"),
     (b"a = " + b"[" * 5000, "nested too deeply")],
)  # fmt: skip
def test_toml_that_is_none_or_too_dear_is_refused(raw, said):
    with pytest.raises(ValueError, match=said):
        toml_of(raw)
