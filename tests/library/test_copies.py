"""The library links quantised copies to their sources, and every verb gives the same answer for each kind of base."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.core.errors import BaseMismatch, NoCompatibleRelease, RefusedAdapter
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach
from adapterhub.inference.serving.provider import AdapterProvider
from tests.formats.quantised.test_stacks import apart, experts, in_float8, stacked
from tests.support.command_line import Adapt
from tests.support.copied_bases import World
from tests.support.copies import saved


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def allowed(asked: Callable[[], object]) -> bool:
    with contextlib.suppress(BaseMismatch, NoCompatibleRelease, RefusedAdapter):
        asked()
        return True
    return False


CASES = [
    ("source", BaseVerdict.SAME_WEIGHTS, True),
    ("wide", BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION, True),
    ("fp8", BaseVerdict.SAME_WEIGHTS_QUANTISED, True),
    ("tuned-fp8", BaseVerdict.SAME_SHAPES, False),
    ("gptq", BaseVerdict.LIKELY_SAME_QUANTISED, False),
    ("gptq --accept likely", BaseVerdict.ACCEPTED_QUANTISED, True),
    ("exl3", BaseVerdict.CANNOT_TELL, False),
]


@pytest.mark.parametrize(("typed", "verdict", "runs"), CASES)
@pytest.mark.parametrize("is_source_here", [True, False])
def test_every_verb_answers_alike(
    typed: str, verdict: BaseVerdict, *, runs: bool, is_source_here: bool, world: World
) -> None:
    """Whether the source is registered beside the base or not, which only the manifest then tells of."""
    adapt, (name, *options) = world.adapt, typed.split()
    adapt.ok("base", "add", f"./{name}", *options)
    if not is_source_here and name != "source":
        adapt.ok("base", "remove", "source")
    library, record = adapt.library, world.record(name)
    [build] = library.installed()

    assert library.bases.judged(build.base.fingerprint, record.fingerprint).verdict is verdict
    checked = library.verify_build(build, record)
    assert ("E_BASE_MISMATCH" not in {finding.code for finding in checked.errors}) is runs
    planned = adapt("install", f"a@{name}", "--from", "./away", "--dry-run")
    assert (planned.exit_code == 0) is runs, planned.stderr
    listed = [row["name"] for row in adapt.json("list", "--base", name)]
    assert listed == (["a"] if runs else [])
    audited = adapt("audit", "a", "--json")
    unregistered = "W_BASE_UNREGISTERED" in audited.stdout
    assert unregistered is (not runs and not is_source_here and name != "source"), audited.stdout
    assert "E_BASE_MISMATCH" not in audited.stdout
    provider = AdapterProvider(library, record, engine="vllm@0.32", max_rank=16)
    assert allowed(lambda: provider.find("a")) is runs
    provider.close()
    if name == "exl3":
        return  # nothing runs it
    assert allowed(lambda: attach(world.model(name), "a", library=library)) is runs
    bank = AdapterBank(world.model(name), library=library)
    assert allowed(lambda: bank.load("a")) is runs


def test_a_copy_and_its_source_are_linked_in_either_order(world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")
    first = world.record("fp8").links
    world.adapt.ok("base", "remove", "source")
    world.adapt.ok("base", "remove", "fp8")
    world.adapt.ok("base", "add", "./fp8")
    assert world.record("fp8").links == ()

    world.adapt.ok("base", "add", "./source")

    [link] = first
    assert world.record("fp8").links == first
    assert (link.source, link.verdict) == (
        world.record("source").fingerprint.weights,
        BaseVerdict.SAME_WEIGHTS_QUANTISED,
    )
    row = world.listed("fp8")
    assert (row["form"], row["copied"], row["copy_of"]) == ("fp8-channel", "proven", ["source"])
    assert "fp8-channel copy of source" in world.adapt.ok("base", "list")
    shown = world.adapt.ok("base", "show", "fp8")
    assert "copy of\tsource (SAME_WEIGHTS_QUANTISED (fp8-channel))" in shown
    assert "sampled values of the source lie in the intervals of their codes" in shown
    assert world.adapt.json("base", "show", "fp8")["copy"]["sources"][0]["source"] == link.source


def test_a_list_without_copies_has_no_column_of_them(world: World) -> None:
    assert "copy" not in world.adapt.ok("base", "list").splitlines()[0].split()


def test_a_copy_keeps_its_link_when_the_source_is_forgotten(world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")
    world.adapt.ok("base", "remove", "source")
    weights = str(world.record("fp8").links[0].source)

    assert f"fp8-channel copy of {weights[7:19]}" in world.adapt.ok("base", "list")
    assert world.listed("fp8")["copy_of"] == []
    standing = world.adapt.library.bases.standing_for(world.record("fp8").links[0].source)
    assert standing is not None
    assert standing.alias == "fp8"


def test_an_exported_record_carries_neither_links_nor_the_acceptance(world: World) -> None:
    world.adapt.ok("base", "add", "./gptq", "--accept", "likely")
    record = world.record("gptq")
    assert [link.accepted for link in record.links] == [True]
    exported = world.adapt.ok("base", "show", "gptq", "--record")

    assert b'"links"' in record.to_bytes()
    assert "links" not in json.loads(exported)
    forged = json.loads(record.to_bytes()) | {"path": None}
    (world.folder / "gptq.json").write_text(json.dumps(forged))
    world.away.ok("base", "add", "./gptq.json")

    [link] = world.away.library.bases.get("gptq").links
    assert (link.verdict, link.accepted) == (BaseVerdict.LIKELY_SAME_QUANTISED, False)


def test_the_hint_accepts_the_copy(world: World) -> None:
    world.adapt.ok("base", "add", "./gptq")
    refused = world.adapt("install", "a@gptq", "--from", "./away", "--dry-run")
    command = f"adapt base add {world.folder / 'gptq'} --as gptq --accept likely"
    assert command in refused.stderr
    with pytest.raises(BaseMismatch) as raised:
        attach(world.model("gptq"), "a", library=world.adapt.library)
    assert command in str(raised.value.hint)

    world.adapt.ok(*command.split()[1:])

    with attach(world.model("gptq"), "a", library=world.adapt.library) as attached:
        [adapter] = attached.adapters
        assert adapter.verdict is BaseVerdict.ACCEPTED_QUANTISED
        assert "which you accepted" in attached.explain()
    assert "accepted gptq copy of source" in world.adapt.ok("base", "list")
    world.adapt.ok("base", "add", "./gptq")  # once is enough
    assert world.record("gptq").accepts == "likely"


def with_tune(world: World, *, has_files: bool) -> None:
    """Register a fine-tune, which the samples of the copy do not tell from the source."""
    world.save("tune", {n: t * 1.02 if "q_proj" in n else t for n, t in world.source.items()})
    if has_files:
        world.adapt.ok("base", "add", "./tune")
        return
    world.away.ok("base", "add", "./tune")
    (world.folder / "tune.json").write_text(world.away.ok("base", "show", "tune", "--record"))
    world.adapt.ok("base", "add", "./tune.json")


def test_an_accepted_copy_stands_for_one_source_only(world: World) -> None:
    world.adapt.ok("base", "add", "./gptq", "--accept", "likely")
    with_tune(world, has_files=False)
    bases = world.adapt.library.bases
    copy, tune = bases.get("gptq"), bases.get("tune")

    assert sorted(link.accepted for link in copy.links) == [False, True]
    found = bases.judged(tune.fingerprint, copy.fingerprint)
    assert found.verdict is BaseVerdict.LIKELY_SAME_QUANTISED
    assert found.differences[0] == "`gptq` is accepted as a copy of `source`"

    world.adapt.ok("base", "remove", "gptq")
    said = world.adapt.fails(2, "base", "add", "./gptq", "--accept", "likely")
    assert "is likely a copy of `source` and of `tune`, which are several models. Nothing was changed" in said
    assert "gptq" not in bases.aliases()


@pytest.mark.parametrize("is_first", [True, False])
def test_files_tell_what_samples_do_not(world: World, *, is_first: bool) -> None:
    if is_first:
        with_tune(world, has_files=True)
    world.adapt.ok("base", "add", "./gptq", "--accept", "likely")
    if not is_first:
        with_tune(world, has_files=True)
    bases = world.adapt.library.bases
    source, tune, copy = (bases.get(name).fingerprint for name in ("source", "tune", "gptq"))

    assert compare(tune, copy).verdict is BaseVerdict.LIKELY_SAME_QUANTISED
    assert bases.judged(tune, copy).verdict is BaseVerdict.SAME_SHAPES
    assert bases.judged(copy, source).verdict is BaseVerdict.ACCEPTED_QUANTISED
    assert world.listed("gptq")["copy_of"] == ["source"]
    assert bases.by_fingerprint(tune) == bases.get("tune")
    world.adapt.ok("base", "remove", "tune")
    assert bases.by_fingerprint(tune) is None  # what was refuted stays refuted


@pytest.mark.parametrize("is_first", [True, False])
def test_files_find_experts_where_samples_do_not(tmp_path: Path, *, is_first: bool) -> None:
    adapt = Adapt(tmp_path)
    saved(tmp_path / "mixture", stacked(experts()), model_type="qwen3_moe")
    apart_in_fp8 = in_float8(apart(experts(), "mlp", "gate_proj", "up_proj", "down_proj"))
    saved(tmp_path / "fp8", apart_in_fp8, model_type="qwen3_moe")
    for name in ("fp8", "mixture") if is_first else ("mixture", "fp8"):
        adapt.ok("base", "add", f"./{name}")
    bases = adapt.library.bases
    source, copy = bases.get("mixture"), bases.get("fp8")

    assert not compare(source.fingerprint, copy.fingerprint).verdict.allows_attach
    assert bases.judged(source.fingerprint, copy.fingerprint).verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
    assert "fp8-channel copy of mixture" in adapt.ok("base", "list")
    adapt.ok("base", "remove", "mixture")
    shutil.rmtree(tmp_path / "mixture")
    assert bases.by_fingerprint(source.fingerprint) == bases.get("fp8")
    adapt.ok("base", "add", "./fp8")  # again, where its source is no more
    assert bases.by_fingerprint(source.fingerprint) == bases.get("fp8")


def test_there_is_nothing_to_accept_of_a_model_in_floats(world: World) -> None:
    said = world.adapt.fails(2, "base", "add", "./wide", "--accept", "likely")

    assert "`wide` is not a quantised copy" in said
    assert world.adapt.library.bases.aliases() == ("source",)


def test_copies_of_one_source_stand_for_one_another(world: World) -> None:
    """An adapter that was trained on the accepted copy runs on the proven one: both are forms of the source."""
    world.adapt.ok("base", "add", "./fp8")
    world.adapt.ok("base", "add", "./gptq", "--accept", "likely")
    bases = world.adapt.library.bases
    fp8, gptq = (bases.get(name).fingerprint for name in ("fp8", "gptq"))

    found = bases.judged(gptq, fp8)

    assert found.verdict is BaseVerdict.ACCEPTED_QUANTISED
    assert found.differences[0].startswith("both are forms of `source`")
    assert bases.judged(fp8, gptq).verdict is BaseVerdict.ACCEPTED_QUANTISED


def test_a_base_is_found_in_the_order_of_the_proofs(world: World) -> None:
    bases = world.adapt.library.bases
    source = bases.get("source").fingerprint
    for name, options in (("gptq", ["--accept", "likely"]), ("fp8", []), ("wide", [])):
        world.adapt.ok("base", "add", f"./{name}", *options)
    found = []
    for _ in range(4):
        record = bases.by_fingerprint(source)
        assert record is not None
        found.append(record.alias)
        world.adapt.ok("base", "remove", record.alias)

    assert found == ["source", "wide", "fp8", "gptq"]
    assert bases.by_fingerprint(source) is None


def test_builds_for_the_source_and_for_the_copy_are_two(world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")

    world.adapt.ok("add", "./a", "--name", "a", "--base", "fp8")

    builds = list(world.adapt.library.installed())
    assert len({build.manifest.digest for build in builds}) == 2
    here = {build.base.fingerprint: build.manifest.digest for build in builds}
    for name in ("source", "fp8"):  # each goes to the build of its own weights
        shown = world.adapt.json("show", f"a@{name}")
        assert shown["digest"] == here[world.record(name).fingerprint]


def test_fusing_into_a_copy_is_refused_with_its_source(world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")

    said = world.adapt.fails(11, "fuse", "a", "--base", "fp8", "-o", "./fused")

    assert "is a quantised copy (fp8-channel)" in said
    assert "--base source" in said
    assert not (world.folder / "fused").exists()


def test_a_hub_id_reads_no_files(world: World) -> None:
    world.adapt.ok("base", "add", "./gptq", "--accept", "likely")
    links = world.record("gptq").links
    for name in ("source", "gptq"):
        (world.folder / name / "model.safetensors").unlink()
        world.adapt.ok("base", "set", name, "--hub-id", f"acme/{name}")

    assert world.record("gptq").links == links
    assert world.record("gptq").hub == "acme/gptq"


def test_an_unrelated_damaged_record_stops_no_comparison(world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")
    (world.folder / "home" / "bases" / "zzz.json").write_text("{}")
    bases = world.adapt.library.bases

    found = bases.judged(bases.get("source").fingerprint, bases.get("fp8").fingerprint)

    assert found.verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED


@pytest.mark.parametrize("key", ["links", "accepts"])
def test_a_damaged_link_is_told(key: str, world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")
    path = world.folder / "home" / "bases" / "fp8.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: [{"method": 1, "verdict": "same-weights"}]}))

    said = world.adapt.fails(16, "base", "show", "fp8")

    assert f"{key}" in said
    assert "not a usable base record" in said


def test_a_link_of_another_method_counts_no_more(world: World) -> None:
    world.adapt.ok("base", "add", "./gptq", "--accept", "likely")
    path = world.folder / "home" / "bases" / "gptq.json"
    value = json.loads(path.read_text())
    value["links"][0]["method"] = 0
    path.write_text(json.dumps(value))

    assert world.record("gptq").links == ()


def test_lists_import_no_numpy(world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")
    code = (
        "import sys; from adapterhub.cli import _run\n"
        "try: _run()\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'torch') if m in sys.modules], file=sys.stderr)"
    )
    for words in (["base", "list"], ["list"], ["search", "a"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=True,
            env={"ADAPTERHUB_HOME": str(world.folder / "home"), "PATH": "/usr/bin"},
        )
        assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("tuned-fp8", "was made for another base: ", "get the adapter that was made for this base"),
        ("gptq", "was made for a base of which this is likely a copy, which is no proof: ", "`adapt base add "),
        ("exl3", "was made for a base that cannot be compared with this one: ", "in a format that is known here"),
    ],
)
def test_verify_says_of_a_base_what_is_known(world: World, name: str, message: str, hint: str) -> None:
    world.adapt.ok("base", "add", f"./{name}")
    [build] = world.adapt.library.installed()

    for base in (world.record(name), replace(world.record(name), alias="", path=None)):
        [found] = world.adapt.library.verify_build(build, base).errors
        assert (found.code, found.message.startswith(message), hint in found.hint) == ("E_BASE_MISMATCH", True, True)
    refused = world.adapt("install", f"a@{name}", "--from", "./away", "--dry-run").stderr
    assert message.removeprefix("was ") in refused
