"""A signed name over time: older states, signatures that are gone, new keys, and which policy holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.signing_homes import SIGNATURE, Homes, make_homes


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ann's adapter is published and signed, Ben trusts her key."""
    homes = make_homes(tmp_path)
    homes.publish("1.0.0")
    homes.trust()
    return homes


def withdraw(homes: Homes, version: str) -> Path:
    """Take a version out of the published directory, as a mirror that hides it does."""
    hidden = homes.folder / f"hidden-{version}"
    homes.build(version).rename(hidden)
    return hidden


@pytest.mark.parametrize("policy", ["require", "warn", None])
def test_an_older_state_offered_as_the_newest_is_refused(homes, policy):
    homes.publish("1.2.0")
    options = ["--signatures", policy] if policy else []
    homes.ben.ok(*homes.install("legal-qa@base-7b", *options))
    homes.ben.ok("remove", "legal-qa", "--yes")
    withdraw(homes, "1.2.0")

    told = homes.ben.fails(14, *homes.install("legal-qa@base-7b", *options))

    assert "offers 1.0.0, but 1.2.0 is known here" in told
    assert "legal-qa==1.0.0" in told
    for asked in ("legal-qa@base-7b==1.0.0", "legal-qa@base-7b<1.2"):
        homes.ben.ok(*homes.install(asked, *options))
        homes.ben.ok("remove", "legal-qa", "--yes")


def test_asking_for_an_old_version_forgets_nothing(homes):
    homes.publish("1.2.0")
    homes.ben.ok(*homes.install())
    homes.ben.ok(*homes.install("legal-qa@base-7b==1.0.0"))
    for version in ("1.0.0", "1.2.0"):
        homes.ben.ok("remove", f"legal-qa=={version}", "--yes")
    withdraw(homes, "1.2.0")

    assert "but 1.2.0 is known here" in homes.ben.fails(14, *homes.install())


def test_another_rank_that_was_asked_for_is_no_step_back(homes):
    homes.publish("1.1.0", rank=8)
    homes.publish("1.2.0", rank=4)
    homes.ben.ok(*homes.install())
    assert homes.ben.json("list")[0]["version"] == "1.2.0"

    homes.ben.ok(*homes.install("legal-qa@base-7b", "--rank", "8-"))


def test_a_prerelease_that_was_tried_holds_nobody_back(homes):
    homes.publish("2.0.0rc1")
    homes.ben.ok(*homes.install("legal-qa@base-7b==2.0.0rc1"))
    homes.ben.ok("remove", "legal-qa", "--yes")

    homes.ben.ok(*homes.install())


def test_what_was_seen_is_kept_when_the_install_dies(homes, monkeypatch):
    """The version is remembered before a file is fetched: a kill in between leaves the newer memory."""
    homes.publish("1.2.0")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adapterhub.distribution.install.copy", killed)
        assert homes.ben(*homes.install()).exit_code == 130
    withdraw(homes, "1.2.0")

    assert "but 1.2.0 is known here" in homes.ben.fails(14, *homes.install())


def test_a_signature_that_is_gone_is_refused(homes):
    homes.ben.ok(*homes.install())
    homes.ben.ok("remove", "legal-qa", "--yes")
    (homes.build("1.0.0") / SIGNATURE).unlink()

    assert "until now it was signed by `ann`" in homes.ben.fails(14, *homes.install())
    homes.ben.ok(*homes.install("legal-qa@base-7b", "--signatures", "off"))


def test_policy_off_lets_a_new_key_in_and_gives_it_no_name(homes):
    """`--signatures off` lets a new key's adapter in once; the name stays its old signer's."""
    homes.ben.ok(*homes.install())
    homes.ben.ok("remove", "legal-qa", "--yes")
    homes.new_key("eve")
    homes.publish("1.1.0", key="eve")
    homes.trust("eve")

    homes.ben.ok(*homes.install("legal-qa@base-7b", "--signatures", "off"))
    homes.ben.ok("remove", "legal-qa", "--yes")

    assert "until now it was signed by `ann`" in homes.ben.fails(14, *homes.install())


@pytest.mark.parametrize("is_trusted", [False, True])
def test_a_new_key_for_a_known_name_is_refused_until_it_is_accepted(homes, is_trusted):
    homes.ben.ok(*homes.install())
    homes.new_key("eve")
    homes.publish("1.1.0", key="eve")
    homes.ben.ok("remove", "legal-qa", "--yes")
    if is_trusted:
        homes.trust("eve")

    told = homes.ben.fails(14, *homes.install())

    assert "until now it was signed by `ann`" in told
    assert "--accept legal-qa" in told
    homes.trust("eve", "--accept", "legal-qa")
    homes.ben.ok(*homes.install("legal-qa@base-7b", "--signatures", "require"))
    homes.ben.ok("remove", "legal-qa", "--yes")
    homes.publish("1.2.0", key="ann")
    assert "until now it was signed by `eve`" in homes.ben.fails(14, *homes.install())


def test_a_replaced_key_signs_on_and_the_old_one_does_not(homes):
    homes.ben.ok(*homes.install())
    homes.new_key("new")
    homes.publish("1.1.0", key="new")
    homes.ben.ok("remove", "legal-qa", "--yes")
    homes.ben.ok("key", "trust", "ann", homes.folder / "ann" / "keys" / "new.pub", "--replace")

    homes.ben.ok(*homes.install("legal-qa@base-7b", "--signatures", "require"))
    homes.publish("1.2.0", key="ann")
    homes.ben.ok("remove", "legal-qa", "--yes")
    assert "unknown key" in homes.ben.fails(14, *homes.install())


def test_a_key_that_is_trusted_no_longer_signs_no_more(homes):
    homes.ben.ok(*homes.install())
    homes.ben.ok("remove", "legal-qa", "--yes")
    homes.ben.ok("key", "untrust", "ann")

    assert "which you trusted before and no longer trust" in homes.ben.fails(14, *homes.install())


# ------------------------------------------------------------ policies
@pytest.mark.parametrize(
    ("policies", "spec", "code"),
    [
        ([["require"]], "legal-qa@base-7b", 14),
        ([["require", "--namespace", "acme"]], "legal-qa@base-7b", 0),
        ([["require", "--namespace", "acme"]], "acme/legal-qa@base-7b", 14),
        ([["require"], ["off", "--namespace", "acme"]], "acme/legal-qa@base-7b", 0),
        ([["require"], ["default"]], "legal-qa@base-7b", 0),
    ],
)
def test_the_policy_of_a_namespace_comes_before_the_general_one(homes, policies, spec, code):
    (homes.build("1.0.0") / SIGNATURE).unlink()
    for policy in policies:
        homes.ben.ok("key", "policy", *policy)

    assert homes.ben(*homes.install(spec)).exit_code == code


def test_pull_asks_the_same(homes):
    """`pull` takes from servers; here the check it shares with `install` is asked for a folder of the library."""
    homes.ben.ok(*homes.install())

    homes.ben.ok("pull", "legal-qa@base-7b", "./plain")

    assert (homes.folder / "plain" / SIGNATURE).read_bytes() == (homes.build("1.0.0") / SIGNATURE).read_bytes()
