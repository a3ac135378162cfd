"""A signature requirement holds for builds that are installed already, whichever way they are used.

Ben installs an unsigned build while nothing asks for a signature, and then asks for one. From that moment no command
and no Python call uses the build; commands that only look at it still do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.core.errors import AdapterNotFound, SignatureRefused
from adapterhub.distribution.finding import Finder
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach
from adapterhub.inference.serving import AdapterProvider
from adapterhub.library.admission import Admission
from adapterhub.library.library import Library
from adapterhub.trust.signing.trust import TrustFile
from adapterhub.vllm_plugin.resolver import AdapterHubResolver
from tests.support.command_line import Adapt
from tests.support.signing_homes import SIGNATURE, Homes, make_homes, replace_file
from tests.support.tiny_models import llama

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ann publishes an unsigned `legal-qa` and a signed `tables`; Ben trusts her key and installed both."""
    homes = make_homes(tmp_path)
    homes.publish("1.0.0", sign=False)
    homes.publish("1.0.0", name="tables")
    homes.trust()
    homes.ben.ok(*homes.install())
    homes.ben.ok(*homes.install("tables@base-7b"))
    return homes


@pytest.fixture
def strict(homes: Homes) -> Homes:
    """The same, and Ben asks for signatures in general."""
    homes.ben.ok("key", "policy", "require")
    return homes


# ---------------------------------------------------------------- the policies, and where each was set
def test_the_option_of_a_run_refuses_what_is_installed(homes):
    told = homes.ben.fails(14, *homes.install("legal-qa@base-7b", "--signatures", "require"))

    assert "`legal-qa` 1.0.0" in told
    assert "it is not signed" in told
    assert "`--signatures`" in told
    assert "It stays installed" in told
    homes.ben.ok(*homes.install("tables@base-7b", "--signatures", "require"))


def test_the_option_of_a_run_comes_before_the_general_policy(strict):
    assert "is already installed" in strict.ben.ok(*strict.install("legal-qa@base-7b", "--signatures", "off"))


def test_the_general_policy_refuses_what_is_installed(strict):
    told = strict.ben.fails(14, *strict.install())

    assert "general policy" in told
    assert "`adapt key policy`" in told


def test_the_policy_of_a_namespace_refuses_what_is_installed_there_alone(homes):
    homes.ben.ok(*homes.install("acme/legal-qa@base-7b"))
    homes.ben.ok("key", "policy", "require", "--namespace", "acme")

    told = homes.ben.fails(14, "info", "acme/legal-qa", "--path")

    assert "the policy of the namespace `acme`" in told
    assert "is already installed" in homes.ben.ok(*homes.install("tables@base-7b"))


def test_a_remote_of_the_project_refuses_what_is_installed(homes):
    work = project(homes, 'signatures = "require"\n')

    told = work.fails(14, "sync")

    assert "remote `published` of `adapters.toml`" in told
    assert not (work.folder / "adapters" / "legal-qa").exists()


# ---------------------------------------------------------------- commands
USES: tuple[tuple[str, ...], ...] = (
    ("install", "legal-qa@base-7b"),
    ("info", "legal-qa", "--path"),
    ("pull", "legal-qa@base-7b", "./given"),
    ("push", "legal-qa", "--to", "./given"),
    ("push", "legal-qa", "--to", "./given", "--dry-run"),
    ("merge", "legal-qa", "tables", "-o", "both", "--method", "linear"),
    ("compare", "legal-qa", "tables"),
    ("resize", "legal-qa", "--rank", "1", "-o", "small"),
    ("port", "legal-qa", "--to", "base-7b"),
    ("export", "legal-qa", "--format", "peft", "-o", "./given"),
    ("fuse", "legal-qa", "-o", "./given"),
    ("list", "--format", "vllm"),
    ("list", "--format", "peft"),
    ("run", "legal-qa", "hello"),
)


