"""From what a project wants to its lock: places in their order, what stays, what is asked anew, and why not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.core.errors import (
    AdapterNotFound,
    MalformedManifest,
    NoCompatibleRelease,
    NotFound,
    ProjectConflict,
    RefusedAdapter,
    RemoteUnreachable,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.release import Release
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.library import Library
from adapterhub.library.store.origins import Origin
from adapterhub.library.transfer import Source, copy
from adapterhub.projects.file import parse_project
from adapterhub.projects.lock.lockfile import lock_problems, lock_text, locked_step
from adapterhub.projects.locking import ALL, LockOutcome, lock_project
from adapterhub.projects.values import (
    AdapterRequirement,
    Lock,
    LockedAdapter,
    LockedMerge,
    LockedSource,
    MergeRequirement,
    Project,
)
from tests.support.locks import in_directory
from tests.support.tiny import make_base


class Asked:
    """The places of a project, and which names were asked for."""

    def __init__(self, *places: PublishedDirectory) -> None:
        self.places, self.names = places, list[str]()

    def __call__(self, _wanted: AdapterRequirement) -> Sequence[Source]:
        opened = [type(place)(place.root) for place in self.places]  # anew: a directory is read once
        return [_Counting(place, self.names) for place in opened]


class _Counting:
    def __init__(self, place: Source, names: list[str]) -> None:
        self._place, self._names = place, names

    def __getattr__(self, name: str) -> object:
        return getattr(self._place, name)

    def releases(self, spec: AdapterSpec) -> Sequence[Release]:
        self._names.append(spec.name)
        return self._place.releases(spec)


@pytest.fixture
def other(tmp_path: Path) -> Library:
    """Somebody else's library, to publish from."""
    return Library(tmp_path / "other")


@pytest.fixture
def publish(add, other: Library) -> Callable[..., Release]:
    """Make an adapter and publish it into a directory: `publish(folder, "legal-qa", version="1.2.0")`."""

    def make(folder: Path, name: str, **more: object) -> Release:
        build = add(name, into=other, **more).build
        release = Release(manifest=build.manifest, namespace=build.namespace, origin="made here")
        copy(release, other, PublishedDirectory(folder))
        return release

    return make


def project(folder: Path, text: str) -> Project:
    return parse_project(("[project]\nbase = 'base-7b'\n" + text).encode(), folder, "adapters.toml")


def versions(lock: Lock) -> dict[str, str]:
    return {entry.key: entry.version for entry in lock.adapters}


def no_merge(_wanted: MergeRequirement, _inputs: object) -> LockedMerge:
    raise AssertionError("no merge is run")


# ---------------------------------------------------------------- choosing
def test_the_first_place_that_has_a_fitting_build_decides(tmp_path, library, publish):
    publish(tmp_path / "near", "legal-qa", version="1.0.0", seed=1)
    publish(tmp_path / "far", "legal-qa", version="2.0.0", seed=2)
    publish(tmp_path / "far", "tables", version="1.0.0", seed=3)
    places = Asked(PublishedDirectory(tmp_path / "near"), PublishedDirectory(tmp_path / "far"))

    outcome = lock_project(library, project(tmp_path, "[adapters]\nlegal-qa = ''\ntables = ''"), places)

    assert versions(outcome.lock) == {"legal-qa": "1.0.0", "tables": "1.0.0"}
    assert [change.kind for change in outcome.changes] == ["added", "added", "added"]


def test_the_library_is_asked_last_so_that_every_machine_locks_the_same(tmp_path, library, add, publish):
    add("legal-qa", version="3.0.0")
    release = publish(tmp_path / "published", "legal-qa", version="1.0.0", seed=9)
    wanted = project(tmp_path, "[remotes.pub]\npath = './published'\n[adapters]\nlegal-qa = ''")

    lock = lock_project(library, wanted, Asked(PublishedDirectory(tmp_path / "published"))).lock

    assert lock.adapters[0].digest == release.digest
    assert lock.adapters[0].source == in_directory("./published", "pub")


