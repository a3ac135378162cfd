"""What `add`, `install`, `alias`, `remove`, `sync` and `info --path` look at does not grow with the builds of a library, and the
folders remain the truth: what other programs change there counts.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from threading import Event
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from adapterhub.api.library import Library
from adapterhub.api.pages.builds import adapter_page
from adapterhub.api.pages.home import library_page
from adapterhub.api.pages.library import search_page
from adapterhub.api.pages.source import LibrarySource
from adapterhub.api.pages.weights import base_page
from adapterhub.api.searching import SORTS
from adapterhub.core.arguments import Sort
from adapterhub.core.errors import AdapterNotFound, AmbiguousSpec, MalformedManifest, NoCompatibleRelease, ReleaseExists
from adapterhub.core.specs import AdapterSpec, parse_version, version_order
from adapterhub.distribution.choosing import look_up
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.library.find.ahead import make_ahead
from adapterhub.library.find.sketching import sketches
from adapterhub.library.installed import Added
from adapterhub.library.store.index import SCHEMA_VERSION
from adapterhub.library.store.rows import Filters
from adapterhub.pages.page import PageQuery
from tests.bench.bench_sync import make_project
from tests.bench.installed_builds import Kind, multiply
from tests.support.disk_looks import looks
from tests.support.locks import entry_of, lock_of, sync
from tests.support.tiny import make_adapter, make_base

Verb = Callable[[Library], object]
_PARTS = (
    ("", "1!"),
    ("0", "1", "1.0.0", "1.2", "1.10", "10.1", "9.9"),
    ("", "a1", "a10", "b2", "rc1"),
    ("", ".post0", ".post10"),
    ("", ".dev0", ".dev11"),
    ("", "+abc", "+abc.1", "+abc.10", "+1", "+10.a", "+2"),
)
VERSIONS = ["".join(parts) for parts in product(*_PARTS)]


def stand(folder: Path, count: int, kind: Kind) -> Library:
    """A library of `count` builds, and another with two new ones, `far` and a version of `agent`."""
    make_base(folder / "base")
    for place, name in ((folder / "home", "agent"), (folder / "place", "far")):
        library = Library(place)
        library.add_base(folder / "base", "base-7b")
        make_adapter(folder / name, seed=len(name))
        library.add(folder / name, name=name, version="0.0.1", base="base-7b")
    library.add(make_adapter(folder / "newer", seed=7), name="agent", version="9.0", base="base-7b")
    home = Library(folder / "home")
    multiply(home, count, kind)
    make_adapter(folder / "new", seed=8)
    return home


def sync_one(library: Library) -> object:
    """A project with one adapter of the library; the first call links its files, each one after that looks at them."""
    build = min(library.builds_for(AdapterSpec.parse("agent==0.0.1"))[0], key=lambda one: one.manifest.version)
    project = library.root.parent / "project"
    lock = lock_of(entry_of(build))
    if not project.exists():
        lock = make_project(project, [build])
    return sync(library, project, lock)


VERBS: dict[str, Verb] = {
    "add": lambda library: library.add(library.root.parent / "new", name="agent", version="5.0", base="base-7b"),
    "add a new name": lambda library: library.add(library.root.parent / "new", name="fresh", base="base-7b"),
    "add --bump": lambda library: library.add(library.root.parent / "new", name="agent", bump="patch", base="base-7b"),
    "install": lambda library: library.install("agent==9.0", places=library.root.parent / "place"),
    "install a new name": lambda library: library.install("far==0.0.1", places=library.root.parent / "place"),
    "alias": lambda library: library.set_alias("prod", "agent==0.0.1"),
    "info --path": lambda library: library.info("agent==0.0.1", only="path"),
    "sync": sync_one,
    "sync again": sync_one,
    "remove": lambda library: library.remove("agent==5.0"),
}


@contextlib.contextmanager
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Each statement that SQLite runs inside the block."""
    seen: list[str] = []
    connect = sqlite3.connect

    def watched(*given: object, **how: object) -> sqlite3.Connection:
        connection = connect(*given, **how)
        connection.set_trace_callback(seen.append)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", watched)
        yield seen


