"""Whether an installed build may be used: each refusal's class, words, hint and place, decided without a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import NamespaceBound, SignatureRefused
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub.library.admission import Admission
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.remotes import Remotes
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.origins import Origin
from adapterhub.trust.signing.keys import sign_folder
from adapterhub.trust.signing.trust import EffectivePolicy, Terms, TrustFile
from tests.support.signed_offers import ANN, BEN, manifest

CORP, OTHER = "https://corp.example", "https://other.example"
KEPT = "It stays installed and is not used"
GIVEN = "the option `--signatures`"


class Place:
    """A source of which only the address counts."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.label = place


@pytest.fixture
def build(library: Library) -> Installed:
    library.root.mkdir(exist_ok=True)
    what = manifest()
    folder = library.root / "build"
    folder.mkdir()
    return Installed(manifest=what, namespace="acme", folder=folder, base=what.base, added_at=0.0)


def came_from(library: Library, build: Installed, place: str) -> None:
    library.origins.record(Origin(adapter=build.manifest.digest, name=build.full_name, place=place))


def bind(library: Library, name: str = "corp", url: str = CORP, *namespaces: str) -> None:
    Remotes(library.root).add(name, url, namespaces=namespaces or ("acme",))


def text(build: Installed) -> str:
    return f"{build.full_name}==1.0.0#{build.manifest.digest[:19]}"


# ------------------------------------------------------------ whose a namespace is
def test_a_namespace_has_the_owners_that_the_user_gave_it_to(library: Library, build: Installed) -> None:
    assert Admission(library).binds_any is False
    bind(library)
    admission = Admission(library)

    assert [remote.name for remote in admission.owners("acme")] == ["corp"]
    assert (list(admission.owners("beta")), list(admission.owners(None)), list(admission.owners(""))) == ([], [], [])
    assert admission.binds_any is True


def test_only_the_owner_may_offer_a_bound_namespace(library: Library, build: Installed) -> None:
    bind(library)
    admission = Admission(library)

    asked = [(CORP, "acme"), (OTHER, "acme"), (OTHER, "beta"), (OTHER, None)]
    assert [admission.may_offer(*each) for each in asked] == [True, False, True, True]


def test_a_foreign_place_is_refused_with_both_sides_and_the_way_out(library: Library, build: Installed) -> None:
    bind(library)
    admission = Admission(library)
    admission.ensure_place_allowed(CORP, "acme")
    admission.ensure_place_allowed(OTHER, "beta")

    with pytest.raises(NamespaceBound) as told:
        admission.ensure_place_allowed(OTHER, "acme")

    assert told.value.message == (
        f"you gave the namespace `acme` to remote `corp` ({CORP}); `{OTHER}` may not offer it. Nothing was changed"
    )
    assert told.value.hint == f"to take the namespace away from `corp`: `adapt remote add corp {CORP}`"
    assert told.value.exit_code == 14
    with pytest.raises(NamespaceBound) as told:
        admission.ensure_place_allowed(OTHER, "acme", hint="do that")
    assert told.value.hint == "do that"


def test_the_way_out_keeps_the_other_namespaces(library: Library, build: Installed) -> None:
    bind(library, "corp", CORP, "one", "acme", "two")

    assert Admission(library).unbind("acme") == (
        f"to take the namespace away from `corp`: `adapt remote add corp {CORP} --namespaces one,two`"
    )


def test_only_places_that_may_answer_are_asked_and_the_library_always(library: Library, build: Installed) -> None:
    bind(library)
    sources: list[Any] = [Place(OTHER), library, Place(CORP), Place("/shelf")]
    admission = Admission(library)

    assert admission.of_places(sources, "acme") == [library, sources[2]]
    assert admission.of_places(sources, "beta") == sources
    assert admission.of_places(sources, None) == sources


def test_strangers_are_refused_by_the_first_where_none_may_answer(library: Library, build: Installed) -> None:
    bind(library)
    admission = Admission(library)
    strangers: list[Any] = [library, Place("/shelf"), Place(OTHER)]

    with pytest.raises(NamespaceBound) as told:
        admission.ensure_owner_asked(strangers, "acme")

    assert "; `/shelf` may not offer it" in told.value.message
    assert "--namespaces" not in told.value.hint
    admission.ensure_owner_asked([*strangers, Place(CORP)], "acme")  # type: ignore[list-item]
    admission.ensure_owner_asked(strangers, "beta")
    admission.ensure_owner_asked([library], "acme")
    admission.ensure_owner_asked([], "acme")


