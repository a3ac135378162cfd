"""Search by meaning in a library: vectors in the index, made where they are missing, and what a registered base serves."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.core.errors import Conflict, DigestMismatch
from adapterhub.formats.meaning.model import FILES, MODEL
from adapterhub.formats.relevance import Matched
from adapterhub.library.find.meaning import Meaning, is_far, model_folder, model_place, opened, refresh, set_up
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.store.rows import Filters
from tests.support.real_encoder import minilm_base

ABOUT = {
    "film-sentiment": "Positive or negative film reviews",
    "tenancy": "Questions about leases, deposits and landlords",
    "sql": "Writes database queries from plain sentences",
}


@pytest.fixture
def model(library: Library) -> Path:
    """The model where `--setup` puts it, as links."""
    place = model_place(library.root)
    place.mkdir(parents=True)
    for name in FILES:
        (place / name).symlink_to(minilm_base() / name)
    return place


@pytest.fixture
def films(add: Callable[..., Added]) -> None:
    for seed, (name, about) in enumerate(ABOUT.items()):
        add(name, description=about, seed=seed)


def names(library: Library, text: str, **options: object) -> list[str]:
    meaning = opened(library)
    assert meaning is not None
    return [hit.row.name for hit in meaning.search(text, Filters(), limit=10, **options)]  # type: ignore[arg-type]


def kept(library: Library) -> int:
    with sqlite3.connect(library.root / "index.db") as connection:
        sql = "SELECT count(*) FROM meaning JOIN builds ON build = builds.rowid WHERE length(vectors) % 384 = 0"
        return int(connection.execute(f"{sql} AND model = ?", (MODEL,)).fetchone()[0])


@pytest.mark.usefixtures("films")
def test_a_question_finds_what_it_means_in_other_words(library: Library, model: Path) -> None:
    assert names(library, "who pays when the tenant breaks something")[:1] == ["tenancy"]
    assert names(library, "is this movie good or bad")[:1] == ["film-sentiment"]
    meaning = opened(library)
    assert meaning is not None
    (first, *_) = meaning.search("who pays when the tenant breaks something", Filters(), limit=3)
    assert (first.matched, is_far(first)) == (Matched("description", ABOUT["tenancy"]), False)
    assert [hit.row.name for hit in meaning.search("films", Filters(name="sql"), limit=3)] == ["sql"]


@pytest.mark.usefixtures("films")
def test_far_builds_are_shown_when_nothing_is_near_or_on_demand(library: Library, model: Path) -> None:
    assert set(names(library, "xyzzy plugh")) == set(ABOUT)
    near = names(library, "who pays when the tenant breaks something")
    assert len(near) < len(names(library, "who pays when the tenant breaks something", far=True)) == 3


@pytest.mark.usefixtures("films")
def test_vectors_are_made_once_and_again_where_they_are_lost(
    library: Library, model: Path, add: Callable[..., Added]
) -> None:
    refresh(library)
    assert kept(library) == 3
    meaning = opened(library)
    assert meaning is not None
    assert meaning.make_missing() == 0
    add("sql", description="Writes graph queries", version="2.0.0", seed=9)
    assert kept(library) == 3  # `add` leaves them to the next search
    assert names(library, "database")[0] == "sql"
    assert kept(library) == 4
    with sqlite3.connect(library.root / "index.db") as connection:
        connection.execute("UPDATE meaning SET model = 'of before'")
    assert names(library, "database")[0] == "sql"
    assert kept(library) == 4
    library.catalog.rebuild()
    assert kept(library) == 4
    library.catalog.rebuild(keep_sketches=False)
    assert kept(library) == 4
    (library.root / "index.db").unlink()
    assert names(library, "database")[0] == "sql"
    library.remove([build for build in library.installed() if build.manifest.name == "sql"])
    assert kept(library) == 2


@pytest.mark.usefixtures("films")
def test_a_killed_command_leaves_some_builds_to_the_next(library: Library, model: Path) -> None:
    meaning = opened(library)
    assert meaning is not None

    def interrupt(_done: int, _all: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meaning.search("films", Filters(), limit=3, steps=interrupt)

    assert library.catalog.differences() == []
    assert names(library, "films")[0] == "film-sentiment"


@pytest.mark.usefixtures("films")
def test_a_library_that_cannot_be_written_answers_all_the_same(library: Library, model: Path, monkeypatch) -> None:
    def refuse(_model: str, _rows: object) -> None:
        raise library.store.explain(PermissionError(13, "Permission denied"))

    meaning = opened(library)
    assert meaning is not None
    library.catalog.index.path.unlink()
    library.catalog.rebuild()  # without vectors
    monkeypatch.setattr(meaning._library.catalog, "keep_vectors", refuse)

    assert [hit.row.name for hit in meaning.search("films", Filters(), limit=1)] == ["film-sentiment"]
    assert kept(library) == 0


def test_without_the_model_there_is_no_search_by_meaning(library: Library) -> None:
    assert opened(library) is None
    assert not library.root.exists()
    refresh(library)
    assert not library.root.exists()


@pytest.mark.usefixtures("films")
def test_a_registered_base_that_is_the_model_serves(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "minilm"
    shutil.copytree(minilm_base(), folder)
    library.catalog.put_base(library.bases.add(folder, "minilm"))
    assert model_folder(library.root, library.catalog.read(lambda index: index.bases())) == folder
    assert names(library, "films")[0] == "film-sentiment"

    words = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(words.replace(b'"film"', b'"milf"'))
    with pytest.raises(Conflict, match="no longer the model"):
        Meaning(library, folder)


def test_setting_up_takes_the_model_whole_or_not_at_all(library: Library, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(minilm_base(), other)
    (other / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(DigestMismatch):
        set_up(library, other)
    assert not model_place(library.root).exists()

    place = set_up(library, minilm_base())
    (place / "tokenizer.json").unlink()
    assert opened(library) is None
    assert set_up(library, minilm_base()) == place
    assert opened(library) is not None
    assert list((library.root / "tmp").iterdir()) == []