def scans(library: Library, statement: str) -> list[str]:
    """The tables of the library that a statement reads from end to end."""
    with contextlib.closing(sqlite3.connect(library.root / "index.db")) as connection:
        connection.create_function("is_signed", 1, bool)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
    return [step for step in plan if re.match(r"SCAN (?:builds|sketches|meaning|places)\b(?!.*VIRTUAL)", step)]


@pytest.mark.parametrize("kind", ["names", "twins"])
def test_no_verb_looks_at_more_in_a_larger_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    looked: dict[int, dict[str, Counter[str]]] = {}
    asked: dict[int, dict[str, list[str]]] = {}
    for count in (1, 3, 300):  # the first also loads modules
        library = stand(tmp_path / str(count), count, kind)
        looked[count], asked[count] = {}, {}
        for name, verb in VERBS.items():
            with looks() as seen, statements(monkeypatch) as asked[count][name]:
                verb(library)
            looked[count][name] = Counter(event for event, _ in seen)

    assert looked[3] == looked[300]
    assert {name: len(run) for name, run in asked[3].items()} == {name: len(run) for name, run in asked[300].items()}
    for name, run in asked[300].items():
        plans = [step for each in run if each[:6] in ("SELECT", "DELETE", "INSERT") for step in scans(library, each)]
        assert (name, plans) == (name, [])


@pytest.fixture
def three(library: Library, add: Callable[..., Added]) -> Library:
    """`qa` 1.0.0 and 2.0.0, and `acme/qa` 3.0.0."""
    add("qa", version="1.0.0", seed=1)
    add("qa", version="2.0.0", seed=2)
    add("qa", version="3.0.0", seed=3, namespace="acme")
    return library


def found(library: Library, spec: str) -> list[str]:
    """What decides about a spec."""
    return sorted(build.manifest.version for build in library.builds_for(AdapterSpec.parse(spec))[0])


def put_in(library: Library, version: str, made: str) -> Path:
    """A build that another program puts in: a copy of one version that calls itself another."""
    [build] = [one for one in library.builds_named("qa") if one.manifest.version == version]
    target = build.folder.with_name(f"{made}-r{build.manifest.rank}")
    shutil.copytree(build.folder, target)
    text = (build.folder / MANIFEST_FILE).read_text().replace(f'"{version}"', f'"{made}"')
    (target / MANIFEST_FILE).unlink()
    (target / MANIFEST_FILE).write_text(text)
    return target


def test_an_exact_spec_is_decided_by_its_version_and_the_newest_of_each_namespace(three, add):
    add("qa", version="0.5", seed=4)

    assert found(three, "qa==1.0") == ["1.0.0", "2.0.0", "3.0.0"]
    assert found(three, "qa==2") == ["2.0.0", "3.0.0"]
    assert found(three, "acme/qa==1.0") == ["3.0.0"]
    [old] = [one for one in three.builds_named("qa") if one.manifest.version == "0.5"]
    assert found(three, f"qa#{old.manifest.digest[:15]}") == ["0.5", "2.0.0", "3.0.0"]
    assert found(three, "qa>=1") == ["0.5", "1.0.0", "2.0.0", "3.0.0"]


def test_a_bare_name_of_two_namespaces_stays_ambiguous_whatever_version_it_asks_for(three, add):
    add("law", namespace="acme", version="1.0")
    add("law", namespace="corp", version="2.0")

    with pytest.raises(AmbiguousSpec):
        look_up(three, AdapterSpec.parse("law==1.0"))


def test_a_refusal_names_every_version(three):
    with pytest.raises(NoCompatibleRelease) as refused:
        look_up(three, AdapterSpec.parse("qa==7.0"))

    assert [label for label, _ in refused.value.refusals] == ["2.0.0", "1.0.0"]


def test_another_spelling_of_a_version_is_that_version(three, add):
    for version in ("1", "1.0", "v1.0.0.0"):
        with pytest.raises(ReleaseExists):
            add("qa", version=parse_version(version), seed=9)
    [build] = [one for one in three.builds_named("qa") if one.manifest.version == "1.0.0"]
    assert three.folder_for(replace(build.manifest, version="1"), None) == build.folder


