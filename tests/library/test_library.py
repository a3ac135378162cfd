from __future__ import annotations

import hashlib

import numpy as np
import pytest

from adapterhub.core.errors import AdapterNotFound, BaseMismatch, RefusedAdapter, ReleaseExists
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec, parse_name
from adapterhub.distribution.choosing import find_installed
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.library.contracting import add_contract
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.results import KeptResults, ResultFiles
from adapterhub.library.store.catalog import folder_below
from adapterhub.library.store.rows import Filters
from adapterhub.library.upkeep.space import space_of, unused_builds
from tests.support.contracts import small_contract
from tests.support.disk_looks import looks
from tests.support.tiny import make_adapter, make_base


def names(rows):
    return [(row.full_name, row.version, row.rank) for row in rows]


def snapshot(root):
    """Every file of the store and the index's rows: what a refusal must leave as it was."""
    return sorted(
        (str(p.relative_to(root)), p.stat().st_size)
        for d in ("blobs", "manifests", "adapters", "tmp", "pins")
        for p in (root / d).rglob("*")
        if p.is_file()
    )


def test_an_added_adapter_is_a_plain_peft_folder_of_links_into_the_store(library, add):
    build = add("legal-qa", task="legal").build

    weights = build.folder / "adapter_model.safetensors"
    entry = build.manifest.file("adapter_model.safetensors")
    assert sorted(p.name for p in build.folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapterhub.json",
    ]
    assert entry.sha256 == "sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.samefile(library.store.blob_path(entry.sha256))
    assert weights.stat().st_mode & 0o222 == 0


def test_the_folder_holds_the_manifest_whose_hash_is_its_identity(add):
    build = add("legal-qa").build

    raw = (build.folder / "adapterhub.json").read_bytes()
    assert build.manifest.digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert Manifest.parse(raw) == build.manifest


def test_adding_the_same_again_changes_nothing(library, base, tmp_path):
    folder = make_adapter(tmp_path / "out")
    about = Description(name=parse_name("legal-qa"), version="1.0.0")
    library.add(folder, about, base=base)
    before = snapshot(library.root)

    again = library.add(folder, about, base=base)

    assert (again.created, snapshot(library.root)) == (False, before)


def test_an_existing_version_with_other_bytes_is_refused_and_nothing_is_stored(library, add):
    add("legal-qa", seed=1)
    before = snapshot(library.root)

    with pytest.raises(ReleaseExists, match=r"legal-qa.*1\.0\.0.*files"):
        add("legal-qa", seed=2)

    assert snapshot(library.root) == before


def test_another_rank_of_the_same_version_is_another_build(library, add):
    add("legal-qa", rank=4)
    add("legal-qa", rank=8, variant=True)

    assert names(library.catalog.search(Filters())) == [("legal-qa", "1.0.0", 8), ("legal-qa", "1.0.0", 4)]


def test_without_a_base_the_name_in_the_config_is_a_hint_and_the_fingerprint_unknown(library, add):
    build = add("legal-qa", known=False).build

    assert (build.base.fingerprint, build.base.hints.hub_id) == (None, "test/tiny")
    assert build.folder.parent.parent.name == "unknown"


def test_pinning_records_the_base_without_touching_the_manifest(library, base, add):
    build = add("legal-qa", known=False).build

    pinned = library.pin_base(build, base)

    [found] = library.builds_named("legal-qa")
    assert (pinned.base.fingerprint, found.base.fingerprint) == (base.fingerprint, base.fingerprint)
    assert found.manifest.digest == build.manifest.digest
    assert names(library.catalog.search(Filters(bases=(base.fingerprint.weights,)))) == [("legal-qa", "1.0.0", 4)]


def test_pinning_to_a_base_it_does_not_fit_is_refused(library, tmp_path, add):
    build = add("legal-qa", known=False).build
    other = library.bases.add(make_base(tmp_path / "wide", width=12), "wide")

    with pytest.raises(BaseMismatch):
        library.pin_base(build, other)

    assert library.builds_named("legal-qa")[0].base.fingerprint is None


def test_an_adapter_of_another_shape_is_refused_for_the_base_and_nothing_is_stored(library, base, tmp_path):
    folder = make_adapter(tmp_path / "out", width=12)
    before = snapshot(library.root)

    with pytest.raises(BaseMismatch, match="Nothing was stored"):
        library.add(folder, Description(name=parse_name("x"), version="1.0.0"), base=base)

    assert snapshot(library.root) == before


