"""A check of all builds: the same on several cores, and one that was interrupted goes on with what has the same files."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path

import pytest

import adapterhub
from adapterhub.api.checking import reports_of
from adapterhub.core.errors import CouldNotTell
from adapterhub.formats.manifest import MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.library.store.catalog import RowOf
from adapterhub.library.upkeep import checked, interrupted
from adapterhub.trust.verify import Report
from tests.support.disk_looks import looks
from tests.support.tiny import make_adapter, make_base

NAMES = ("five", "four", "one", "three", "two")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> adapterhub.Library:
    monkeypatch.setattr(interrupted, "_SETTLED_NS", -1)  # the files are young
    monkeypatch.setattr(interrupted, "_WORTH_KEEPING_BYTES", 0)
    library = adapterhub.Library(tmp_path / "home")
    library.add_base(make_base(tmp_path / "base"), "base-7b")
    for seed, name in enumerate(NAMES):
        library.add(make_adapter(tmp_path / name, seed=seed), name=name, base="base-7b")
    library.remove("five")
    return library


def read(library: adapterhub.Library, most: int | None = None) -> tuple[dict[str, Report], list[str]]:
    """The first reports of a check of all that ends after them, and the names of the adapters whose weights it read."""
    with looks() as seen, closing(reports_of(lambda: library, (), None)) as found:  # type: ignore[type-var]
        reports = dict(islice(found, most))
    opened = [str(path) for event, path in seen if event == "open" and str(path).endswith(WEIGHTS_FILE)]
    return reports, sorted({Path(path).parent.parent.name for path in opened})


def test_an_interrupted_check_goes_on_and_one_that_ended_begins_again(library):
    whole, opened = read(library)
    assert opened == ["four", "one", "three", "two"]
    assert not list(library.root.glob("cache/verify/*"))

    assert [name.split()[0] for name in read(library, 2)[0]] == ["four", "one"]
    assert read(library) == (whole, ["three", "two"])
    assert read(library) == (whole, opened)


def changed_bytes(library: adapterhub.Library) -> None:
    """Other bytes of the same size, with the time of the old ones."""
    path = library.find("four").folder / WEIGHTS_FILE
    facts = path.stat()
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def added_file(library: adapterhub.Library) -> None:
    (library.find("four").folder / "pytorch_model.bin").write_bytes(b"pickle")


def other_base(library: adapterhub.Library) -> None:
    library.add_base(make_base(library.root.parent / "other", seed=9), "other")


@pytest.mark.parametrize("change", [changed_bytes, added_file, other_base])
def test_what_changed_since_is_read_again(library, change: Callable[[adapterhub.Library], None]):
    read(library, 2)
    change(library)

    again, opened = read(library)
    assert "four" in opened
    assert again == read(library)[0]
    assert change is not changed_bytes or "E_DIGEST" in {f.code for r in again.values() for f in r.errors}


@pytest.mark.parametrize("damage", ["torn", "zeros", "text"])
def test_a_damaged_line_counts_for_nothing(library, damage):
    whole, _ = read(library)
    read(library, 2)
    [path] = library.root.glob("cache/verify/*")
    data = path.read_bytes()
    path.write_bytes({"torn": data[:-9], "zeros": data[:-9] + bytes(9), "text": b"not a line\n" + data}[damage])

    assert read(library) == (whole, ["three", "two"] if damage == "text" else ["one", "three", "two"])


def test_objects_that_nothing_needs_are_not_read_again_either(library, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adapterhub.api.checking.record_findings", stopped)  # after the objects
        with pytest.raises(KeyboardInterrupt):
            read(library)
    with looks() as seen:
        list(reports_of(lambda: library, (), None))

    assert [path for event, path in seen if event == "open" and "/blobs/" in str(path)] == []


def test_a_file_that_changed_a_moment_ago_is_not_kept(library, monkeypatch):
    monkeypatch.setattr(interrupted, "_SETTLED_NS", 10**15)
    read(library, 2)

    assert read(library)[1] == ["four", "one", "three", "two"]


def test_a_week_later_it_begins_again(library):
    read(library, 2)
    [path] = library.root.glob("cache/verify/*")
    os.utime(path, (0, 0))

    assert read(library)[1] == ["four", "one", "three", "two"]


def test_a_library_that_cannot_be_written_is_checked_all_the_same(library):
    (library.root / "cache").mkdir(exist_ok=True)
    (library.root / "cache" / "verify").write_bytes(b"")

    read(library, 2)
    assert read(library)[1] == ["four", "one", "three", "two"]


@pytest.mark.slow
def test_on_several_cores_it_finds_the_same(library):
    changed_bytes(library)
    (library.find("one").folder / "adapterhub.json").unlink()
    alone, together = library.verify(), library.verify(jobs=3)

    assert (alone.to_json(), alone.exit_code) == (together.to_json(), together.exit_code)
    assert alone.exit_code == 12


def test_doctor_reads_each_manifest_once_and_tells_what_is_wrong(library):
    with looks() as seen:
        lines = library.doctor(offline=True)
    opened = Counter(path for event, path in seen if event == "open" and path.endswith(MANIFEST_FILE))
    assert [line.fact for line in lines if line.what == "index"] == ["4 builds"]
    assert [*opened.values()] == [1] * 4

    index = library.catalog.index
    with closing(sqlite3.connect(index.path)) as connection, connection:
        connection.execute("UPDATE builds SET task = 'other' WHERE name = 'one'")
        connection.execute("DELETE FROM builds WHERE name = 'two'")
    (library.find("four").folder / MANIFEST_FILE).unlink()
    found = {line.what: line.fact for line in library.doctor(offline=True) if line.state == "failed"}
    assert found["index"] == "`builds`: 2 rows missing, 2 wrong"
    assert "No such file" in found["builds"]


def test_an_interrupted_doctor_goes_on_and_reads_what_has_changed(library, monkeypatch):
    def manifests_read(*, until: int = 99) -> tuple[list[str], list[str]]:
        """The names whose manifests a doctor reads that is stopped at a build, and what it says of the index."""

        @contextmanager
        def steps(_what: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
            assert unit == "adapters"

            def step(done: int, _of: int) -> None:
                if done == until:
                    raise KeyboardInterrupt

            yield step

        monkeypatch.setattr(library.reports, "steps", steps)
        facts = []
        with looks() as seen, suppress(KeyboardInterrupt):
            facts = [line.fact for line in library.doctor(offline=True) if line.what in ("index", "builds")]
        read = (path for event, path in seen if event == "open" and path.endswith(MANIFEST_FILE))
        return [Path(path).parent.parent.name for path in read], facts

    assert manifests_read(until=4) == (["four", "one", "three", "two"], [])
    first = "four"  # the first of a base is read, since the base is needed
    assert manifests_read(until=4) == ([first, "two"], [])  # the last was not kept
    (library.find("one").folder / MANIFEST_FILE).touch()
    library.store.manifest_path(library.find("three").manifest.digest).unlink()
    names, facts = manifests_read()
    assert names == [first, "one", "three", "two"]
    assert ["the store does not have its manifest" in fact for fact in facts] == [True, False]
    assert not list(library.root.glob("cache/doctor/*"))


def test_a_build_that_a_writer_adds_while_doctor_reads_is_no_damage(library):
    rows = RowOf.each(library.installed(), library.root)
    first = next(rows)
    library.remove("two")
    library.add(library.root.parent / "five", name="five", base="base-7b")

    assert library.catalog.differences(chain([first], rows)) == []


@pytest.mark.slow
def test_doctor_finds_the_same_on_several_cores(library):
    (library.find("four").folder / MANIFEST_FILE).unlink()

    alone, together = ([line for line in library.doctor(offline=True, jobs=n) if line.what != "disk"] for n in (1, 2))
    assert alone == together


class Ends:
    """Work that ends the process."""

    def __call__(self, _: int) -> int:
        os._exit(1)


@pytest.mark.slow
def test_a_process_that_ends_is_told():
    with pytest.raises(CouldNotTell, match="a process that checked a part ended"):
        list(checked.on_cores(Ends(), range(3), 2))


def test_a_report_is_read_back_as_it_was(library):
    for report in library.verify().values():
        assert Report.from_json(report.to_json()) == report


def test_the_work_is_asked_for_no_further_ahead_than_the_cores_need():
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    next(checked.on_cores(abs, items(), 1))
    assert len(taken) == 1


def test_an_interrupted_look_for_newer_releases_goes_on(library, tmp_path, monkeypatch):
    far = adapterhub.Library(tmp_path / "far")
    far.add_base(tmp_path / "base", "base-7b")
    for seed, name in enumerate(("first", "second", "third"), 20):
        far.add(make_adapter(tmp_path / name, seed=seed), name=name, base="base-7b")
        library.install(name, places=far.root)
        far.add(make_adapter(tmp_path / f"new-{name}", seed=seed + 9), name=name, version="9.0", base="base-7b")

    def asked(*, until: int) -> tuple[set[str], list[object]]:
        """The names that are asked for at the other library, and what it offers."""

        @contextmanager
        def steps(_what: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
            def step(done: int, _of: int) -> None:
                if done == until:
                    raise KeyboardInterrupt

            yield step

        monkeypatch.setattr(library.reports, "steps", steps)
        found: list[object] = []
        with looks() as seen, suppress(KeyboardInterrupt):
            found = [one.to_json() for one in library.upgrade("first", "second", "third", check=True, jobs=1)]
        manifests = (
            Path(path) for _, path in seen if str(path).startswith(str(far.root)) and path.endswith(MANIFEST_FILE)
        )
        return {path.parent.parent.name for path in manifests}, found

    names, whole = asked(until=99)
    assert (names, [one["newest"] for one in whole]) == ({"first", "second", "third"}, ["9.0"] * 3)
    assert not list(library.root.glob("cache/upgrade/*"))
    asked(until=2)
    names, again = asked(until=99)
    assert names <= {"third"}
    assert again == whole