def test_bump_follows_the_newest_version_by_its_number(three, add):
    add("qa", version="10.0", seed=4)
    add("qa", version="9.9", seed=5)

    assert add("qa", bump="minor", seed=6).build.manifest.version == "10.1.0"


def test_a_build_that_another_program_put_in_counts(three, add):
    put_in(three, "1.0.0", "1.5")

    assert found(three, "qa==1.5") == ["1.5", "2.0.0", "3.0.0"]
    with pytest.raises(ReleaseExists):
        add("qa", version="1.5.0", seed=9)
    put_in(three, "1.0.0", "6.0")
    assert add("qa", bump="major", seed=9).build.manifest.version == "7.0.0"
    assert found(three, "qa==1.5") == ["1.5", "3.0.0", "6.0", "7.0.0"]  # a change of ours does not hide theirs
    three.catalog.rebuild()
    assert found(three, "qa==1.5") == ["1.5", "3.0.0", "7.0.0"]


def test_a_name_that_another_program_put_in_counts(three):
    [build] = three.builds_named("qa", "acme")
    shutil.copytree(build.folder.parent, build.folder.parent.with_name("corp--qa"))

    assert {one.namespace for one in three.builds_for(AdapterSpec.parse("qa==1.0"))[0]} == {None, "acme", "corp"}


def test_a_build_that_another_program_took_out_does_not_count(three, add):
    [build] = [one for one in three.builds_named("qa") if one.manifest.version == "2.0.0"]
    shutil.rmtree(build.folder)

    assert found(three, "qa==2.0") == ["3.0.0"]
    with pytest.raises(NoCompatibleRelease):
        look_up(three, AdapterSpec.parse("qa==2.0"))
    assert add("qa", version="2.0.0", seed=8).created


def test_a_damaged_build_is_told_when_it_is_asked_for(three):
    [build] = [one for one in three.builds_named("qa") if one.manifest.version == "2.0.0"]
    (build.folder / MANIFEST_FILE).unlink()
    (build.folder / MANIFEST_FILE).write_text("{")

    for _ in ("with its row", "without"):
        with pytest.raises(MalformedManifest):
            found(three, "qa==2.0")
        three.catalog.rebuild()


@pytest.mark.parametrize("state", ["stale", "missing", "of a newer version", "damaged"])
def test_an_index_that_cannot_answer_leaves_it_to_the_folders(three, add, state):
    index = three.catalog.index
    if state == "stale":
        index.remove_builds([row.folder for row in three.catalog.search(Filters())])
        index.stale_mark.touch()
    elif state == "missing":
        index.path.unlink()
    elif state == "damaged":
        index.path.write_bytes(b"no database")
    else:
        with contextlib.closing(sqlite3.connect(index.path)) as connection:
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")

    assert {"1.0.0", "3.0.0"} <= set(found(three, "qa==1.0"))
    with pytest.raises(ReleaseExists):
        add("qa", version="1.0", seed=9)
    assert add("qa", bump="patch", seed=9).build.manifest.version == "2.0.1"


def test_a_crash_between_folder_and_index_hides_no_build(three, add, monkeypatch):
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(three.catalog.index, "upsert_builds", crash)
        with pytest.raises(KeyboardInterrupt):
            add("qa", version="4.0", seed=9)

    assert found(three, "qa==4.0") == ["3.0.0", "4.0"]
    assert three.catalog.index.is_current


def test_a_removed_build_keeps_the_sketch_that_another_name_has(three, add):
    twin = add("qa", version="1.0.0", seed=1, namespace="corp").build
    [build] = [
        one for one in three.builds_named("qa") if one.manifest.digest == twin.manifest.digest and not one.namespace
    ]

    sketches(three)
    three.remove([twin])
    assert build.manifest.digest in {row.digest for row in three.catalog.index.sketches()}
    three.remove([build])
    assert build.manifest.digest not in {row.digest for row in three.catalog.index.sketches()}