@pytest.mark.parametrize("command", USES, ids=" ".join)
def test_a_command_that_uses_a_refused_build_is_refused_before_it_writes(strict, command):
    told = strict.ben.fails(14, *command)

    assert "`legal-qa` 1.0.0: it is not signed" in told
    assert "general policy" in told
    assert not (strict.folder / "given").exists()
    assert {b.manifest.name for b in strict.ben.library.installed()} == {"legal-qa", "tables"}


LOOKS: tuple[tuple[str, ...], ...] = (
    ("list",),
    ("info", "legal-qa"),
    ("verify", "legal-qa", "--engine", "all"),
    ("compare", "--diff", "legal-qa", "tables"),
    ("tree", "legal-qa"),
    ("tree", "--invert", "legal-qa"),
    ("remove", "legal-qa", "--yes"),
)


@pytest.mark.parametrize("command", LOOKS, ids=lambda command: command[0])
def test_a_command_that_only_looks_reaches_a_refused_build(strict, command):
    done = strict.ben(*command)

    assert done.exit_code != 14, done.stderr


def test_verify_and_audit_still_say_what_is_wrong_with_it(strict):
    assert "is not signed" in strict.ben("verify", "legal-qa").stdout
    assert "is not signed" in strict.ben("audit", "legal-qa").stdout


@pytest.mark.parametrize(
    "command",
    [("info", "tables", "--path"), ("pull", "tables@base-7b", "./given"), ("push", "tables", "--to", "./given")],
    ids=" ".join,
)
def test_a_build_signed_by_a_trusted_key_is_used_under_the_same_policy(strict, command):
    strict.ben.ok(*command)


def test_what_was_signed_by_a_key_that_is_trusted_no_more_is_refused(strict):
    strict.ben.ok("info", "tables", "--path")
    strict.ben.ok("key", "untrust", "ann")

    assert "unknown key" in strict.ben.fails(14, "info", "tables", "--path")


def test_a_signature_over_other_files_is_refused(strict):
    [build] = strict.ben.library.builds_named("tables")
    replace_file(build.folder / SIGNATURE, b"{}")

    assert "stays installed" in strict.ben.fails(14, "info", "tables", "--path")


def test_the_owner_of_a_build_signs_it_and_uses_it(strict):
    strict.ben.ok("key", "new", "ben", "--unencrypted")
    strict.ben.ok("key", "trust", "ben", strict.ben.folder / "ben" / "keys" / "ben.pub")

    strict.ben.ok("push", "legal-qa", "--to", "./given", "--sign", "--key", "ben")

    strict.ben.ok("info", "legal-qa", "--path")


# ---------------------------------------------------------------- projects
def project(homes: Homes, more: str = "") -> Adapt:
    (homes.folder / "work").mkdir()
    (homes.folder / "work" / "adapters.toml").write_text(
        f'[project]\nbase = "base-7b"\n\n[remotes.published]\npath = "../published"\n{more}\n[adapters]\nlegal-qa = ""\n'
    )
    return Adapt(homes.folder / "work", "../ben")


def test_sync_links_nothing_that_the_policy_refuses(homes):
    work = project(homes)
    work.ok("lock")
    homes.ben.ok("key", "policy", "require")

    told = work.fails(14, "sync", "--frozen")

    assert "it is not signed" in told
    assert not (work.folder / "adapters" / "legal-qa").exists()


def test_sync_refuses_what_it_linked_before_the_policy_was_set(homes):
    work = project(homes)
    work.ok("sync")
    homes.ben.ok("key", "policy", "require")

    work.fails(14, "sync")
    work.fails(14, "list", "--format", "vllm")


def test_a_bare_name_of_a_project_is_no_way_around_the_policy(homes):
    work = project(homes)
    work.ok("lock")
    homes.ben.ok("key", "policy", "require")

    work.fails(14, "info", "legal-qa", "--path")


def test_lock_takes_nothing_out_of_the_library_that_the_policy_refuses(strict):
    work = project(strict)
    text = (work.folder / "adapters.toml").read_text()
    (work.folder / "adapters.toml").write_text(text.replace('[remotes.published]\npath = "../published"\n', ""))

    assert "it is not signed" in work.fails(14, "lock")
    assert not (work.folder / "adapters.lock").exists()


