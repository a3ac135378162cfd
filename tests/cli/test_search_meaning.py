"""`adapt search` by meaning: set up once, used by itself for several words, and refused where it makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

import adapterhub
from adapterhub.core.errors import UsageProblem
from adapterhub.core.specs import parse_name
from adapterhub.formats.meaning.model import is_model
from adapterhub.library.find.meaning import model_place
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.real_encoder import minilm_base
from tests.support.tiny import make_adapter

ABOUT = {
    "film-sentiment": "Positive or negative film reviews",
    "tenancy": "Questions about leases, deposits and landlords",
    "sql": "Writes database queries from plain sentences",
}
GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "json"
QUESTION = "who pays when the tenant breaks something"


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    adapt = Adapt(tmp_path_factory.mktemp("meaning"))
    for seed, (name, text) in enumerate(ABOUT.items()):
        about = Description(name=parse_name(name), version="1.0.0", description=text)
        adapt.library.add(make_adapter(adapt.folder / "out" / name, seed=seed), about)
    assert "adapt search --setup" in adapt.fails(10, "search", "--meaning", QUESTION)
    assert "not here" in adapt.fails(2, "search", "--far", QUESTION)
    assert "tenancy" not in adapt.ok("search", QUESTION)  # by words
    adapterhub.Library(adapt.library.root).search(setup=minilm_base())
    return adapt


def test_setting_up_again_says_where_the_model_is(adapt: Adapt) -> None:
    done = adapt("search", "--setup", QUESTION)

    assert f"is set up: {model_place(adapt.library.root)}" in done.stderr
    assert done.stdout == adapt.ok("search", QUESTION)


def test_several_words_are_compared_by_what_they_mean(adapt: Adapt) -> None:
    heads, first, *_ = (line.split("\t") for line in adapt.ok("search", QUESTION).splitlines())
    assert heads[-2:] == ["near", "why"]
    assert (first[0], first[-1]) == ("tenancy", f"description “{ABOUT['tenancy']}”")
    (found, *_) = adapt.json("search", QUESTION)
    assert (found["name"], found["by"], found["matched"]["part"]) == ("tenancy", "meaning", "description")
    assert 0.25 < found["score"] < 1
    assert [one["name"] for one in adapt.json("search", "--meaning", "movies", "--limit", 1)] == ["film-sentiment"]
    assert [adapter.manifest.name for adapter in adapterhub.Library(adapt.library.root).search(QUESTION)][:1] == [
        "tenancy"
    ]


def test_words_stay_words_where_they_are_asked_for(adapt: Adapt) -> None:
    assert [one["by"] for one in adapt.json("search", "--words", "film", "reviews")] == ["words"]
    assert [one["by"] for one in adapt.json("search", "film")] == [None]
    assert adapt.json("search", "--all-words", "film", "rev")[0]["name"] == "film-sentiment"


def test_far_adapters_are_marked(adapt: Adapt) -> None:
    assert all(line.split("\t")[-2].endswith(" far") for line in adapt.ok("search", "xyzzy plugh").splitlines()[1:])
    assert len(adapt.json("search", "--far", QUESTION)) == len(ABOUT) > len(adapt.json("search", QUESTION))


@pytest.mark.parametrize(
    "line",
    [
        ("--meaning",),
        ("--far", "--words", "a", "b"),
        ("--meaning", "--all-words", "a", "b"),
        ("--far", "--remote", "ours", "a", "b"),
    ],
)
def test_options_that_do_not_go_together_are_refused(adapt: Adapt, line: tuple[str, ...]) -> None:
    adapt.fails(2, "search", *line)


def test_python_refuses_the_same(adapt: Adapt) -> None:
    with pytest.raises(UsageProblem, match="expected one of `auto`, `words`, `meaning`"):
        adapterhub.Library(adapt.library.root).search("a", "b", by="likeness")  # type: ignore[call-overload]


def test_the_model_goes_to_the_library_of_the_command(adapt: Adapt, tmp_path: Path) -> None:
    other = Adapt(tmp_path)
    other.library.catalog.put_base(other.library.bases.add(minilm_base(), "minilm"))

    other.ok("search", "--setup")

    assert is_model(model_place(other.library.root))