@given(one=st.sampled_from(VERSIONS), other=st.sampled_from(VERSIONS))
def test_the_order_of_versions_is_that_of_pep_440(one, other):
    texts, versions = (version_order(one), version_order(other)), (Version(one), Version(other))

    assert (texts[0] < texts[1], texts[0] == texts[1]) == (versions[0] < versions[1], versions[0] == versions[1])


def test_what_add_leaves_is_made_ahead_until_it_is_ended(three):
    ended = Event()
    ended.set()
    make_ahead(three, ended)
    assert three.catalog.index.sketches() == []

    make_ahead(three, Event())
    assert len(three.catalog.index.sketches()) == 3


def test_a_reader_beside_a_writer_reads_no_more_manifests(three, add):
    """The index is stale while a writer changes folders, and its rows hold all the same."""
    for number in range(3):
        add("qa", version=f"0.{number}", seed=20 + number)
    with three.store.lock("publish", exclusive=True), three.catalog.changing():
        assert not three.catalog.index.is_current
        assert found(three, "qa==0.1") == ["0.1", "2.0.0", "3.0.0"]
        put_in(three, "1.0.0", "1.7")  # as a writer does before it writes the row
        assert found(three, "qa==1.7") == ["1.7", "2.0.0", "3.0.0"]


@pytest.fixture
def many(three, add):
    """Twenty more versions of `qa`, up to 0.20."""
    for number in range(1, 21):
        add("qa", version=f"0.{number}", seed=30 + number)
    return three


def chosen(library: Library, spec: str) -> str:
    return look_up(library, AdapterSpec.parse(spec))[0].manifest.version


def reads(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    """How many manifests of builds are read."""
    seen: list[Path] = []
    read = Manifest.read

    def noted(path: Path) -> Manifest:
        seen.append(path)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "read", noted)
        work()
    return len(seen)


def test_a_spec_without_a_version_reads_only_the_newest_where_they_settle_it(many, monkeypatch):
    assert chosen(many, "qa") == chosen(many, "qa>=1") == "2.0.0"
    assert reads(monkeypatch, lambda: chosen(many, "qa")) < 15
    assert chosen(many, "qa<0.4") == "0.3"
    assert reads(monkeypatch, lambda: chosen(many, "qa<0.4")) > 22


def test_older_builds_count_where_the_newest_do_not_settle_it(many, add, base):
    for number in range(1, 21):
        add("qa", version=f"3.{number}.dev1", seed=60 + number)
    assert chosen(many, "qa") == "2.0.0"  # a final release goes before what develops
    for number in range(1, 21):
        add("qa", version=f"9.{number}", seed=90 + number, known=False)
    with pytest.raises(AmbiguousSpec):  # 2.0.0 fits, and 9.1 of an unknown base
        chosen(many, "qa<9.2")
    add("other", version="1.0", seed=1, known=False)
    assert chosen(many, "other") == "1.0"


def test_all_ranks_of_the_newest_version_are_looked_at(many, add):
    for rank in range(1, 15):
        add("qa", version="7.0", seed=200 + rank, rank=rank, variant=True)

    build, resolution = look_up(many, AdapterSpec.parse("qa"))

    assert (build.manifest.version, build.manifest.rank, len(resolution.variants)) == ("7.0", 14, 13)