def test_an_adapter_that_names_its_remote_is_not_locked_from_another(tmp_path, library, add):
    digest = add("legal-qa").build.manifest.digest
    library.origins.record(Origin(adapter=digest, name="legal-qa", place=str(tmp_path / "here")))
    text = "[remotes.here]\npath = 'here'\n[remotes.there]\npath = 'there'\n"
    asks_here, asks_there = (
        project(tmp_path, f"{text}[adapters]\nlegal-qa = {{ spec = '*', remote = '{name}' }}")
        for name in ("here", "there")
    )
    (tmp_path / "there").mkdir()

    [entry] = lock_project(library, asks_here, Asked()).lock.adapters
    with pytest.raises(AdapterNotFound, match="no adapter `legal-qa` in remote `there`") as refused:
        lock_project(library, asks_there, Asked(PublishedDirectory(tmp_path / "there")))

    assert entry.source == in_directory("here", "here")
    assert refused.value.hint == '`legal-qa` names `remote = "there"`, so it is not looked up anywhere else'


def test_what_only_the_library_has_is_locked_without_a_place(tmp_path, library, add):
    build = add("legal-qa", rank=4).build

    [entry] = lock_project(library, project(tmp_path, "[adapters]\nlegal-qa = '>=1'"), Asked()).lock.adapters

    assert (entry.digest, entry.base, entry.rank) == (build.manifest.digest, build.base.fingerprint.weights, 4)
    assert entry.source.is_library
    assert [(f.path, f.sha256, f.size_bytes) for f in entry.files] == [
        (f.path, f.sha256, f.size_bytes) for f in sorted(build.manifest.files, key=lambda f: f.path)
    ]


def test_a_directory_inside_the_project_is_written_from_there(tmp_path, library, publish):
    publish(tmp_path / "work" / "published", "legal-qa")
    publish(tmp_path / "outside", "tables", seed=2)
    places = Asked(PublishedDirectory(tmp_path / "work" / "published"), PublishedDirectory(tmp_path / "outside"))

    lock = lock_project(library, project(tmp_path / "work", "[adapters]\nlegal-qa = ''\ntables = ''"), places).lock

    assert [entry.source for entry in lock.adapters] == [in_directory("./published"), LockedSource()]
    assert str(tmp_path) not in lock_text(lock)


def test_ranks_versions_and_names_of_the_project_are_obeyed(tmp_path, library, add):
    for rank in (4, 8, 16):
        add("legal-qa", version="1.0.0", rank=rank, seed=rank, variant=True)
    add("legal-qa", version="2.0.0", rank=4, seed=20)
    text = """[adapters]
legal-qa = "<2"
small = { spec = "legal-qa==1.0.0", rank = "-8" }
newest = "legal-qa"
"""

    lock = lock_project(library, project(tmp_path, text), Asked()).lock

    assert {e.key: (e.name, e.version, e.rank) for e in lock.adapters} == {
        "legal-qa": ("legal-qa", "1.0.0", 16),
        "small": ("legal-qa", "1.0.0", 8),
        "newest": ("legal-qa", "2.0.0", 4),
    }


def test_the_order_of_the_project_file_does_not_matter(tmp_path, library, add):
    names = ["alpha", "beta", "gamma", "delta"]
    for seed, name in enumerate(names):
        add(name, seed=seed)
    texts = set()
    for seed in range(4):
        shuffled = random.Random(seed).sample(names, len(names))
        text = "[adapters]\n" + "".join(f"{name} = '>=1'\n" for name in shuffled)
        texts.add(lock_text(lock_project(library, project(tmp_path, text), Asked()).lock))

    assert len(texts) == 1


