"""A kind of remote is one file: a toy kind is locked, synced, trusted and refused with no other file changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.core.errors import Malformed, ProjectNotTrusted, RemoteUnreachable, UsageProblem
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution import kinds, remote_kinds
from adapterhub.distribution.remote_kinds import kind_names, kind_of
from adapterhub.formats.release import Release
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from adapterhub.projects.file import parse_project
from adapterhub.projects.lock.lockfile import lock_problems, read_lock
from adapterhub.projects.locking import changes_between
from adapterhub.projects.places import ProjectSources, Where, build_sources, lock_now, save_lock
from adapterhub.projects.session import Session
from adapterhub.projects.sync import plan_sync, run_sync, syncing, wanted_entries
from adapterhub.projects.values import Lock

PROJECT = """\
[remotes.corner]
kind = "toy"
url = "toy://corner"
namespaces = ["acme"]

[adapters]
legal-qa = "acme/legal-qa"
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy kind as one more file of `distribution/kinds/`."""
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(Path(__file__).parent.parent / "support" / "kinds")])
    for cached in (remote_kinds.kind_names, remote_kinds.kind_named):
        cached.cache_clear()
    yield
    for cached in (remote_kinds.kind_names, remote_kinds.kind_named):
        cached.cache_clear()


@pytest.fixture
def world(toy: None, add, base, tmp_path: Path) -> Session:
    """A shop that has `acme/legal-qa`, a project that names it, and a library without the build."""
    from adapterhub.distribution.kinds import toy as module  # type: ignore[attr-defined] # which the fixture `toy` adds

    other = Library(tmp_path / "other")
    build = add("legal-qa", into=other).build
    release = Release(manifest=build.manifest, namespace=None, origin="made here")
    copy(release, other, PublishedDirectory(tmp_path / "shop"))
    module.SHOPS.clear()
    module.OPENED.clear()
    module.SHOPS["toy://corner"] = tmp_path / "shop"
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "adapters.toml").write_text(PROJECT)
    return Session(tmp_path / "home", project_dir=folder, trusts_project=True)


def lock(session: Session, **options: bool) -> Lock:
    project = session.need_project()
    outcome = lock_now(session, project, ProjectSources(session, project, Where(**options)), previous=None)
    save_lock(session, project, outcome.lock)
    return outcome.lock


def sync(session: Session, **options: bool) -> None:
    project = session.need_project()
    locked = read_lock(project.folder)
    with syncing(session.library, project.folder) as target:
        plan = plan_sync(target, wanted_entries(locked))
        sources = ProjectSources(session, project, Where(**options))
        run_sync(session.library, locked, plan, build_sources(session, locked, sources))


def test_a_kind_in_one_file_is_locked_and_synced(world):
    made = lock(world)
    text = (world.project_dir / "adapters.lock").read_text()

    entry = made.adapters[0]
    ticket = f'source = {{ remote = "corner", kind = "toy", url = "toy://corner", ticket = "{entry.digest}" }}'
    assert ticket in text.splitlines()
    assert read_lock(world.project_dir) == made
    assert lock_problems(world.need_project(), made) == []
    assert f"from ticket {entry.digest[:11]} of toy://corner" in changes_between(None, made)[0].text

    sync(world)

    assert (world.project_dir / "adapters" / "legal-qa" / "adapter_config.json").is_file()
    origin = world.library.origins.of(entry.digest)
    assert (origin.place, origin.is_server) == ("toy://corner", True)
    assert world.place_source(origin.place).label == "shop `toy://corner`"
    (world.project_dir / "adapters.lock").unlink()
    assert lock(world).adapters[0].source.address == "toy://corner"


def test_a_server_of_any_kind_needs_agreement_and_a_network(world, tmp_path):
    careful = Session(world.root, project_dir=world.project_dir)
    with pytest.raises(ProjectNotTrusted, match="corner  toy://corner  for acme"):
        lock(careful)
    lock(world)

    with pytest.raises(ProjectNotTrusted):
        sync(careful)
    with pytest.raises(RemoteUnreachable, match="locked from toy://corner, and `--offline` forbids"):
        sync(world, offline=True)
    assert not (world.project_dir / "adapters").exists()


def test_a_remote_of_the_user_may_be_of_any_kind(world):
    from adapterhub.distribution.kinds import toy as module  # type: ignore[attr-defined] # as above

    made = world.remotes.add("shop", "toy://corner", namespaces=["acme"], kind="toy")
    world.remotes.login(made, "secret")
    spec = AdapterSpec.parse("acme/legal-qa")

    found = [
        release.full_name for source in world.sources_of(spec, None, token=None) for release in source.releases(spec)
    ]

    assert world.remotes.get("shop") == world.remotes.get("toy://corner") == made
    assert found == ["acme/legal-qa"]
    assert module.OPENED == [("toy://corner", "secret")]
    with pytest.raises(UsageProblem, match="does not speak the Hugging Face Hub's protocol"):
        world.hub(made)


def test_each_known_kind_claims_its_places():
    assert kind_names() == ("directory", "hub", "oci")
    places = ("https://a.example", "/srv/published", "oci://a.example/x")
    assert [kind_of(place).name for place in places] == ["hub", "directory", "oci"]
    with pytest.raises(UsageProblem, match="no known kind"):
        kind_of("ftp://a.example/x")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (
            'kind = "ftp"\nurl = "ftp://a"',
            "remotes.x.kind: no kind of remote `ftp`; there are `directory`, `hub`, `oci`",
        ),
        ('url = "oci://a"', 'expected http://… or https://…, or its kind beside it, such as `kind = "oci"`'),
        ('kind = "hub"\npath = "p"', "remotes.x: expected either `url`"),
        ('kind = "directory"\nurl = "https://a.example"', "remotes.x: expected either `url`"),
    ],
)
def test_a_project_file_with_a_kind_that_does_not_fit_is_refused(table, told, tmp_path):
    with pytest.raises(Malformed) as refused:
        parse_project(f"[remotes.x]\n{table}\n".encode(), tmp_path, "adapters.toml")

    assert told in refused.value.message


def test_the_kind_of_a_known_address_may_be_written(tmp_path):
    short, long = (
        parse_project(f"[remotes.x]\n{kind}url = 'https://a.example'\n".encode(), tmp_path, "adapters.toml")
        for kind in ("", "kind = 'hub'\n")
    )

    assert short == long