READS: dict[str, Verb] = {
    "list --limit": lambda library: len(list(library.list(limit=5))),
    "list --sort --limit": lambda library: [len(list(library.list(limit=5, sort=one))) for one in get_args(Sort)],
    "list NAME --limit": lambda library: len(list(library.list("agent", limit=5))),
    "list --base --limit": lambda library: len(list(library.list(base="base-7b", limit=5, sort="date"))),
    "search": lambda library: len(library.search("agent", "missing", limit=5)),
    "tree": lambda library: library.tree("agent==0.0.1"),
    "tree --invert": lambda library: library.tree("agent==0.0.1", invert=True),
    "info": lambda library: library.info("agent==0.0.1").used_by,
    "complete": lambda library: library.catalog.index.names_from("agent-1", 5),
    "the first page": lambda library: search_page(LibrarySource(library, None), PAGE).next_url,
    "the first page of a word": lambda library: _page(library, q="agent"),
    "the first page of a word by date": lambda library: _page(library, q="agent", sort="date"),
    "the first page of a word of a base": lambda library: _page(library, q="agent", base="base-7b"),
    "the first page of facets": lambda library: _page(library, base="base-7b", rank="4", method="lora"),
    "the first page of no build": lambda library: _page(library, base="base-7b", rank="5", method="dora"),
    "the page of the library": lambda library: library_page(LibrarySource(library, None), PAGE).groups,
    "the page of a base": lambda library: base_page(
        LibrarySource(library, None),
        replace(PAGE, path={"fingerprint": library.bases.list()[0].fingerprint.weights[7:]}),
    ),
    "a page of a build": lambda library: adapter_page(
        LibrarySource(library, None), replace(PAGE, path={"namespace": "-", "name": "agent"})
    ),
}
PAGE = PageQuery(path={}, query={})


def _page(library: Library, **query: str) -> str | None:
    return search_page(LibrarySource(library, None), replace(PAGE, query=query)).next_url


@pytest.mark.parametrize("count", [3000])
def test_no_list_reads_more_rows_in_a_larger_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """By the steps of SQLite's machine, of which each row takes a few, and the opened files."""
    monkeypatch.setattr("adapterhub.library.store.index._FEW", 20)
    monkeypatch.setattr("adapterhub.library.store.words._MOST_READ", 20)
    monkeypatch.setattr("adapterhub.api.pages.library.MOST_COUNTED", 20)  # facets count at most so many
    steps: dict[int, dict[str, int]] = {}
    opened: dict[int, dict[str, int]] = {}
    for size in (60, 61, count):  # the first also loads modules; 60 builds are more than a page shows
        library = stand(tmp_path / str(size), size, "names")
        steps[size], opened[size] = {}, {}
        for name, read in READS.items():
            with looks() as seen, machine_steps(monkeypatch) as made:
                read(library)
            steps[size][name], opened[size][name] = len(made), len(seen)

    assert opened[61] == opened[count]
    assert {name: many for name, many in steps[count].items() if many > 1.5 * steps[61][name] + 20} == {}


@contextlib.contextmanager
def machine_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """One item for each ten instructions that SQLite runs inside the block."""
    seen: list[None] = []
    connect = sqlite3.connect

    def watched(*given: object, **how: object) -> sqlite3.Connection:
        connection = connect(*given, **how)
        connection.set_progress_handler(lambda: seen.append(None), 10)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", watched)
        yield seen


def test_a_long_list_is_read_in_pages_and_goes_past_what_is_removed_meanwhile(three, monkeypatch):
    monkeypatch.setattr("adapterhub.api.searching._PAGE", 2)
    listed = Library(three.root).list(sort="date", reverse=True)
    cells = iter(listed.cells)

    assert next(cells)[:2] == ("qa", "1.0.0")
    three.remove(three.builds_named("qa", "acme"))
    assert [row[1] for row in cells] == ["2.0.0"]
    there = pickle.loads(pickle.dumps(listed))  # noqa: S301 - our own bytes, as to another process
    assert (len(listed), [one.manifest.version for one in there]) == (3, ["1.0.0", "2.0.0"])
    with pytest.raises(AdapterNotFound):
        _ = listed[2]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sort", get_args(Sort))
def test_an_order_is_that_of_its_key_and_then_of_the_names(many, add, sort, reverse):
    """The same as Python's, as a whole and in pages."""
    for number, task in enumerate(("b", "", "a")):
        add(f"other-{number}", version="1.0", seed=300 + number, rank=2 + number % 2, task=task)
    rows = many.catalog.search(Filters())
    wanted = [row.digest for row in sorted(rows, key=SORTS[sort])][:: -1 if reverse else 1]
    index = many.catalog.index

    assert [row.digest for row in index.search(Filters(sort=sort, reverse=reverse))] == wanted
    pages = [index.search(Filters(sort=sort, reverse=reverse, skip=at, limit=4)) for at in range(0, len(wanted), 4)]
    assert [row.digest for page in pages for row in page] == wanted