# ---------------------------------------------------------------- what stays
@pytest.fixture
def locked(tmp_path, library, publish) -> tuple[Project, Asked, LockOutcome]:
    """A project of two adapters, locked at 1.0.0 of each, while 2.0.0 has come out since."""
    publish(tmp_path / "published", "legal-qa", version="1.0.0", seed=1, rank=4)
    publish(tmp_path / "published", "tables", version="1.0.0", seed=2, rank=4)
    wanted = project(tmp_path, "[adapters]\nlegal-qa = '>=1'\ntables = '>=1'\n")
    places = Asked(PublishedDirectory(tmp_path / "published"))
    outcome = lock_project(library, wanted, places)
    publish(tmp_path / "published", "legal-qa", version="2.0.0", seed=3, rank=8)
    publish(tmp_path / "published", "tables", version="2.0.0", seed=4, rank=8)
    places.names.clear()
    return wanted, places, outcome


def test_what_is_locked_stays_and_no_place_is_asked(library, locked):
    wanted, places, before = locked

    again = lock_project(library, wanted, places, previous=before.lock)

    assert (again.lock, again.changes, places.names) == (before.lock, (), [])


def test_only_what_changed_in_the_project_is_asked_for(tmp_path, library, locked):
    _, places, before = locked
    changed = project(tmp_path, "[adapters]\nlegal-qa = '>=2'\ntables = '>=1'\n")

    again = lock_project(library, changed, places, previous=before.lock)

    assert (versions(again.lock), places.names) == ({"legal-qa": "2.0.0", "tables": "1.0.0"}, ["legal-qa"])
    assert [change.line.split("  ")[:2] for change in again.changes] == [["~ legal-qa", "1.0.0 -> 2.0.0"]]
    assert lock_problems(changed, again.lock) == []


def test_a_move_between_groups_asks_nobody(tmp_path, library, locked):
    _, places, before = locked
    changed = project(tmp_path, "[adapters]\nlegal-qa = '>=1'\n[groups.eval]\ntables = '>=1'\n")

    again = lock_project(library, changed, places, previous=before.lock)

    assert ([e.group for e in again.lock.adapters], places.names) == ([None, "eval"], [])


def test_upgrade_chooses_anew_what_is_named(library, locked):
    wanted, places, before = locked

    one = lock_project(library, wanted, places, previous=before.lock, upgrade=["tables"])
    everything = lock_project(library, wanted, places, previous=before.lock, upgrade=ALL)

    assert versions(one.lock) == {"legal-qa": "1.0.0", "tables": "2.0.0"}
    assert versions(everything.lock) == {"legal-qa": "2.0.0", "tables": "2.0.0"}
    with pytest.raises(NotFound, match="no adapter `tabels` in this project; did you mean `tables`"):
        lock_project(library, wanted, places, previous=before.lock, upgrade=["tabels"])


def test_a_new_policy_keeps_what_it_lets_in_and_replaces_the_rest(tmp_path, library, locked, publish):
    wanted, places, before = locked
    publish(tmp_path / "published", "tables", version="1.5.0", seed=5, rank=2)
    newer = lock_project(library, wanted, places, previous=before.lock, upgrade=["legal-qa"]).lock
    stricter = project(tmp_path, "[adapters]\nlegal-qa = '>=1'\ntables = '>=1'\n[policy]\nmax-rank = 4\n")

    again = lock_project(library, stricter, places, previous=newer)

    assert versions(newer) == {"legal-qa": "2.0.0", "tables": "1.0.0"}
    assert versions(again.lock) == {"legal-qa": "1.0.0", "tables": "1.0.0"}
    assert again.lock.policy.max_rank == 4
    assert again.changes[0].line == "~ policy `max-rank` changed from nothing to `4`"


def test_a_build_that_is_given_is_locked_from_where_it_is_found(library, locked):
    wanted, places, before = locked
    newest = lock_project(library, wanted, places, upgrade=ALL).lock.adapters[0]
    here = replace(newest, source=LockedSource())

    outcome = lock_project(library, wanted, places, previous=before.lock, given={here.key: here})

    assert outcome.lock.adapters[0] == newest