# ------------------------------------------------------------ where a build came from
def test_a_build_of_the_owner_is_ours(library: Library, build: Installed) -> None:
    bind(library)
    came_from(library, build, CORP)

    assert Admission(library).is_ours(build)
    Admission(library).ensure_own_origin(build)
    Admission(library).ensure_usable(build)


def test_a_build_without_a_bound_namespace_is_ours(library: Library, build: Installed) -> None:
    assert Admission(library).is_ours(build)
    bind(library, "corp", CORP, "beta")
    came_from(library, build, OTHER)
    assert Admission(library).is_ours(build)
    assert Admission(library).is_ours(replace(build, namespace=None))


@pytest.mark.parametrize("place", [OTHER, "/shelf", ""])
def test_a_build_from_elsewhere_is_refused(library: Library, build: Installed, place: str) -> None:
    bind(library)
    if place:
        came_from(library, build, place)
    admission = Admission(library)

    assert not admission.is_ours(build)
    for decide in (admission.ensure_own_origin, admission.ensure_usable):
        with pytest.raises(NamespaceBound) as told:
            decide(build)

        came = f"came from `{place}`" if place else "has no recorded origin"
        assert told.value.message == (
            f"refused `acme/legal-qa` 1.0.0: you gave the namespace `acme` to remote `corp` ({CORP}), "
            f"and this build {came}. {KEPT}"
        )
        assert told.value.hint == (
            f"`adapt install '{text(build)}'` keeps it if the server has the same build; "
            f"`adapt remove '{text(build)}' --yes` makes room for another"
        )


def test_a_note_of_origin_counts_for_its_own_full_name_only(library: Library, build: Installed) -> None:
    bind(library)
    came_from(library, replace(build, namespace="beta"), CORP)

    assert not Admission(library).is_ours(build)


# ------------------------------------------------------------ whether anything is asked
def test_something_is_asked_where_a_namespace_is_bound_or_a_policy_may_require(
    library: Library, build: Installed
) -> None:
    assert Admission(library).restricts("acme") is False
    assert Admission(library).restricts("acme", "require") is True
    assert Admission(library).restricts("acme", "warn") is False
    bind(library)
    assert Admission(library).restricts("acme") is True
    assert Admission(library).restricts("beta") is False
    TrustFile(library.root).set_policy("beta", "require")
    assert Admission(library).restricts("beta") is True
    assert Admission(library).restricts("beta", "off") is False


def test_one_admission_tells_namespaces_and_policies_apart(library: Library, build: Installed) -> None:
    TrustFile(library.root).set_policy("beta", "require")
    admission = Admission(library)

    for _ in range(2):
        answers = [admission.restricts("beta"), admission.restricts("gamma"), admission.restricts("gamma", "require")]
        assert answers == [True, False, True]
        assert [admission.restricts("beta", "off"), admission.restricts("beta", "warn")] == [False, False]


def test_proof_is_needed_for_bound_namespaces_and_required_signatures(library: Library, build: Installed) -> None:
    adapter = build.manifest.digest

    def needs(name: str, given: Any = None) -> bool:
        return Admission(library).needs_proof(adapter, name, given)

    assert [needs("acme/legal-qa", given) for given in (None, "off", "warn", "require")] == [False, False, False, True]
    bind(library)
    assert [needs("acme/legal-qa", "off"), needs("beta/legal-qa"), needs("legal-qa")] == [True, False, False]
    TrustFile(library.root).set_policy("beta", "require")
    assert [needs("beta/legal-qa"), needs("beta/legal-qa", "warn"), needs("legal-qa")] == [True, False, False]
    Remotes(library.root).add("other", OTHER, signatures="require")
    came_from(library, replace(build, namespace=None), OTHER)
    assert [needs("legal-qa"), needs("gamma/legal-qa")] == [True, False]
    assert Admission(library).needs_proof(digest_of(b"another"), "legal-qa", None) is False


# ------------------------------------------------------------ signatures
def test_nothing_is_refused_without_a_policy_that_requires(library: Library, build: Installed) -> None:
    (build.folder / SIGNATURE_FILE).write_bytes(b"no signature at all")
    for given in (None, "warn", "off"):
        Admission(library).ensure_usable(build, given)  # type: ignore[arg-type]
    TrustFile(library.root).set_policy("beta", "require")
    Admission(library).ensure_usable(build)


