"""What the gate says of each standing under each policy: class, words, reason, hint and ending."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import Malformed, SignatureRefused, shown
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.manifest import SIGNATURE_FILE, WEIGHTS_FILE
from adapterhub.formats.release import Provenance, Release
from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES
from adapterhub.library import admission
from adapterhub.library.admission import Admission, Decision, InstallRequest, as_error, signature_findings
from adapterhub.library.library import Library
from adapterhub.library.remotes import Remotes
from adapterhub.trust.signing import appraisal as provenance
from adapterhub.trust.signing.appraisal import (
    UNSIGNED,
    Appraisal,
    FirstUseBuild,
    FirstUseFile,
    bounded,
    examine,
    provenance_of,
    read_signature,
    unsigned_beside,
)
from adapterhub.trust.signing.trust import EffectivePolicy, Policy, Terms, Trust, TrustedKey, TrustFile, day_text
from adapterhub.trust.verify import Finding
from tests.support.signed_offers import ANN, BEN, key, manifest, release, signed

PLACE = "/published"
ASKED = InstallRequest(spec=AdapterSpec.parse("acme/legal-qa"))
UNKNOWN = f"is signed by the unknown key {BEN.public.fingerprint}"
GONE = "get them from the author, and inform the operator of the server"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def without_identity(value: dict[str, Any]) -> None:
    del value["predicate"]["adapter"]


def offer(standing: str, root: Path) -> tuple[Release, Provenance]:
    """A build of that standing; what Ben trusts is written to `root`."""
    offered = release()
    if standing == "unsigned":
        return offered, Provenance(signature=None)
    if standing == "unknown_key":
        return offered, signed(offered, BEN)
    terms = {"out_of_scope": Terms(adapters=("other/*",)), "expired": Terms(not_after=86399)}.get(standing, Terms())
    TrustFile(root).trust("ann", ANN.public, terms)
    return offered, signed(offered, ANN, without_identity if standing == "other_name" else lambda _: None)


MESSAGES = {
    "trusted": "is signed by `ann`",
    "unsigned": "is not signed",
    "unknown_key": UNKNOWN,
    "out_of_scope": "is signed by `ann`, which is not trusted for `acme/legal-qa` from there",
    "other_name": "is signed by `ann`, but not for this name and version",
    "expired": "is signed by `ann`, a key that ended on 1970-01-01",
}
HINTS = {
    "unsigned": "ask its author to sign it with `adapt key sign` and push it again",
    "unknown_key": "`adapt key trust NAME FILE --scope acme/legal-qa` trusts a key; get its file from its owner, "
    "not from the server",
    "out_of_scope": "`adapt key trust ann --scope GLOB` changes what the key may sign",
    "other_name": "ask its author to sign it with `adapt key sign`, which names the adapter in the signature",
    "expired": "ask its owner for a new key; `adapt key trust ann --not-after DAY` moves the end",
}
TABLE: dict[str, tuple[str, str, str, str]] = {  # require, no policy, warn, off
    "trusted": ("yes", "yes", "yes", "yes"),
    "unsigned": ("refused", "yes", "warned", "yes"),
    "unknown_key": ("refused", "warned", "warned", "yes"),
    "out_of_scope": ("refused", "warned", "warned", "yes"),
    "other_name": ("refused", "warned", "warned", "yes"),
    "expired": ("refused", "refused", "warned", "yes"),
}
POLICIES: tuple[Policy | None, ...] = ("require", None, "warn", "off")
ROWS = [(s, p, row[n]) for s, row in TABLE.items() for n, p in enumerate(POLICIES)]


@pytest.mark.parametrize(("standing", "policy", "expected"), ROWS)
def test_the_gate_does_what_its_table_says(root: Path, standing: str, policy: Policy | None, expected: str) -> None:
    offered, provenance = offer(standing, root)
    if expected != "refused":
        admitted = Admission(Library(root)).admit(offered, provenance, PLACE, ASKED, policy)

        assert (admitted.appraisal.standing, admitted.appraisal.message) == (standing, MESSAGES[standing])
        assert admitted.warns is (expected == "warned")
        assert not admitted.is_refused
        return
    with pytest.raises(SignatureRefused) as told:
        Admission(Library(root)).admit(offered, provenance, PLACE, ASKED, policy)

    where = ", and the option `--signatures` requires a signature" if policy else ""
    clause = f"it {MESSAGES[standing]}{where}"
    assert (told.value.reason, told.value.hint, told.value.exit_code) == (standing, HINTS[standing], 14)
    assert (told.value.what, told.value.clause) == ("`acme/legal-qa` 1.0.0", clause)
    assert told.value.message == f"refused `acme/legal-qa` 1.0.0: {clause}. Nothing was stored"
    assert FirstUseFile(root).of("acme/legal-qa") is None


def test_a_policy_that_does_not_refuse_lets_the_standing_pass() -> None:
    for effective in (EffectivePolicy(policy="warn", where="a law"), None):
        Decision(appraisal=UNSIGNED, effective=effective).ensure_allowed(release())


# ------------------------------------------------------------ against what was seen
def remember(root: Path, version: str = "1.0.0", by: str | None = None, **build: Any) -> None:
    value = {"base": "", "rank": 4} | build
    FirstUseFile(root).remember("acme/legal-qa", FirstUseBuild(version=version, **value), by or ANN.public.fingerprint)  # type: ignore[arg-type]


def let_in(root: Path, offered: Release, provenance: Provenance, asked: InstallRequest = ASKED, **more: Any) -> None:
    """Admit a build and record it, as an install does."""
    gate = Admission(Library(root))
    gate.remember(offered, gate.admit(offered, provenance, PLACE, asked, **more), asked)


def refusal(root: Path, offered: Release, provenance: Provenance, **more: Any) -> SignatureRefused:
    with pytest.raises(SignatureRefused) as told:
        Admission(Library(root)).admit(offered, provenance, PLACE, ASKED, **more)
    assert told.value.exit_code == 14
    assert str(told.value).endswith(". Nothing was stored")
    assert told.value.what == f"`acme/legal-qa` {offered.manifest.version}"
    return told.value


@pytest.mark.parametrize("policy", [None, "warn"])
def test_a_signature_that_is_gone_is_refused(root: Path, policy: Policy | None) -> None:
    TrustFile(root).trust("ann", ANN.public, Terms())
    remember(root)

    told = refusal(root, release(), Provenance(signature=None), given=policy)

    assert told.reason == "signature_gone"
    assert told.clause == "it is not signed, and until now it was signed by `ann`"
    assert told.hint == "ask its author; `--signatures off` takes it unsigned"


def test_a_key_that_is_not_trusted_any_more_is_refused(root: Path) -> None:
    remember(root, by=BEN.public.fingerprint)

    told = refusal(root, release(), signed(release(), BEN))

    assert told.reason == "unknown_key"
    assert told.clause == f"it {UNKNOWN}, which you trusted before and no longer trust"
    assert told.hint == HINTS["unknown_key"]


@pytest.mark.parametrize(("trusted", "command"), [(False, "NAME FILE"), (True, "ben")])
def test_another_key_than_before_is_refused(root: Path, trusted: bool, command: str) -> None:  # noqa: FBT001
    TrustFile(root).trust("ann", ANN.public, Terms())
    if trusted:
        TrustFile(root).trust("ben", BEN.public, Terms())
    remember(root)

    told = refusal(root, release(), signed(release(), BEN))

    said = "is signed by `ben`" if trusted else UNKNOWN
    assert told.reason == "other_key"
    assert told.clause == f"it {said}, and until now it was signed by `ann`"
    assert told.hint == (
        f"if its author announced a new key to you: `adapt key trust {command} --accept acme/legal-qa`"
    )


@pytest.mark.parametrize("accept", ["acme/legal-qa", "acme", "*"])
def test_a_key_that_was_accepted_takes_a_name_over(root: Path, accept: str) -> None:
    TrustFile(root).trust("ben", BEN.public, Terms(accepts=(accept,)))
    remember(root)

    let_in(root, release(), signed(release(), BEN))

    seen = FirstUseFile(root).of("acme/legal-qa")
    assert seen is not None
    assert seen.signer == BEN.public.fingerprint


def test_an_older_version_is_refused(root: Path) -> None:
    TrustFile(root).trust("ann", ANN.public, Terms())
    remember(root, "1.0.0")
    remember(root, "2.0.0", rank=8)
    remember(root, "1.5.0", rank=16)

    told = refusal(root, release("1.1.0"), signed(release("1.1.0")))

    assert told.reason == "rolled_back"
    assert told.clause == "the shelf offers 1.1.0, but 2.0.0 is known here"
    assert told.hint == "if the author withdrew 2.0.0: `acme/legal-qa==1.1.0` selects this version"


def test_the_version_that_was_seen_is_taken_again(root: Path) -> None:
    TrustFile(root).trust("ann", ANN.public, Terms())
    remember(root, "2.0.0")

    assert not Admission(Library(root)).admit(release("2.0.0"), signed(release("2.0.0")), PLACE, ASKED).warns


def test_off_takes_what_contradicts_and_does_not_remember_another_signer(root: Path) -> None:
    TrustFile(root).trust("ben", BEN.public, Terms())
    remember(root, "2.0.0")

    let_in(root, release(), signed(release(), BEN), given="off")

    seen = FirstUseFile(root).of("acme/legal-qa")
    assert seen is not None
    assert (seen.signer, [b.version for b in seen.builds]) == (ANN.public.fingerprint, ["2.0.0"])


@pytest.mark.parametrize("known", [False, True])
def test_off_remembers_a_first_signer_and_the_same_one(root: Path, known: bool) -> None:  # noqa: FBT001
    TrustFile(root).trust("ann", ANN.public, Terms())
    if known:
        remember(root)

    let_in(root, release("3.0.0"), signed(release("3.0.0")), given="off")

    seen = FirstUseFile(root).of("acme/legal-qa")
    assert seen is not None
    assert (seen.signer, seen.builds) == (
        ANN.public.fingerprint,
        (FirstUseBuild(base="", rank=4, version="3.0.0"),),
    )


def test_a_decision_remembers_nothing(root: Path) -> None:
    TrustFile(root).trust("ann", ANN.public, Terms())

    Admission(Library(root)).admit(release(), signed(release()), PLACE, ASKED)

    assert FirstUseFile(root).of("acme/legal-qa") is None


def test_only_a_trusted_signature_is_remembered(root: Path) -> None:
    for standing in ("unsigned", "unknown_key", "out_of_scope"):
        let_in(root, *offer(standing, root))

        assert FirstUseFile(root).of("acme/legal-qa") is None


def test_what_is_remembered_is_the_first_base_the_rank_and_the_version(root: Path) -> None:
    TrustFile(root).trust("ann", ANN.public, Terms())
    asked = InstallRequest(spec=ASKED.spec, bases=("sha256:first", "sha256:second"))

    let_in(root, release("1.2.0", rank=16), signed(release("1.2.0", rank=16)), asked)

    seen = FirstUseFile(root).of("acme/legal-qa")
    assert seen is not None
    assert seen.builds == (FirstUseBuild(base="sha256:first", rank=16, version="1.2.0"),)


@pytest.mark.parametrize(
    ("spec", "asked", "build", "expected"),
    [
        ("acme/legal-qa", {}, {}, True),
        ("acme/legal-qa==1.0.0", {}, {}, False),
        ("acme/legal-qa#sha256:01234567", {}, {}, False),
        ("acme/legal-qa>=2", {}, {}, False),
        ("acme/legal-qa>=1", {}, {}, True),
        ("acme/legal-qa", {}, {"base": "sha256:x"}, False),
        ("acme/legal-qa", {"bases": ("a", "sha256:x")}, {"base": "sha256:x"}, True),
        ("acme/legal-qa", {}, {"version": "1.0.0rc1"}, False),
        ("acme/legal-qa>=1.0.0rc1", {}, {"version": "1.0.0rc1"}, True),
        ("acme/legal-qa", {"ranks": RankRange(low=4)}, {}, True),
        ("acme/legal-qa", {"ranks": RankRange(low=5)}, {}, False),
        ("acme/legal-qa", {"ranks": RankRange(high=4)}, {}, True),
        ("acme/legal-qa", {"ranks": RankRange(high=3)}, {}, False),
        ("acme/legal-qa", {}, {"rank": None}, True),
        ("acme/legal-qa", {"ranks": RankRange(low=1)}, {"rank": None}, False),
        ("acme/legal-qa", {"ranks": RankRange(low=1)}, {"rank": 1}, True),
        ("acme/legal-qa", {"ranks": RankRange(high=1)}, {"rank": None}, True),
    ],
)
def test_a_seen_build_counts_where_it_would_have_answered(
    spec: str,
    asked: dict[str, Any],
    build: dict[str, Any],
    expected: bool,  # noqa: FBT001
) -> None:
    seen = FirstUseBuild(**({"base": "", "rank": 4, "version": "1.0.0"} | build))

    assert InstallRequest(spec=AdapterSpec.parse(spec), **asked).includes(seen) is expected


# ------------------------------------------------------------ policies and places
URL = "https://corp.example"


def decided(root: Path, offered: Release, provenance: Provenance, place: str) -> tuple[Appraisal, Policy | None]:
    decision = Admission(Library(root)).decide(offered, provenance, place)
    return decision.appraisal, decision.policy


def test_the_policy_of_this_run_comes_first_then_namespace_then_remote_then_general(root: Path) -> None:
    Remotes(root).add("corp", URL, signatures="warn")
    TrustFile(root).set_policy("acme", "off")
    TrustFile(root).set_policy(None, "require")
    rules = Admission(Library(root))

    assert rules.policy_for("acme", URL, "require") == EffectivePolicy(
        policy="require", where="the option `--signatures`"
    )
    own = EffectivePolicy(policy="warn", where="the project")
    assert rules.policy_for("acme", URL, own) is own
    assert rules.policy_for("acme", URL) == EffectivePolicy(
        policy="off", where="the policy of the namespace `acme` (`adapt key policy`)"
    )
    assert rules.policy_for("beta", URL) == EffectivePolicy(
        policy="warn", where="the policy of remote `corp` (`adapt key policy`)"
    )
    for place in ("/some/folder", "https://other.example"):
        assert rules.policy_for("beta", place) == EffectivePolicy(
            policy="require", where="the general policy (`adapt key policy`)"
        )
    assert rules.policy_for(None, URL).policy == "warn"  # type: ignore[union-attr]


def test_nothing_is_demanded_where_nothing_was_set(root: Path) -> None:
    assert Admission(Library(root)).policy_for("acme", URL) is None
    assert decided(root, release(), Provenance(signature=None), PLACE) == (UNSIGNED, None)
    assert Admission(Library(root)).may_require("acme") is False


def test_judge_tells_the_policy_of_the_namespace_and_the_place(root: Path) -> None:
    TrustFile(root).set_policy("acme", "require")
    Remotes(root).add("corp", URL, signatures="warn")

    assert decided(root, release(), Provenance(signature=None), PLACE) == (UNSIGNED, "require")
    assert decided(root, release(namespace="b"), Provenance(signature=None), URL) == (UNSIGNED, "warn")


def test_a_signature_may_be_required_by_any_place(root: Path) -> None:
    assert Admission(Library(root)).may_require("acme", "require") is True
    assert Admission(Library(root)).may_require("acme", "warn") is False
    Remotes(root).add("corp", URL, signatures="require")
    assert Admission(Library(root)).may_require("acme") is True
    assert Admission(Library(root)).may_require(None, "off") is False
    Remotes(root).remove("corp")
    TrustFile(root).set_policy("acme", "require")
    assert Admission(Library(root)).may_require("acme") is True
    assert Admission(Library(root)).may_require("beta") is False


def test_the_general_policy_holds_for_places_that_are_no_remote(root: Path) -> None:
    Remotes(root).set_signatures("hub", "off")
    TrustFile(root).set_policy(None, "require")

    assert Admission(Library(root)).may_require("acme") is True


@pytest.mark.parametrize(
    ("scope", "place", "expected"),
    [
        ("corp", URL, "trusted"),
        (URL, URL, "trusted"),
        ("https://*", URL, "trusted"),
        ("other", URL, "out_of_scope"),
        ("corp", "https://other.example", "out_of_scope"),
        ("/published", "/published", "trusted"),
        ("/pub*", "/published", "trusted"),
        ("/other", "/published", "out_of_scope"),
    ],
)
def test_the_scope_of_a_key_names_places_by_address_or_remote(
    root: Path, scope: str, place: str, expected: str
) -> None:
    Remotes(root).add("corp", URL)
    TrustFile(root).trust("ann", ANN.public, Terms(remotes=(scope,)))

    judged = Admission(Library(root)).decide(release(), signed(release()), place).appraisal

    assert (judged.standing, judged.signer, judged.fingerprint) == (expected, "ann", ANN.public.fingerprint)


def test_a_key_ends_after_its_last_second(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TrustFile(root).trust("ann", ANN.public, Terms(not_after=1000))
    for now, expected in ((999.0, "trusted"), (1000.0, "trusted"), (1000.5, "expired")):
        monkeypatch.setattr(admission, "clock", lambda now=now: now)

        assert Admission(Library(root)).decide(release(), signed(release()), PLACE).appraisal.standing == expected


# ------------------------------------------------------------ what is false in any case
TRUST = Trust(keys=(TrustedKey(name="ann", key=ANN.public),))
Change = Callable[[dict[str, Any]], object]


def judge(provenance: Provenance, trust: Trust = TRUST, offered: Release | None = None) -> Appraisal:
    what = offered or release()
    return examine(what.manifest, what.namespace, provenance, trust, now=0.0)


def false(provenance: Provenance, offered: Release | None = None) -> tuple[str, str]:
    with pytest.raises(SignatureRefused) as told:
        judge(provenance, offered=offered)
    assert told.value.what == "`acme/legal-qa` 1.0.0"
    assert told.value.hint == f"the files are not the signed ones; {GONE}"
    assert told.value.message.endswith(". Nothing was stored")
    return told.value.reason, told.value.clause


def change_adapter(**fields: Any) -> Change:
    return lambda value: value["predicate"]["adapter"].update(fields)


@pytest.mark.parametrize(
    ("fields", "clause"),
    [
        ({"name": "other"}, "name acme/other, offered acme/legal-qa"),
        ({"namespace": "beta"}, "name beta/legal-qa, offered acme/legal-qa"),
        ({"version": "2.0.0"}, "version 2.0.0, offered 1.0.0"),
        ({"base": "sha256:x"}, "base sha256:x, offered None"),
        ({"rank": 8}, "rank 8, offered 4"),
        ({"parents": ["x"]}, "other parents"),
        ({"rank": 8, "version": "2.0.0"}, "version 2.0.0, offered 1.0.0, and 1 more"),
        ({"rank": 8, "version": "2.0.0", "parents": ["x"]}, "version 2.0.0, offered 1.0.0, and 2 more"),
    ],
)
def test_a_signature_for_another_adapter_is_refused(fields: dict[str, Any], clause: str) -> None:
    told = false(signed(release(), ANN, change_adapter(**fields)))

    assert told == ("renamed", f"it was signed as another adapter: {clause}")


def test_a_namespace_that_one_side_leaves_open_differs_from_none() -> None:
    bare = signed(release(namespace=None))
    assert judge(bare).standing == "trusted"
    assert judge(signed(release()), offered=release(namespace=None)).standing == "trusted"


def test_a_name_in_the_signature_decides_the_scope_of_a_build_without_namespace() -> None:
    trust = Trust(keys=(TrustedKey(name="ann", key=ANN.public, adapters=("acme/*",)),))

    assert judge(signed(release()), trust, release(namespace=None)).standing == "trusted"
    told = judge(signed(release(namespace="beta")), trust, release(namespace=None))
    assert (told.standing, "`beta/legal-qa`" in told.message) == ("out_of_scope", True)


def test_a_signature_that_was_not_made_with_the_key_it_names_is_forged() -> None:
    made = signed(release(), BEN).signature
    assert made is not None
    raw = made.replace(BEN.public.fingerprint[7:].encode(), ANN.public.fingerprint[7:].encode())

    assert false(Provenance(signature=raw)) == (
        "forged",
        "the signature was not made with the key `ann` that it names: it is forged",
    )


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]"])
def test_a_signature_that_cannot_be_read_is_broken(raw: bytes) -> None:
    reason, clause = false(Provenance(signature=raw))

    assert (reason, clause[:12]) == ("broken", "`model.sig` ")


def test_a_statement_that_cannot_be_read_is_broken() -> None:
    reason, clause = false(signed(release(), ANN, lambda value: value.update({"_type": "x"})))

    assert reason == "broken"
    assert clause.startswith("`model.sig` statement._type: expected `https://in-toto.io/Statement/v1`, got x")


def test_long_complaints_about_a_signature_are_cut_at_200_characters() -> None:
    for wanted, length in ((170, 170), (300, 200)):
        name = "k" * (wanted - len("key `` is given twice"))
        raw = f'{{"{name}": 1, "{name}": 2}}'.encode()
        _, clause = false(Provenance(signature=raw))

        assert len(clause) <= len("`model.sig` ") + length


def beside_of(*names: str, kind: str = "file") -> dict[str, str]:
    files = dict.fromkeys(["adapter_config.json", WEIGHTS_FILE, "adapterhub.json", SIGNATURE_FILE], "file")
    return files | dict.fromkeys(names, kind)


def resources(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Change:
    """Other files in the statement, whose subject goes with them."""

    def apply(value: dict[str, Any]) -> None:
        items = change(value["predicate"]["resources"])
        value["predicate"]["resources"] = items
        root = hashlib.sha256(b"".join(bytes.fromhex(item["digest"]) for item in items)).hexdigest()
        value["subject"][0]["digest"]["sha256"] = root

    return apply


def item(name: str, digit: str = "a") -> dict[str, Any]:
    return {"name": name, "algorithm": "sha256", "digest": digit * 64}


def test_files_that_the_signature_does_not_fit_are_refused() -> None:
    def swap(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [item(i["name"]) if i["name"] == WEIGHTS_FILE else i for i in items]

    actual = digest_of(WEIGHTS_FILE.encode())[:19]
    assert false(signed(release(), ANN, resources(swap))) == (
        "changed_file",
        f"`{WEIGHTS_FILE}` is {actual}…, but sha256:{'a' * 12}… was signed",
    )
    assert false(signed(release(), ANN, resources(lambda items: [i for i in items if i["name"] != WEIGHTS_FILE]))) == (
        "extra_file",
        f"`{WEIGHTS_FILE}` is not signed",
    )
    assert false(signed(release(), ANN, resources(lambda items: [*items, item("more.txt")]))) == (
        "missing_file",
        "`more.txt` is signed and missing",
    )


def test_a_strangers_signature_may_name_files_that_no_adapter_has() -> None:
    def strange(name: str) -> Change:
        def apply(value: dict[str, Any]) -> None:
            resources(lambda items: [*items, item(name)])(value)
            without_identity(value)

        return apply

    assert judge(signed(release(), ANN, strange("train.py"))).standing == "other_name"
    assert judge(signed(release(), ANN, strange("README.md"))).standing == "other_name"
    assert false(signed(release(), ANN, strange("LICENSE")))[0] == "missing_file"


def test_a_strangers_signature_need_not_name_the_manifest() -> None:
    def apply(value: dict[str, Any]) -> None:
        resources(lambda items: [i for i in items if i["name"] != "adapterhub.json"])(value)
        without_identity(value)

    assert judge(signed(release(), ANN, apply)).standing == "other_name"
    with_identity = resources(lambda items: [i for i in items if i["name"] != "adapterhub.json"])
    assert false(signed(release(), ANN, with_identity)) == ("extra_file", "`adapterhub.json` is not signed")


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("evil.py", "file", ("extra_file", "`evil.py` was not there when it was signed")),
        ("evil", "folder", ("extra_file", "`evil`, a folder, was not there when it was signed")),
        ("evil", "other", ("extra_file", "`evil`, no file, was not there when it was signed")),
        ("evil", "link", ("link", "`evil` is a link, but a file was signed")),
        (".git", "link", ("link", "`.git` is a link, but a file was signed")),
        ("README.md", "link", ("link", "`README.md` is a link, but a file was signed")),
        ("README.md", "folder", ("extra_file", "`README.md`, a folder, was not there when it was signed")),
        ("README.md", "file", None),
        (".git", "folder", None),
        (".gitattributes", "file", None),
        (".gitignore", "file", None),
        (".github", "folder", None),
        (".cache", "folder", None),
        (".config", "folder", ("extra_file", "`.config`, a folder, was not there when it was signed")),
    ],
)
def test_what_lies_beside_a_signature_is_judged_by_its_kind(
    name: str, kind: str, expected: tuple[str, str] | None
) -> None:
    provenance = signed(release(), beside=beside_of(name, kind=kind))
    if expected is None:
        assert judge(provenance).standing == "trusted"
    else:
        assert false(provenance) == expected


def test_a_signed_file_that_is_not_beside_its_signature_is_missing() -> None:
    files = beside_of()
    del files[WEIGHTS_FILE]

    assert false(signed(release(), beside=files)) == ("missing_file", f"`{WEIGHTS_FILE}` is signed and missing")


def test_what_git_left_is_told_unless_it_is_signed() -> None:
    assert unsigned_beside(signed(release(), beside=beside_of(".gitignore", ".git"))) == (".git", ".gitignore")
    assert unsigned_beside(signed(release())) == ()
    assert unsigned_beside(Provenance(signature=None, files=beside_of(".git"))) == ()
    assert unsigned_beside(Provenance(signature=b"{}", files=beside_of(".git"))) == ()
    names = resources(lambda items: [*items, item(".gitignore"), item(".github/x")])
    there = signed(release(), ANN, names, beside=beside_of(".gitignore", ".git", ".github"))
    assert unsigned_beside(there) == (".git",)


# ------------------------------------------------------------ findings
NOT_SIGNED_HINT = "inspect them, then delete them or copy the adapter's own files to another folder"


def found(root: Path, provenance: Provenance, policy: Policy | None = None) -> list[Finding]:
    TrustFile(root).set_policy(None, policy)
    return signature_findings(Admission(Library(root)), release(), lambda: provenance, PLACE)


@pytest.mark.parametrize(("standing", "policy", "expected"), ROWS)
def test_a_finding_says_what_the_policy_makes_of_a_signature(
    root: Path, standing: str, policy: Policy | None, expected: str
) -> None:
    _, provenance = offer(standing, root)
    code, severity, hint = {
        "yes": ("N_SIGNATURE", "note", ""),
        "warned": ("W_SIGNATURE", "warning", ""),
        "refused": ("E_SIGNATURE", "error", "`adapt key policy` shows the policies in force"),
    }[expected if (standing, policy) != ("unsigned", "warn") else "yes"]

    assert [f.to_json() for f in found(root, provenance, policy)] == [
        {
            "code": code,
            "severity": severity,
            "where": "model.sig",
            "message": MESSAGES[standing],
            "expected": "",
            "hint": hint,
        }
    ]


def test_a_false_signature_is_an_error_with_its_hint(root: Path) -> None:
    [finding] = found(root, Provenance(signature=b""))

    assert (finding.code, finding.severity, finding.where) == ("E_SIGNATURE", "error", "model.sig")
    assert finding.message == "`model.sig` is empty"
    assert finding.hint == f"the files are not the signed ones; {GONE}"


@pytest.mark.parametrize(
    ("policy", "code", "severity"),
    [(None, "W_NOT_SIGNED", "warning"), ("warn", "W_NOT_SIGNED", "warning"), ("require", "E_NOT_SIGNED", "error")],
)
def test_what_git_left_is_a_warning_and_an_error_where_signatures_are_required(
    root: Path, policy: Policy | None, code: str, severity: str
) -> None:
    TrustFile(root).trust("ann", ANN.public, Terms())

    names = (".cache", ".git", ".gitattributes", ".github")
    findings = found(root, signed(release(), beside=beside_of(*names)), policy)

    assert findings[1:] == [
        Finding(code, "model.sig", "does not cover `.cache`, `.git`, `.gitattributes`, `.github`", hint=NOT_SIGNED_HINT)
    ]


def test_off_says_nothing_of_what_git_left(root: Path) -> None:
    assert [f.code for f in found(root, signed(release(), beside=beside_of(".git")), "off")] == ["N_SIGNATURE"]


def test_only_the_warning_of_unsigned_files_becomes_an_error() -> None:
    other = Finding("W_OTHER", "x", "m", hint="h")

    assert as_error(other) is other
    made = as_error(Finding("W_NOT_SIGNED", "x", "m", hint="h"))
    assert made == Finding("E_NOT_SIGNED", "x", "m", hint="h")


# ------------------------------------------------------------ model.sig in a folder
def test_every_kind_of_neighbour_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / SIGNATURE_FILE).write_bytes(b"raw")
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("sub")
    (folder / "there").symlink_to(SIGNATURE_FILE)
    os.mkfifo(folder / "pipe")

    kinds = {SIGNATURE_FILE: "file", "sub": "folder", "pipe": "other"}
    assert provenance_of(folder) == Provenance(signature=b"raw", files=kinds | {"link": "link", "there": "link"})
    followed = provenance_of(folder, follow_links=True)
    assert followed == Provenance(signature=b"raw", files=kinds | {"link": "folder", "there": "file"})


def test_a_signature_behind_a_link_is_read_only_where_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"raw")
    (tmp_path / SIGNATURE_FILE).symlink_to("real")

    with pytest.raises(SignatureRefused) as told:
        read_signature(tmp_path / SIGNATURE_FILE)

    assert (told.value.what, told.value.clause, told.value.reason) == (
        f"`{shown(str(tmp_path / SIGNATURE_FILE), 200)}`",
        "it is a link",
        "broken",
    )
    with pytest.raises(SignatureRefused, match="it is a link"):
        provenance_of(tmp_path)
    assert read_signature(tmp_path / SIGNATURE_FILE, follow_links=True) == b"raw"
    assert provenance_of(tmp_path, follow_links=True).signature == b"raw"
    assert read_signature(tmp_path / "nothing") is None


def test_a_folder_or_pipe_in_the_place_of_a_signature_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("sub", "pipe"):
        with pytest.raises(SignatureRefused, match="it is not a regular file"):
            read_signature(tmp_path / name)


def test_a_name_that_the_system_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(SignatureRefused, match="it cannot be read: File name too long"):
        read_signature(tmp_path / ("x" * 300))


def test_a_signature_may_hold_just_its_limit(tmp_path: Path) -> None:
    assert SIGNATURE_LIMIT_BYTES == 1 << 20
    path = tmp_path / SIGNATURE_FILE
    path.write_bytes(b"x" * SIGNATURE_LIMIT_BYTES)
    assert read_signature(path) == b"x" * SIGNATURE_LIMIT_BYTES
    path.write_bytes(b"x" * (SIGNATURE_LIMIT_BYTES + 1))

    with pytest.raises(SignatureRefused) as told:
        read_signature(path)

    assert told.value.clause == "it holds more than 1048576 bytes, which no signature does"
    assert told.value.reason == "broken"


@pytest.mark.parametrize(("length", "ends"), [(200, "x`"), (201, "…`")])
def test_the_path_of_an_odd_signature_is_shown_up_to_200_characters(length: int, ends: str) -> None:
    with pytest.raises(SignatureRefused) as told:
        bounded(b"x" * (SIGNATURE_LIMIT_BYTES + 1), "x" * length)

    assert (len(told.value.what), told.value.what[-2:]) == (202, ends)


def test_no_more_names_are_read_than_the_bound_and_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.MAX_ENTRIES == 20_000
    monkeypatch.setattr(provenance, "MAX_ENTRIES", 3)
    for number in range(6):
        (tmp_path / str(number)).touch()

    assert len(provenance_of(tmp_path).files or ()) == 4


def test_the_day_of_an_ended_key_is_told_as_a_day() -> None:
    trust = Trust(keys=(TrustedKey(name="ann", key=ANN.public, not_after=86400),))
    judged = examine(manifest(), "acme", signed(release()), trust, now=86401.0)

    assert (judged.message, day_text(86400)) == (
        "is signed by `ann`, a key that ended on 1970-01-02",
        "1970-01-02T00:00:00+00:00",
    )
    assert key(1).public == ANN.public


# ------------------------------------------------------------ revoked keys
def test_a_key_is_revoked_without_a_reason(root: Path) -> None:
    made = TrustFile(root).revoke("ann", ANN.public)

    assert TrustFile(root).read().revoked == (made,)
    assert (made.reason, made.clause) == ("", "is signed by `ann`, a key that was revoked")


@pytest.mark.parametrize(
    ("revoked", "said"),
    [
        ("{}", "revoked: expected a list"),
        ('[{"name": "a", "reason": ""}]', "revoked[0]: expected the texts name, fingerprint, reason"),
    ],
)
def test_what_is_no_list_of_revoked_keys_is_told(root: Path, revoked: str, said: str) -> None:
    path = TrustFile(root).path
    path.write_text(f'{{"keys": [], "revoked": {revoked}}}')
    path.chmod(0o600)

    with pytest.raises(Malformed) as told:
        TrustFile(root).read()

    assert told.value.message == f"`{path}`: {said}"