# ---------------------------------------------------------------- why not
def test_all_that_cannot_be_locked_is_told_at_once(tmp_path, library, add):
    add("legal-qa", version="1.0.0")
    wanted = project(tmp_path, "[adapters]\nlegal-qa = '>=2'\nmissing = ''\n")

    with pytest.raises(NotFound) as refused:
        lock_project(library, wanted, Asked())

    assert refused.value.message.startswith("2 adapters of the project cannot be locked. Nothing was changed")
    assert "1.0.0  version 1.0.0 is outside >=2" in refused.value.message
    assert "`missing`: no adapter `missing`" in refused.value.message


def test_one_refusal_keeps_its_reasons(tmp_path, library, add):
    add("legal-qa", version="1.0.0", rank=8, variant=True)

    with pytest.raises(NoCompatibleRelease) as refused:
        lock_project(library, project(tmp_path, "[adapters]\nlegal-qa=''\n[policy]\nmax-rank = 4\n"), Asked())
    with pytest.raises(AdapterNotFound):
        lock_project(library, project(tmp_path, "[adapters]\nnothing=''\n"), Asked())

    assert refused.value.refusals == (("1.0.0", "rank 8, policy `max-rank` is 4"),)
    assert refused.value.hint.startswith("`max-rank = 8` under `[policy]` allows it")


def test_a_refusal_names_no_option_that_locking_lacks(tmp_path, library, add):
    make_base(tmp_path / "tuned", seed=7)
    library.bases.add(tmp_path / "tuned", "tuned")
    add("legal-qa")
    text = "[project]\nbase = 'tuned'\n[adapters]\nlegal-qa = ''\n"

    with pytest.raises(NoCompatibleRelease) as refused:
        lock_project(library, parse_project(text.encode(), tmp_path, "adapters.toml"), Asked())

    [(_, reason)] = refused.value.refusals
    assert reason.endswith("; the shapes are the same")


def test_a_server_that_is_not_there_is_told_with_the_adapter_that_needs_it(tmp_path, library, base):
    class Unreachable(PublishedDirectory):
        def releases(self, _spec: AdapterSpec) -> Sequence[Release]:
            raise RemoteUnreachable("http://127.0.0.1:9 could not be reached")

    with pytest.raises(RemoteUnreachable, match=r"^`legal-qa` cannot be locked: http.* Nothing was changed"):
        lock_project(library, project(tmp_path, "[adapters]\nlegal-qa = ''"), Asked(Unreachable(tmp_path)))


def test_a_base_whose_weights_changed_is_refused_until_everything_is_upgraded(tmp_path, library, base, add):
    add("legal-qa")
    wanted = project(tmp_path, "[adapters]\nlegal-qa = ''")
    before = lock_project(library, wanted, Asked()).lock
    library.bases.remove("base-7b")
    moved = library.bases.add(make_base(tmp_path / "base-2", seed=7), "base-7b")

    with pytest.raises(ProjectConflict) as refused:
        lock_project(library, wanted, Asked(), previous=before)
    with pytest.raises(NoCompatibleRelease, match="made for another base"):
        lock_project(library, wanted, Asked(), previous=before, upgrade=ALL)

    assert base.fingerprint.weights in refused.value.message
    assert moved.fingerprint.weights in refused.value.message


def test_a_base_that_is_not_registered_here_is_known_by_the_lock(tmp_path, library, base: BaseRecord, add, publish):
    publish(tmp_path / "published", "legal-qa")
    publish(tmp_path / "published", "tables", seed=3)
    places = Asked(PublishedDirectory(tmp_path / "published"))
    before = lock_project(library, project(tmp_path, "[adapters]\nlegal-qa = ''"), places).lock
    elsewhere = Library(tmp_path / "elsewhere")

    again = lock_project(
        elsewhere, project(tmp_path, "[adapters]\nlegal-qa = ''\ntables = ''"), places, previous=before
    ).lock

    assert again.base == before.base
    assert [entry.base for entry in again.adapters] == [base.fingerprint.weights] * 2