def test_the_signature_is_not_judged_where_another_place_requires_one(library: Library, build: Installed) -> None:
    (build.folder / SIGNATURE_FILE).write_bytes(b"no signature at all")
    Remotes(library.root).add("corp", CORP, signatures="require")
    came_from(library, build, OTHER)
    Admission(library).ensure_usable(build)
    TrustFile(library.root).set_policy(None, "warn")
    Admission(library).ensure_usable(build)
    came_from(library, build, CORP)

    with pytest.raises(SignatureRefused) as told:
        Admission(library).ensure_usable(build)

    assert told.value.reason == "broken"


def test_a_build_that_is_not_signed_is_refused(library: Library, build: Installed) -> None:
    with pytest.raises(SignatureRefused) as told:
        Admission(library).ensure_usable(build, "require")

    assert told.value.reason == "unsigned"
    assert told.value.message == (
        f"refused `acme/legal-qa` 1.0.0: it is not signed, and {GIVEN} requires a signature. {KEPT}"
    )
    assert told.value.hint == (
        f"if it is yours: `adapt key sign '{text(build)}'`; otherwise ask its author to sign it, then "
        f"`adapt remove '{text(build)}' --yes` and install it again"
    )


def test_a_refusal_names_the_policy_that_holds(library: Library, build: Installed) -> None:
    TrustFile(library.root).set_policy("acme", "require")
    with pytest.raises(SignatureRefused, match="and the policy of the namespace `acme` "):
        Admission(library).ensure_usable(build)
    with pytest.raises(SignatureRefused, match="and the project requires"):
        Admission(library).ensure_usable(build, EffectivePolicy(policy="require", where="the project"))
    Admission(library).ensure_usable(build, "warn")


def test_a_broken_signature_is_refused_with_its_own_reason_and_hint(library: Library, build: Installed) -> None:
    (build.folder / SIGNATURE_FILE).write_bytes(b"")

    with pytest.raises(SignatureRefused) as told:
        Admission(library).ensure_usable(build, "require")

    assert (told.value.reason, told.value.what) == ("broken", "`acme/legal-qa` 1.0.0")
    assert told.value.clause == "`model.sig` is empty"
    assert told.value.hint.startswith("the files are not the signed ones; ")
    assert told.value.message == f"refused `acme/legal-qa` 1.0.0: `model.sig` is empty. {KEPT}"


def test_a_signature_is_judged_from_the_place_in_the_note_of_origin(
    library: Library, add: Callable[..., Added]
) -> None:
    build = add("legal-qa", namespace="acme").build
    (build.folder / SIGNATURE_FILE).write_bytes(sign_folder(build.folder, build.manifest, "acme", ANN))

    with pytest.raises(SignatureRefused) as told:
        Admission(library).ensure_usable(build, "require")
    assert (told.value.reason, told.value.hint[:15]) == ("unknown_key", "`adapt key trus")
    assert told.value.message.endswith(f". {KEPT}")

    TrustFile(library.root).trust("ann", ANN.public, Terms(adapters=("acme/*",), remotes=(CORP,)))
    with pytest.raises(SignatureRefused) as told:
        Admission(library).ensure_usable(build, "require")
    assert told.value.reason == "out_of_scope"

    came_from(library, build, CORP)
    Admission(library).ensure_usable(build, "require")

    (build.folder / SIGNATURE_FILE).unlink()
    (build.folder / SIGNATURE_FILE).write_bytes(sign_folder(build.folder, build.manifest, "acme", BEN))
    with pytest.raises(SignatureRefused, match="unknown key"):
        Admission(library).ensure_usable(build, "require")


# ------------------------------------------------------------ several at once
def test_several_refusals_are_told_as_one(library: Library, build: Installed) -> None:
    bind(library)
    other = replace(build, namespace="beta")
    bound = f"refused `acme/legal-qa` 1.0.0: you gave the namespace `acme` to remote `corp` ({CORP})"

    with pytest.raises(NamespaceBound) as told:
        Admission(library).ensure_all_usable([(other, None), (build, None), (other, "require"), (other, "require")])

    first, second = told.value.message.split("\n")
    assert first.startswith(bound)
    assert second.startswith("also: refused `beta/legal-qa` 1.0.0: it is not signed")
    assert told.value.hint.startswith("`adapt install 'acme/")


def test_one_refusal_is_told_alone_and_none_is_none(library: Library, build: Installed) -> None:
    Admission(library).ensure_all_usable([])
    Admission(library).ensure_all_usable([(build, None)])

    with pytest.raises(SignatureRefused) as told:
        Admission(library).ensure_all_usable([(build, None), (build, "require")])

    assert told.value.message.startswith("refused `acme/legal-qa`")
    assert "also" not in told.value.message
