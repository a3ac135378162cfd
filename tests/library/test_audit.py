"""`adapt audit`: every check by a case that sets it off and one that does not, and the forms of its answer."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.specs import fold, is_one_edit_apart, parse_name
from adapterhub.formats.licenses import Expression, Term, joined
from adapterhub.formats.manifest import Parent
from adapterhub.library.audit import Surroundings, audit, checks, subject_of_build
from adapterhub.library.intake.description import Description
from adapterhub.library.store.origins import Origin
from adapterhub.trust.explaining import explanations
from tests.registry.running import running
from tests.support.command_line import Adapt
from tests.support.signing_homes import SIGNATURE, Homes, make_homes, replace_file
from tests.support.tiny import make_adapter, make_base

CARD = "---\nlicense: {}\n---\n# Card\n"


@pytest.fixture
def home(tmp_path: Path) -> Adapt:
    """A base under MIT, registered, and nothing installed."""
    base = make_base(tmp_path / "models" / "base-7b")
    (base / "README.md").write_text(CARD.format("mit"))
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./models/base-7b", "--as", "base-7b")
    adapt.ok("key", "new", "ann", "--unencrypted")
    adapt.ok("key", "trust", "ann", "./home/keys/ann.pub")
    return adapt


def add(
    home: Adapt, name: str, *, licence: str = "Apache-2.0", version: str = "1.0.0", sign: bool = True, **adapter: Any
) -> Path:
    """Add an adapter that no check has anything against; the folder it is installed in."""
    number = len(list((home.folder / "out").glob("*"))) if (home.folder / "out").exists() else 0
    made = make_adapter(home.folder / "out" / f"{name}-{number}", seed=number, **adapter)
    licensing = ["--license", licence] if licence else []
    home.ok("add", made, "--name", name, "--version", version, "--base", "base-7b", *licensing)
    if sign:
        home.ok("key", "sign", f"{name}=={version}")
    return Path(home.json("info", f"{name}=={version}", "--path")["path"])


def findings(home: Adapt, *arguments: object) -> list[dict[str, str]]:
    document = json.loads(home("audit", *arguments, "--json").stdout)
    return [finding for one in document["adapters"] for finding in one["findings"] if finding["severity"] != "note"]


def codes(home: Adapt, *arguments: object) -> list[str]:
    return sorted(finding["code"] for finding in findings(home, *arguments))


# ---------------------------------------------------------------- clean
def test_a_signed_licensed_adapter_on_its_base_is_clean(home):
    add(home, "legal-qa")

    done = home("audit", "--strict", "--verify")

    assert (done.exit_code, done.stdout) == (0, "")
    assert "1 audited: 0 errors, 0 warnings, 0 unknown" in done.stderr


def test_nothing_installed_is_clean(tmp_path):
    document = Adapt(tmp_path).json("audit", "--strict")

    assert (document["adapters"], document["exit_code"]) == ([], 0)


# ---------------------------------------------------------------- files
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("optimizer.pt", "E_BESIDE_PICKLE"), ("adapter_model.bin", "E_BESIDE_PICKLE"), ("modeling.py", "E_BESIDE_CODE"),
        ("setup.SH", "E_BESIDE_CODE"), ("checkpoint-1/deep/training_args.bin", "E_BESIDE_PICKLE"),
        ("notes.txt", "W_BESIDE_OTHER"), ("LICENSE", "W_BESIDE_OTHER"),
    ],
)  # fmt: skip
def test_a_stray_file_in_an_installed_folder_is_told_by_its_name(home, name, code):
    path = add(home, "legal-qa", sign=False) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"text")

    told = {finding["code"]: finding["where"] for finding in findings(home)}

    assert told == {code: name, "W_UNSIGNED": SIGNATURE}


def test_a_pickle_and_a_program_under_a_harmless_name_are_told_by_their_first_bytes(home):
    folder = add(home, "legal-qa", sign=False)
    (folder / "notes.txt").write_bytes(pickle.dumps({"a": 1}))
    (folder / "data.txt").write_bytes(b"\x7fELF\x02\x01\x01")
    with zipfile.ZipFile(folder / "weights.dat", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")

    assert codes(home) == ["E_BESIDE_CODE", "E_BESIDE_PICKLE", "E_BESIDE_PICKLE", "W_UNSIGNED"]


def test_a_folder_that_is_not_installed_is_looked_at_with_what_lies_beside_the_adapter(home):
    folder = make_adapter(home.folder / "downloads" / "legal-qa")
    (folder / "README.md").write_text(CARD.format("mit"))
    (folder / "notes.txt").write_text("harmless")
    clean = codes(home, "./downloads/legal-qa")

    (folder / "training_args.bin").write_bytes(b"\x80\x02}q\x00.")
    (folder / ".git").mkdir()
    (folder / ".git" / "hook.sh").write_text("#!/bin/sh\n")

    assert clean == ["U_BASE", "U_LICENSE", "W_UNSIGNED"]
    assert codes(home, "./downloads/legal-qa") == ["E_BESIDE_PICKLE", *clean]


def test_nothing_beside_an_adapter_is_opened_as_what_it_is_and_no_link_is_followed(home, tmp_path):
    class Canary:
        def __reduce__(self):
            return Path.touch, (tmp_path / "canary",)

    folder = add(home, "legal-qa", sign=False)
    (folder / "a.pkl").write_bytes(pickle.dumps(Canary()))
    secret = tmp_path / "secret"
    secret.write_bytes(pickle.dumps(1))
    (folder / "b.txt").symlink_to(secret)
    (folder / "around").symlink_to(folder, target_is_directory=True)

    assert codes(home, "--verify") == ["E_BESIDE_PICKLE", "W_BESIDE_OTHER", "W_BESIDE_OTHER", "W_UNSIGNED"]
    assert not (tmp_path / "canary").exists()


def test_a_folder_that_is_no_adapter_is_told_with_the_findings_of_verify(home):
    folder = make_adapter(home.folder / "downloads" / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")

    assert codes(home, "./downloads/pickled") == ["E_BESIDE_PICKLE", "E_PICKLE"]
    assert "no such folder: `nowhere`" in home.fails(10, "audit", "./nowhere")


# ---------------------------------------------------------------- signatures
def test_unsigned_is_a_warning_an_error_or_nothing_by_the_policy(home):
    add(home, "legal-qa", sign=False)

    assert codes(home) == ["W_UNSIGNED"]
    for policy, expected in (("warn", ["W_UNSIGNED"]), ("require", ["E_SIGNATURE"]), ("off", [])):
        home.ok("key", "policy", policy)
        assert codes(home) == expected


def test_a_signer_who_is_not_trusted_is_a_warning_and_by_policy_an_error(home):
    add(home, "legal-qa")
    home.ok("key", "untrust", "ann")

    [found] = findings(home)
    assert (found["code"], "unknown key" in found["message"]) == ("W_SIGNATURE", True)

    home.ok("key", "policy", "require")
    assert codes(home) == ["E_SIGNATURE"]


def test_a_forged_signature_is_an_error_whatever_the_policy(home):
    folder = add(home, "legal-qa")
    other = add(home, "other")
    raw = (other / SIGNATURE).read_bytes()
    replace_file(folder / SIGNATURE, raw)
    home.ok("key", "policy", "off")

    [found] = findings(home)

    assert (found["code"], "signed as another adapter" in found["message"]) == ("E_SIGNATURE", True)


def test_a_trust_file_that_others_may_write_is_an_error(home):
    add(home, "legal-qa")
    (home.folder / "home" / "trusted_keys.json").chmod(0o666)

    assert codes(home) == ["E_TRUST"]


def test_another_signer_than_before_is_told(tmp_path):
    homes: Homes = make_homes(tmp_path)
    homes.trust()
    homes.publish("1.0.0")
    homes.ben.ok(*homes.install())
    assert "W_SIGNER" not in codes(homes.ben)

    homes.ben.ok("key", "new", "ben", "--unencrypted")
    homes.ben.ok("key", "trust", "ben", "./ben/keys/ben.pub")
    homes.ben.ok("key", "sign", "legal-qa", "--key", "ben")

    assert "W_SIGNER" in codes(homes.ben)


# ---------------------------------------------------------------- base
def test_a_base_that_is_not_registered_and_one_that_nobody_knows(home):
    add(home, "legal-qa")
    make_adapter(home.folder / "plain", seed=9)
    home.ok("add", "./plain", "--no-base", "--license", "mit")
    home.ok("key", "sign", "plain")
    assert codes(home) == ["U_BASE", "U_LICENSE"]

    home.ok("base", "pin", "plain", "base-7b")
    assert codes(home) == []

    home.ok("base", "remove", "base-7b")
    assert codes(home, "legal-qa") == ["U_LICENSE", "W_BASE_UNREGISTERED"]


def test_an_allowed_mismatch_is_told(home):
    add(home, "legal-qa")
    make_base(home.folder / "models" / "other", seed=1)
    home.ok("base", "add", "./models/other", "--as", "other")
    assert codes(home) == []

    [build] = home.library.installed()
    home.library.allow_mismatch(build, home.library.bases.get("other"))

    [found] = findings(home)
    assert (found["code"], "`other`" in found["message"]) == ("W_BASE_ALLOWED", True)


def test_tensors_that_do_not_fit_the_declared_base_are_a_mismatch(home):
    folder = add(home, "legal-qa", sign=False)
    wider = make_adapter(home.folder / "wider", width=16)
    replace_file(folder / "adapter_model.safetensors", (wider / "adapter_model.safetensors").read_bytes())

    assert "E_BASE_MISMATCH" in codes(home)


def test_a_base_whose_weights_were_exchanged_is_found_when_bytes_are_read(home):
    add(home, "legal-qa")
    other = make_base(home.folder / "models" / "other", seed=1)
    (other / "model.safetensors").replace(home.folder / "models" / "base-7b" / "model.safetensors")

    assert codes(home) == []
    assert codes(home, "--verify") == ["E_BASE_MISMATCH"]


# ---------------------------------------------------------------- withdrawn
@pytest.fixture
def served(tmp_path: Path, online: None):
    with running(tmp_path / "registry") as server:
        yield server


@pytest.mark.slow
def test_what_a_registry_withdrew_or_has_no_more_is_told(home, served):
    add(home, "legal-qa")
    home.ok("remote", "add", "ours", served.url, "--namespaces", "acme")
    home.ok("remote", "login", "ours", "--token", served.token)
    home.ok("push", "legal-qa", "--to", "acme/legal-qa")
    home.ok("remove", "legal-qa", "--yes")
    home.ok("install", "acme/legal-qa@base-7b")
    home.ok("key", "sign", "legal-qa")
    assert codes(home) == []

    versions = f"{served.url}/api/adapt/v1/adapters/acme/legal-qa"
    assert served.post(f"{versions.removeprefix(served.url)}/yank", {"version": "1.0.0", "reason": "leaked"}).is_success
    [found] = findings(home)
    assert (found["code"], "leaked" in found["message"]) == ("E_YANKED", True)
    assert home("audit").exit_code == 3
    assert codes(home, "--offline") == ["E_YANKED"]

    assert served.send("DELETE", "/api/repos/delete", {"name": "legal-qa", "organization": "acme"}).is_success
    assert codes(home) == ["W_GONE"]


def test_a_server_that_is_away_is_asked_once_and_cannot_tell(home):
    for name in ("legal-qa", "summary"):
        add(home, name)
        home.ok("push", name, "--to", "./published")
        home.ok("remove", name, "--yes")
        home.ok("install", f"acme/{name}", "--from", "./published")
    for build in home.library.installed():
        home.library.origins.record(
            Origin(adapter=build.manifest.digest, name=build.full_name, place="http://127.0.0.1:9")
        )
    asked = []

    def find_source(origin: Origin) -> Any:
        asked.append(origin.name)
        from adapterhub.distribution.hub import Hub

        return Hub(endpoint=origin.place, token=None)

    around = Surroundings(library=home.library, find_source=find_source)
    found = [
        f.code for one in audit(map(subject_of_build, around.library.installed()), around) for f in one.report.unknowns
    ]

    assert found == ["U_YANKED", "U_YANKED"]
    assert len(asked) == 1


def test_an_adapter_that_nobody_noted_the_place_of_cannot_be_told(home):
    add(home, "legal-qa")
    for record in (home.folder / "home" / "origins").iterdir():
        record.unlink()

    assert codes(home) == ["U_YANKED"]


# ---------------------------------------------------------------- lineage
def test_a_merge_of_what_is_here_is_clean_and_its_absent_parents_are_told(home):
    for name in ("legal-qa", "summary"):
        add(home, name)
    home.ok("merge", "legal-qa", "summary", "-o", "both", "--license", "Apache-2.0")
    home.ok("key", "sign", "both")
    assert codes(home) == []

    home.ok("remove", "summary", "--yes")
    [found] = findings(home)
    assert (found["code"], found["where"]) == ("W_PARENT_ABSENT", "adapterhub.json: parents[1]")

    home.ok("cache", "clean", "--grace", "0")
    assert codes(home) == ["U_LICENSE", "W_PARENT_ABSENT"]


def test_a_parent_without_a_digest_and_a_merge_without_parents_are_told(home):
    def made(name: str, **said: Any) -> None:
        folder = make_adapter(home.folder / name, seed=sum(map(ord, name)))
        about = Description(name=parse_name(name), version="1.0.0", license="mit", **said)
        home.library.add(folder, about, base=home.library.bases.get("base-7b"))
        home.ok("key", "sign", name)

    made("orphan", recipe={"method": "cat"})
    made("half-known", parents=(Parent(digest=None, spec="./out/a", weight=1.0),))
    made("pulled-out", recipe={"method": "extract"})

    assert codes(home, "orphan") == ["W_LINEAGE"]
    assert codes(home, "half-known") == ["U_LICENSE", "W_PARENT_DIGEST"]
    assert codes(home, "pulled-out") == []


# ---------------------------------------------------------------- licences
@pytest.mark.parametrize(
    ("adapter", "base", "expected"),
    [
        ("Apache-2.0", "mit", []),
        ("", "mit", ["U_LICENSE"]),
        ("my own words", "mit", ["U_LICENSE"]),
        ("Apache-2.0", "other", ["U_LICENSE"]),
        ("LicenseRef-House-Rules", "mit", ["U_LICENSE"]),
        ("CC-BY-NC-4.0", "mit", ["W_LICENSE_NONCOMMERCIAL"]),
        ("CC-BY-NC-4.0 OR MIT", "mit", []),
        ("Apache-2.0", "cc-by-nc-4.0", ["W_LICENSE_NONCOMMERCIAL", "W_LICENSE_WIDER"]),
        ("Apache-2.0", "llama3.1", ["W_LICENSE_CONDITIONS", "W_LICENSE_WIDER"]),
        ("llama3.1", "llama3.1", ["W_LICENSE_CONDITIONS"]),
        ("gemma", "gemma", ["W_LICENSE_CONDITIONS"]),
        ("cc-by-sa-4.0", "mit", ["W_LICENSE_SHARE_ALIKE"]),
        ("CC-BY-ND-4.0", "mit", ["W_LICENSE_NO_DERIVATIVES"]),
        ("gpl-3.0", "gemma", ["W_LICENSE_CONDITIONS", "W_LICENSE_CONFLICT", "W_LICENSE_SHARE_ALIKE", "W_LICENSE_WIDER"]),
        ("MPL-2.0", "cc-by-sa-4.0", ["U_LICENSE_CONFLICT", "W_LICENSE_SHARE_ALIKE"]),
    ],
)  # fmt: skip
def test_licences_of_adapter_and_base_are_taken_together(home, adapter, base, expected):
    (home.folder / "models" / "base-7b" / "README.md").write_text(CARD.format(base))
    add(home, "legal-qa", licence=adapter)

    assert codes(home) == expected


def test_the_missing_licence_of_a_base_is_told_once_and_counts_for_all_its_adapters(home):
    (home.folder / "models" / "base-7b" / "README.md").write_text("# No licence\n")
    for name in ("legal-qa", "summary", "tables"):
        add(home, name)

    adapters = home.json("audit")["adapters"]

    assert [[f["code"] for f in one["findings"] if f["severity"] == "unknown"] for one in adapters] == [
        ["U_LICENSE"], [], [],
    ]  # fmt: skip
    assert [one["license"]["complete"] for one in adapters] == [False] * 3
    assert codes(home, "tables") == ["U_LICENSE"]


def test_the_licence_of_a_grandparent_reaches_the_merge(home):
    add(home, "research", licence="CC-BY-NC-4.0")
    for name in ("legal-qa", "summary"):
        add(home, name)
    home.ok("merge", "research", "legal-qa", "-o", "inner", "--license", "CC-BY-NC-4.0")
    home.ok("merge", "inner", "summary", "-o", "outer", "--license", "MIT")

    [one] = home.json("audit", "outer")["adapters"]

    assert one["license"]["spdx"] == "MIT AND CC-BY-NC-4.0 AND Apache-2.0"
    assert (one["license"]["terms"], one["license"]["complete"]) == (["noncommercial"], True)
    told = [f["message"] for f in one["findings"] if f["code"] == "W_LICENSE_WIDER"]
    assert len(told) == 2
    assert all("states MIT, but parent" in text for text in told)


def test_the_name_of_a_licence_in_a_card_counts_where_the_licence_is_other(home):
    card = "---\nlicense: other\nlicense_name: llama3\n---\n"
    (home.folder / "models" / "base-7b" / "README.md").write_text(card)
    add(home, "legal-qa", licence="llama3")

    assert codes(home) == ["W_LICENSE_CONDITIONS"]


@pytest.mark.parametrize(
    ("text", "spdx", "terms"),
    [
        ("mit", "MIT", set()),
        ("apache-2.0 or gpl-3.0-only", "Apache-2.0 OR GPL-3.0-only", set()),
        ("apache-2.0 and gpl-3.0-only", "Apache-2.0 AND GPL-3.0-only", {Term.SHARE_ALIKE}),
        ("gpl-3.0-only or cc-by-nc-4.0", "GPL-3.0-only OR CC-BY-NC-4.0", {Term.SHARE_ALIKE}),
        ("mit and (isc or gemma)", "MIT AND (ISC OR LicenseRef-Gemma)", set()),
        ("gpl-2.0+ with classpath-exception-2.0", "GPL-2.0+ WITH Classpath-exception-2.0", {Term.SHARE_ALIKE}),
        ("Llama 3.1 Community License", "LicenseRef-Llama-3.1", {Term.CONDITIONS}),
        ("llama2 and apache-2.0", "LicenseRef-Llama-2 AND Apache-2.0", {Term.CONDITIONS}),
        ("bigscience-bloom-rail-1.0", "LicenseRef-OpenRAIL", {Term.CONDITIONS}),
        ("openrail++", "LicenseRef-OpenRAIL", {Term.CONDITIONS}),
        ("flux-1-dev-non-commercial-license", "LicenseRef-NonCommercial", {Term.NONCOMMERCIAL}),
        ("PolyForm-Noncommercial-1.0.0", "PolyForm-Noncommercial-1.0.0", {Term.NONCOMMERCIAL}),
        ("JSON", "JSON", {Term.UNKNOWN}),
    ],
)  # fmt: skip
def test_an_expression_is_read_and_boiled_down_to_what_asks_least(text, spdx, terms):
    found = Expression.parse(text)

    assert found is not None
    assert (found.text, found.best.terms) == (spdx, terms)
    assert Expression.parse(found.text) == found


@pytest.mark.parametrize(
    "text", ["", "other", "unknown", "mit and", "(" * 400 + "mit", "(" * 40 + "mit" + ")" * 40, "mit " * 500, "ünlicense",
             "mit\x1b[2J", "__import__('os')", "mit or " * 70 + "mit)"]
)  # fmt: skip
def test_what_is_no_expression_is_none(text):
    assert Expression.parse(text) is None


def test_many_choices_do_not_explode():
    names = ("MIT", "ISC", "Zlib", "GPL-3.0-only", "MPL-2.0", "Apache-2.0")
    parts = [Expression.parse(f"{a} OR {b}") for a in names for b in names if a != b]

    whole = joined(part for part in parts if part)

    assert whole is not None
    assert len(whole.choices) <= 64


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("one", "other", "is_told"),
    [
        ("legal-qa", "legal_qa", True), ("legal-qa", "1egal-qa", True), ("io-model", "10-model", True),
        ("legal-qa", "legal-qb", True), ("legal-qa", "legal-qaa", True), ("legal-qa", "lgeal-qa", True),
        ("legal-qa", "summary", False), ("qa-r4", "qa-r8", False), ("legal-qa", "legal-qabc", False),
    ],
)  # fmt: skip
def test_names_that_look_alike_are_told_on_both_sides(home, one, other, is_told):
    for name in (one, other):
        add(home, name)

    assert codes(home) == (["W_LOOK_ALIKE"] * 2 if is_told else [])


def test_two_versions_of_one_name_do_not_look_alike(home):
    add(home, "legal-qa")
    add(home, "legal-qa", version="1.1.0")

    assert codes(home) == []


def test_folding_and_edits():
    assert len({fold(name) for name in ("Legal-QA-10", "legal_qa.lo", "legalqaIO", "LEGALQA1O")}) == 1
    assert [is_one_edit_apart("ab", b) for b in ("ab", "abc", "b", "ba", "a", "", "xy")] == [
        False, True, True, True, True, False, False]  # fmt: skip


# ---------------------------------------------------------------- bytes, and folders that cannot be read
def test_damaged_bytes_are_found_on_demand_and_have_their_own_exit_code(home):
    path = add(home, "legal-qa", sign=False) / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    replace_file(path, bytes(data))

    assert codes(home) == ["W_UNSIGNED"]
    assert home("audit", "--verify").exit_code == 12
    assert "E_DIGEST" in codes(home, "--verify")


def test_a_folder_that_says_nothing_is_not_passed_over(home):
    replace_file(add(home, "legal-qa") / "adapterhub.json", b"{")

    document = json.loads(home("audit", "--json").stdout)

    assert [one["adapter"] for one in document["adapters"]] == ["the store"]
    assert codes(home) == ["E_MANIFEST"]


# ---------------------------------------------------------------- choosing, exit codes, forms
def test_a_spec_means_every_build_that_it_fits(home):
    for version in ("1.0.0", "1.1.0"):
        add(home, "legal-qa", version=version)
    add(home, "summary")

    def versions(*arguments: str) -> list[str]:
        return [one["version"] for one in home.json("audit", *arguments)["adapters"]]

    assert versions("legal-qa") == ["1.0.0", "1.1.0"]
    assert versions("legal-qa>1.0") == ["1.1.0"]
    assert versions("legal-qa@base-7b==1.0.0", "summary") == ["1.0.0", "1.0.0"]
    assert "no adapter `nothing`" in home.fails(10, "audit", "nothing")


def test_the_exit_code_counts_errors_and_with_strict_the_rest(home):
    folder = add(home, "legal-qa", licence="", sign=False)

    assert home("audit").exit_code == 0
    assert home("audit", "--strict").exit_code == 3
    assert home("audit", "--strict", "--ignore", "W_UNSIGNED").exit_code == 17
    assert home("audit", "--strict", "--ignore", "W_UNSIGNED", "--ignore", "U_LICENSE").exit_code == 0
    assert "unknown audit code" in home.fails(2, "audit", "--ignore", "W_NOTHING")

    (folder / "run.py").write_text("")
    assert home("audit").exit_code == 3


def test_the_table_has_a_line_a_finding_and_hints_for_errors(home):
    (add(home, "legal-qa", sign=False) / "run.py").write_text("")

    done = home("audit")

    head, *lines = done.stdout.splitlines()
    assert head.split("\t") == ["adapter", "code", "severity", "where", "finding"]
    assert [line.split("\t")[1:4] for line in lines] == [
        ["E_BESIDE_CODE", "error", "run.py"],
        ["W_UNSIGNED", "warning", "model.sig"],
    ]
    assert "hint: move it away" in done.stderr


def test_the_json_document_has_all_its_keys_always(home):
    add(home, "legal-qa")

    document = home.json("audit", "--notes")

    assert list(document) == ["schema", "exit_code", "counts", "ignored", "adapters"]
    assert document["schema"] == "adapterhub/audit/1"
    [one] = document["adapters"]
    assert list(one) == ["adapter", "name", "version", "digest", "path", "status", "license", "findings", "ignored"]
    assert list(one["license"]) == ["spdx", "terms", "complete", "parts"]
    assert {f["code"] for f in one["findings"]} == {"A_NO_CONTRACT", "N_LICENSE", "N_SIGNATURE"}
    assert document["counts"] == {"error": 0, "warning": 0, "unknown": 0, "note": 3}


def test_the_sarif_log_is_as_the_standard_says(home):
    (add(home, "legal-qa", licence="", sign=False) / "run it.py").write_text("")
    folder = make_adapter(home.folder / "downloads" / "a b")

    done = home("audit", "legal-qa", "./downloads/a b", "--sarif")
    log = json.loads(done.stdout)

    assert done.exit_code == 3
    assert (log["version"], set(log)) == ("2.1.0", {"$schema", "version", "runs"})
    [run] = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    identifiers = [rule["id"] for rule in rules]
    assert len(set(identifiers)) == len(identifiers)
    assert all(rule["shortDescription"]["text"] for rule in rules)
    assert {rule["defaultConfiguration"]["level"] for rule in rules} <= {"none", "note", "warning", "error"}
    root = run["originalUriBaseIds"]["LIBRARY"]["uri"]
    assert root == f"{(home.folder / 'home').as_uri()}/"
    for result in run["results"]:
        assert identifiers[result["ruleIndex"]] == result["ruleId"]
        assert result["message"]["text"]
        kind, level = result["kind"], result["level"]
        assert (kind, level) in {("fail", "error"), ("fail", "warning"), ("open", "none"), ("informational", "none")}
        [location] = result["locations"]
        artifact = location["physicalLocation"]["artifactLocation"]
        assert " " not in artifact["uri"]
        assert artifact["uri"].startswith("file:///") != ("uriBaseId" in artifact)
        assert len(result["partialFingerprints"]["finding/v1"]) == 64
    [code] = [r for r in run["results"] if r["ruleId"] == "E_BESIDE_CODE"]
    place = code["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place["uri"].startswith("adapters/")
    assert place["uri"].endswith("/run%20it.py")
    assert any(
        r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].startswith(folder.as_uri())
        for r in run["results"]
    )
    keys = [json.dumps(r["partialFingerprints"]) for r in run["results"] if r["ruleId"] != "U_LICENSE"]
    assert len(set(keys)) == len(keys)
    assert "exclude each other" in home.fails(2, "audit", "--sarif", "--json")


def test_an_empty_audit_is_a_log_without_results(tmp_path):
    [run] = json.loads(Adapt(tmp_path).ok("audit", "--sarif"))["runs"]

    assert (run["results"], run["tool"]["driver"]["rules"]) == ([], [])


def test_a_check_that_cannot_be_carried_out_is_told_and_the_others_go_on(home):
    add(home, "legal-qa", sign=False)
    (home.folder / "home" / "bases" / "base-7b.json").write_text("{")

    found = codes(home)

    assert {"U_CHECK", "W_UNSIGNED"} <= set(found)


def test_every_code_of_an_audit_alone_has_a_check():
    folder = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "library" / "audit"
    source = "".join(p.read_text() for p in folder.glob("*.py"))
    alone = [code for code, one in explanations().items() if one.audit]

    assert [code for code in alone if f'"{code}"' not in source] == []
    assert checks() == (
        "base",
        "content",
        "contract",
        "files",
        "licenses",
        "lineage",
        "log",
        "names",
        "signature",
        "yanked",
    )