def test_a_pickle_only_folder_is_refused_unopened(library, tmp_path):
    folder = make_adapter(tmp_path / "out")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02cos\nmkdir\nX\x0a\x00\x00\x00CANARY_RAN\x85R.")

    with pytest.raises(RefusedAdapter, match="E_PICKLE"):
        library.add(folder, Description(name=parse_name("x"), version="1.0.0"))


def test_a_nan_is_refused_and_named(library, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = make_adapter(tmp_path / "out")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[1]
    tensors[name][1, 2] = np.nan
    save_file(tensors, path)

    with pytest.raises(RefusedAdapter, match=f"E_NONFINITE.*{name.split('.')[-2]}"):
        library.add(folder, Description(name=parse_name("x"), version="1.0.0"))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(task="legal"), ["legal-qa"]),
        (Filters(ranks=RankRange(8, 8)), ["summarize"]),
        (Filters(ranks=RankRange(low=5)), ["summarize"]),
        (Filters(ranks=RankRange(high=4)), ["contracts", "legal-qa"]),
        (Filters(method="rslora"), ["contracts"]),
        (Filters(method="LoRA"), ["contracts", "legal-qa", "summarize"]),
        (Filters(text="leg"), ["contracts", "legal-qa"]),
        (Filters(text="news summ"), ["summarize"]),
        (Filters(text='x"; DROP TABLE builds; --'), []),
        (Filters(namespace="acme"), ["acme/contracts"]),
    ],
)
def test_search_filters(library, add, filters, expected):
    add("legal-qa", task="legal")
    add("summarize", task="summary", rank=8, description="short news items")
    add("contracts", description="legalese made plain", use_rslora=True, namespace="acme")

    found = [
        row.full_name.removeprefix("" if filters.namespace else "acme/") for row in library.catalog.search(filters)
    ]

    assert sorted(found) == expected


def test_search_by_licence_signature_and_tests(library, add, tmp_path):
    signed = add("signed").build
    add_contract(library, add("tested").build, small_contract())
    about = Description(name=parse_name("free"), version="1.0.0", license="Apache-2.0")
    library.add(make_adapter(tmp_path / "free", seed=5), about)

    def found(**wanted):
        return [row.name for row in library.catalog.search(Filters(**wanted))]

    assert found(signed=True) == []
    (signed.folder / "model.sig").write_bytes(b"{}")
    assert (found(signed=True), found(signed=True, text="tested")) == (["signed"], [])
    assert (found(license="apache-2.0"), found(tested=True)) == (["free"], ["tested"])
    assert library.catalog.index.licenses() == ["apache-2.0"]


def test_search_by_base_finds_adapters_of_the_same_base_in_another_precision(library, base, add, tmp_path):
    add("legal-qa")
    half = library.bases.add(make_base(tmp_path / "half", dtype="f2"), "half")
    library.catalog.put_base(half)
    other = library.bases.add(make_base(tmp_path / "other", seed=9), "other")
    library.catalog.put_base(other)

    by_base = {
        r.alias: names(library.catalog.search(Filters(bases=library.catalog.index.equivalents(r.fingerprint.weights))))
        for r in (base, half, other)
    }

    assert by_base == {"base-7b": [("legal-qa", "1.0.0", 4)], "half": [("legal-qa", "1.0.0", 4)], "other": []}


@pytest.mark.parametrize("damage", ["delete", "zero", "truncate", "garbage", "older", "newer"])
def test_a_damaged_index_is_made_again_from_the_folders(library, base, add, damage):
    import sqlite3

    add("legal-qa", task="legal")
    add("summarize")
    expected = library.catalog.search(Filters())
    path = library.catalog.index.path
    if damage == "delete":
        path.unlink()
    elif damage == "zero":
        path.write_bytes(b"")
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "garbage":
        path.write_bytes(b"not a database at all" * 500)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {3 if damage == 'older' else 99}")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)

    found = Library(library.root).catalog.search(Filters())

    assert [r._replace(added_at=0) for r in found] == [r._replace(added_at=0) for r in expected]


def test_a_crash_between_folder_and_index_is_mended_by_the_next_reader(library, add):
    add("legal-qa")
    add("summarize")
    library.catalog.index.remove_builds([folder_below(library.root, library.builds_named("summarize")[0])])
    (library.root / "index.stale").touch()

    assert [r.name for r in library.catalog.search(Filters())] == ["legal-qa", "summarize"]
    assert not (library.root / "index.stale").exists()