def test_a_removed_build_gets_its_signature_back_from_the_place_that_has_it(homes):
    work = project(homes)
    text = (work.folder / "adapters.toml").read_text()
    (work.folder / "adapters.toml").write_text(text.replace("legal-qa", "tables"))
    work.ok("sync")
    homes.ben.ok("remove", "tables", "--yes")  # the store still has every object but the signature
    homes.ben.ok("key", "policy", "require")

    work.ok("sync")

    homes.ben.ok("info", "tables", "--path")


def test_sync_reads_no_signature_that_nothing_asks_for(homes):
    work = project(homes)
    work.ok("lock")
    [build] = homes.ben.library.builds_named("legal-qa")
    (build.folder / SIGNATURE).write_text("no signature at all")

    work.ok("sync")

    homes.ben.ok("key", "policy", "require", "--namespace", "elsewhere")
    work.ok("sync")


def test_the_question_is_asked_once_for_all_builds_of_a_namespace(homes, monkeypatch):
    """A sync of thousands reads the files of policies once, and no note of origin and no signature."""
    from adapterhub.library import admission
    from adapterhub.library.store.origins import Origins
    from adapterhub.trust.signing.trust import TrustFile

    asked = admission.Admission(homes.ben.library)
    builds = [(build, None) for build in homes.ben.library.installed()] * 1000
    read: list[str] = []
    honest = TrustFile.read
    monkeypatch.setattr(TrustFile, "read", lambda self: read.append("trust") or honest(self))
    monkeypatch.setattr(Origins, "under", lambda *_: read.append("note"))
    monkeypatch.setattr(admission, "provenance_of", lambda *_: read.append("signature"))

    asked.ensure_all_usable(builds)

    assert read == ["trust"]


# ---------------------------------------------------------------- Python
def finder(library: Library) -> Finder:
    return Finder(library, None, lambda: None, allow_base_mismatch=False)


def with_attach(library: Library) -> None:
    attach(llama(), "legal-qa", library=library)


def with_an_installed_build(library: Library) -> None:
    attach(llama(), library.builds_named("legal-qa")[0], library=library)


def with_bank(library: Library) -> None:
    with AdapterBank(llama(), library=library) as bank:
        bank.load("legal-qa")


def with_finder(library: Library) -> None:
    finder(library).find("legal-qa", 1.0)


def with_counter(library: Library) -> None:
    provider = AdapterProvider(library, library.bases.list()[0], engine="vllm@0.32", max_rank=16)
    try:
        provider.find("legal-qa")
    finally:
        provider.close()


def with_vllm(library: Library) -> None:
    resolver = AdapterHubResolver({"ADAPTERHUB_HOME": str(library.root), "ADAPTERHUB_SERVE_OFFLINE": "1"}, ["vllm"])
    resolver.base_model = str(library.root.parent / "models" / "base-7b")
    asyncio.run(resolver.leased("legal-qa"))


@pytest.mark.parametrize(
    "use",
    [with_attach, with_an_installed_build, with_bank, with_finder, with_counter, with_vllm],
    ids=lambda u: u.__name__,
)
def test_python_refuses_an_installed_build_as_commands_do(strict, use: Callable[[Library], None]):
    with pytest.raises(SignatureRefused, match="general policy") as caught:
        use(strict.ben.library)

    assert caught.value.reason == "unsigned"


def test_the_policy_of_one_run_of_a_server_holds_for_installed_builds(homes):
    library = homes.ben.library
    provider = AdapterProvider(library, library.bases.list()[0], engine="vllm@0.32", max_rank=16, signatures="require")
    try:
        with pytest.raises(SignatureRefused, match="--signatures"):
            provider.find("legal-qa")
        assert provider.find("tables").folder.is_dir()
    finally:
        provider.close()


def test_a_build_that_another_process_removed_is_not_found(library, add):
    build = add("legal-qa").build
    TrustFile(library.root).set_policy(None, "require")
    library.remove([build])

    with pytest.raises(AdapterNotFound, match="no adapter `"):
        Admission(library).ensure_usable(build)