def test_a_broken_build_matters_only_where_it_would_be_taken(tmp_path, library, publish):
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(tmp_path / "shop", "legal-qa", version=version)
    places = Asked(PublishedDirectory(tmp_path / "shop"))
    torn = tmp_path / "shop" / "legal-qa" / "1.1.0-r4"
    manifest, whole = torn / "adapterhub.json", (torn / "adapterhub.json").read_bytes()
    manifest.write_bytes(whole.replace(b'"target_modules":[', b'"target_modules":[7,'))
    (torn / "adapter_model.safetensors").unlink()

    lock = lock_project(library, project(tmp_path, "[adapters]\nlegal-qa = ''"), places).lock
    with pytest.raises(MalformedManifest, match=r"target_modules\[0\]: expected string, got integer"):
        lock_project(library, project(tmp_path, "[adapters]\nlegal-qa = '==1.1.0'"), places)
    manifest.write_bytes(whole)
    with pytest.raises(RefusedAdapter, match=r"adapter_model\.safetensors"):
        lock_project(library, project(tmp_path, "[adapters]\nlegal-qa = '==1.1.0'"), places)
    manifest.write_bytes(whole.replace(b'"version":"1.1.0"', b'"version":1'))
    with pytest.raises(MalformedManifest, match="version: expected string"):  # nothing can be chosen without the facts
        lock_project(library, project(tmp_path, "[adapters]\nlegal-qa = ''"), places)

    assert versions(lock) == {"legal-qa": "1.2.0"}


# ---------------------------------------------------------------- merges
MERGES = """[adapters]
legal-qa = ''
tables = ''
[merges.all]
inputs = [ { adapter = "both", weight = 1 } ]
[merges.both]
inputs = [ { adapter = "legal-qa", weight = 0.5 }, { adapter = "tables", weight = 0.5 } ]
"""


def as_if_merged(made: list[str]) -> Callable[..., LockedMerge]:
    """Notes which merges are run, and gives what a run would be described as."""

    def make(wanted: MergeRequirement, inputs) -> LockedMerge:
        made.append(wanted.key)
        some: LockedAdapter = next(e for e in inputs.values())
        return LockedMerge(
            key=wanted.key,
            version=wanted.version or f"1.0.0+{len(made)}",
            digest=some.digest,
            base=some.base,
            rank=8,
            step=locked_step(wanted.step, inputs),
            task=wanted.task,
            description=wanted.description,
            license=wanted.license,
            source=LockedSource(),
            files=some.files,
        )

    return make


def test_merges_are_run_after_their_inputs_and_once(tmp_path, library, add):
    add("legal-qa", seed=1)
    add("tables", seed=2)
    made: list[str] = []
    wanted = project(tmp_path, MERGES)

    outcome = lock_project(library, wanted, Asked(), make_merge=as_if_merged(made))
    again = lock_project(library, wanted, Asked(), previous=outcome.lock, make_merge=no_merge)

    assert made == ["both", "all"]
    assert again.lock == outcome.lock
    assert lock_problems(wanted, again.lock) == []


def test_a_merge_is_run_again_when_an_input_or_its_recipe_changes(tmp_path, library, add):
    add("legal-qa", seed=1)
    add("tables", seed=2)
    before = lock_project(library, project(tmp_path, MERGES), Asked(), make_merge=as_if_merged([])).lock
    add("tables", version="2.0.0", seed=3)
    made: list[str] = []

    # `as_if_merged` gives the same result for other tables, so `all` has the inputs that it had
    lock_project(
        library,
        project(tmp_path, MERGES),
        Asked(),
        previous=before,
        upgrade=["tables"],
        make_merge=as_if_merged(made),
    )
    lock_project(
        library,
        project(tmp_path, MERGES.replace("weight = 1 ", "weight = 2 ")),
        Asked(),
        previous=before,
        make_merge=as_if_merged(made),
    )

    assert made == ["both", "all"]