def test_remove_takes_the_folder_and_gc_the_bytes(library, add):
    kept, gone = add("legal-qa", seed=1).build, add("summarize", seed=2).build

    library.remove([gone])
    swept = library.gc(grace_s=0)

    assert [r.name for r in library.catalog.search(Filters())] == ["legal-qa"]
    assert not gone.folder.exists()
    assert {p.name for p, _ in swept.gone} >= {gone.manifest.file("adapter_model.safetensors").sha256[7:]}
    assert all(library.store.has_blob(e.sha256) for e in kept.manifest.files)


def test_gc_dry_run_deletes_nothing_and_grace_spares_the_young(library, add):
    build = add("legal-qa").build
    library.remove([build])

    dry = library.gc(grace_s=0, dry_run=True)
    young = library.gc()

    assert len(dry.gone) >= 3
    assert (young.gone, len(young.spared)) == ((), len(dry.gone))
    assert library.store.has_manifest(build.manifest.digest)


def test_an_add_looks_at_the_disk_as_often_in_a_library_of_ten_times_the_builds(tmp_path, library, base, add):
    first = add("model-0").build

    def looked(count):
        for number in range(count):
            folder = library.root / "adapters" / first.folder.parent.parent.name / f"model-{count}-{number}"
            (folder / first.folder.name).mkdir(parents=True)
            (folder / first.folder.name / MANIFEST_FILE).hardlink_to(first.folder / MANIFEST_FILE)
        library.catalog.rebuild()
        adapter = make_adapter(tmp_path / f"new-{count}", seed=count)
        with looks() as seen:
            added = library.add(adapter, Description(name=f"new-{count}", version="1.0.0"), base=base)
        assert added.created
        listed = [path for event, path in seen if event == "os.scandir"]
        assert str(first.folder.parent.parent) not in listed
        return len(seen), sum(path == str(library.bases.folder / "base-7b.json") for _, path in seen)

    add("other")  # what the first one imports

    assert looked(20) == looked(200)


def test_a_base_record_is_read_again_when_it_has_changed(library, base):
    assert library.bases.get("base-7b") is library.bases.get("base-7b")

    library.bases.set_hub_id("base-7b", "acme/other")

    assert library.bases.get("base-7b").hub == "acme/other"
    assert [record.hub for record in library.bases.list()] == ["acme/other"]


def test_gc_looks_at_the_disk_as_often_for_ten_times_the_objects_and_reads_a_manifest_once(library, add):
    builds = [add("legal-qa", seed=1).build, add("summarize", seed=2).build]

    def looked(count):
        for number in range(count):
            path = library.store.blob_path(f"sha256:aa{number:062x}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"unused")
        with looks() as seen:
            swept = library.gc(grace_s=0, dry_run=True)
            space_of(library)
            unused_builds(library)
        assert len(swept.gone) == count
        return [what for what in seen if "fdinfo" not in what[1]]

    few, many = looked(20), looked(200)

    assert len(few) == len(many)
    assert [sum(str(build.folder / MANIFEST_FILE) == path for _, path in many) for build in builds] == [3, 3]


def test_gc_takes_the_results_of_what_it_takes(library, add):
    kept, gone = add("legal-qa", seed=1).build, add("summarize", seed=2).build
    for build in (kept, gone):
        ResultFiles.of_library(library.store, build.manifest.digest).add(b"{}")
        KeptResults(library.store).keep(build.manifest.digest, {}, Tested(name="a", verdict="PASS"))

    library.remove([gone])
    assert len(list(KeptResults(library.store).all(gone.manifest.digest))) == 1  # it may come back
    library.gc(grace_s=0)

    left = [list(KeptResults(library.store).all(one.manifest.digest)) for one in (kept, gone)]
    assert [len(one) for one in left] == [1, 0]
    files = [ResultFiles.of_library(library.store, one.manifest.digest).read() for one in (kept, gone)]
    assert files == [[b"{}"], []]


def test_files_that_two_adapters_share_are_kept_while_one_needs_them(library, add):
    first, second = add("a", seed=1).build, add("b", seed=1).build

    library.remove([first])
    library.gc(grace_s=0)

    assert all(library.store.has_blob(e.sha256) for e in second.manifest.files)


def test_finding_suggests_the_nearest_name(library, add):
    add("legal-qa")

    with pytest.raises(AdapterNotFound) as caught:
        find_installed(library, AdapterSpec.parse("legal-aq"))

    assert "legal-qa" in caught.value.hint
