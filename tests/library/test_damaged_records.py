"""Damage in the small records of a library: each is named with its path and remedy, and none stops the check of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.api.checking import bytes_to_check, reports_of
from adapterhub.core.digests import digest_of, hex_of
from adapterhub.core.errors import Malformed
from adapterhub.library.library import Library
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

MALFORMED, SOME_FAILED = 16, 3


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """Two builds, an alias, two bases, a project, a trusted project, settings, a key and a signed result."""
    adapt = Adapt(tmp_path)
    make_base(tmp_path / "base")
    make_base(tmp_path / "other", seed=3)
    adapt.ok("base", "add", "base", "--as", "b")
    adapt.ok("base", "add", "other", "--as", "o")
    for seed, name in enumerate(("one", "two")):
        adapt.ok("add", make_adapter(tmp_path / name, seed=seed), "--name", name, "--base", "b")
    adapt.ok("add", make_adapter(tmp_path / "free", seed=5), "--name", "free", "--no-base")
    adapt.ok("base", "pin", "free", "b")
    adapt.ok("alias", "set", "prod", "one")
    adapt.ok("contract", "policy", "off")
    adapt.ok("remote", "add", "ours", "http://127.0.0.1:9")
    adapt.ok("key", "new", "ann", "--unencrypted")
    adapt.ok("key", "trust", "ann")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "adapters.toml").write_text(
        '[remotes.r]\nurl = "http://127.0.0.1:9"\nnamespaces = ["x"]\n\n[adapters]\none = ""\n'
    )
    adapt.ok("remote", "trust", "project")
    adapt.ok("lock", "--project", "project", "--offline")
    place = tmp_path / "home" / "tests" / ("ab" * 32)
    place.mkdir(parents=True)
    (place / f"{hex_of(digest_of(b'{}'))}.json").write_bytes(b"{}")
    return adapt


PLACES: dict[str, str] = {
    "an alias": "aliases/*.json",
    "a base": "bases/o.json",
    "the base of the builds": "bases/b.json",
    "an origin": "origins/*.json",
    "a pin": "pins/*.json",
    "a project": "projects/*.json",
    "a result": "tests/*/*.json",
    "the trusted projects": "trusted_projects.json",
    "the settings": "config.json",
    "the remotes": "remotes.json",
    "the trusted keys": "trusted_keys.json",
}
SETTINGS = ("config.json", "remotes.json", "trusted_keys.json")
DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "of another kind": lambda path: path.write_bytes(b"[5]"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", PLACES)
def test_it_is_named_with_its_remedy_and_the_other_checks_go_on(
    adapt: Adapt, tmp_path: Path, place: str, damage: str
) -> None:
    path = next((tmp_path / "home").glob(PLACES[place]))
    path.chmod(0o600)
    DAMAGES[damage](path)
    where = path.relative_to(tmp_path / "home").as_posix()

    verified, doctor = adapt("verify", "--all"), adapt("doctor", "--offline")

    assert (verified.exit_code, doctor.exit_code) == (SOME_FAILED, SOME_FAILED)
    assert f"[E_RECORD] error: {where}" in verified.stdout
    assert f"{path}: " in doctor.stdout
    assert "hint: " in doctor.stderr
    assert all(name in verified.stdout for name in ("one 1.0.0", "two 1.0.0"))


def test_a_check_of_all_leaves_the_library_that_it_was_asked_of_as_strict_as_it_was(
    adapt: Adapt, tmp_path: Path
) -> None:
    library = Library(tmp_path / "home")
    DAMAGES["cut"](tmp_path / "home" / PLACES["a base"])

    assert bytes_to_check(lambda: library, ())
    assert len([*reports_of(lambda: library, (), None, None)]) > len(adapt.json("list"))

    with pytest.raises(Malformed, match=r"o\.json"):
        library.bases.list()


@pytest.mark.parametrize("place", PLACES)
def test_a_repair_goes_past_it_and_names_it(adapt: Adapt, tmp_path: Path, place: str) -> None:
    path = next((tmp_path / "home").glob(PLACES[place]))
    path.chmod(0o600)
    path.write_bytes(b"{")
    (tmp_path / "home" / "index.db").unlink()

    planned, done = adapt("doctor", "--repair", "--dry-run"), adapt("doctor", "--repair", "--offline")

    assert (planned.exit_code, done.exit_code) == (SOME_FAILED, SOME_FAILED)
    assert f"not mended\t{path}\t" in planned.stdout
    assert f"not mended\t{path}\t" in done.stdout
    assert any(f"; {remedy}" in done.stdout for remedy in ("delete it", "mend the file")) or path.name in SETTINGS
    assert "index rebuilt" in done.stdout
    assert {"one", "two"} <= {row["name"] for row in adapt.json("list")}


def test_a_sound_library_has_no_damaged_record(adapt: Adapt) -> None:
    assert adapt("verify", "--all").exit_code == 0
    assert "records\tok" in adapt("doctor", "--offline").stdout


def test_a_build_is_not_removed_while_an_alias_of_its_adapter_cannot_be_read(adapt: Adapt, tmp_path: Path) -> None:
    path = next((tmp_path / "home" / "aliases").glob("*.json"))
    path.write_bytes(b"{")

    said = adapt.fails(MALFORMED, "remove", "one", "--yes")

    assert str(path) in said
    assert "adapt alias set" in said
    assert {"one", "two"} <= {row["name"] for row in adapt.json("list")}
    adapt.ok("remove", "two", "--yes")


@pytest.mark.parametrize("place", ["aliases", "projects"])
def test_nothing_unused_is_deleted_while_a_holder_cannot_be_read(adapt: Adapt, tmp_path: Path, place: str) -> None:
    path = next((tmp_path / "home" / place).glob("*.json"))
    path.write_bytes(b"{")

    assert str(path) in adapt.fails(MALFORMED, "cache", "clean", "--unused", "--yes", "--grace", "0")
    assert len(adapt.json("list")) == 3
    if place == "projects":
        assert str(path) in adapt.fails(MALFORMED, "cache", "clean", "--grace", "0")
