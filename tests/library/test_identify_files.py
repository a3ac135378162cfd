"""A folder of LoRA files of other programs: what each is, which are copies, and by which hashes sites know them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.formats.foreign.tables import SDXL
from adapterhub.library.identify import identify
from tests.support.command_line import Adapt
from tests.support.foreign_files import flux, kohya, mlx

TAGS = json.dumps({"10_secret folder": {"wtrclr style": 20, "a boat": 12, "rare": 1}})


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """Five files: one of SDXL, a copy of it under another header, one of Flux, one of MLX, and one that is none."""
    folder = tmp_path / "loras"
    folder.mkdir()
    said = {"modelspec.title": "Water\u202ecolour", "ss_tag_frequency": TAGS}
    kohya(folder / "water.safetensors", unet=SDXL, names="ldm", every=60, text="lora_te1", metadata=said)
    save_file(load_file(folder / "water.safetensors"), folder / "copy.safetensors")
    flux(folder / "flux.safetensors", alphas=False)
    mlx(folder / "mlx")
    (folder / "broken.safetensors").write_bytes(b"\x80\x04\x95 a pickle by another name")
    return Adapt(tmp_path)


def test_a_folder_is_listed_with_base_rank_triggers_and_duplicates(adapt):
    rows = {Path(row["path"]).name: row for row in adapt.json("identify", "loras")["files"]}

    water, copy = rows["water.safetensors"], rows["copy.safetensors"]
    assert (copy["family"], copy["program"], copy["method"], copy["rank"]) == ("SDXL", "kohya", "LoRA", 3)
    assert copy["parts"] == ["text_encoder", "unet"]
    assert Path(water["duplicate_of"]).name == "copy.safetensors"
    assert water["triggers"] == ["wtrclr style", "a boat"]
    assert water["title"] == "Water colour"
    assert rows["flux.safetensors"]["family"] == "FLUX.1"
    assert rows["adapters.safetensors"]["program"] == "mlx"
    assert "not safetensors" in rows["broken.safetensors"]["problem"]


def test_the_table_has_a_row_for_each_file_and_a_total(adapt):
    done = adapt("identify", "loras")

    assert "same numbers as copy.safetensors" in done.stdout
    assert done.stderr.splitlines()[-1] == "5 files, 1 duplicate, 1 that `adapt add` does not take"


def test_a_file_in_a_folder_of_the_folder_is_named_by_both(adapt):
    deep = adapt.folder / "nested" / "deep"
    deep.mkdir(parents=True)
    for name in ("water.safetensors", "flux.safetensors"):
        shutil.copy(adapt.folder / "loras" / name, deep)

    assert "\ndeep/water.safetensors\t" in adapt.ok("identify", "nested")


def test_one_file_is_known_by_the_hashes_of_civitai_and_kohya(adapt):
    path = adapt.folder / "loras" / "water.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")

    hashes = adapt.json("identify", path)["hashes"]

    assert hashes == {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "data_sha256": hashlib.sha256(raw[start:]).hexdigest(),
        "legacy": hashlib.sha256(raw[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8],
    }


def test_what_was_added_is_found_by_its_file_a_copy_and_a_hash(adapt):
    folder = adapt.folder / "loras"
    adapt.ok("add", folder / "water.safetensors")
    digest = hashlib.sha256((folder / "water.safetensors").read_bytes()).hexdigest()

    for given in (folder / "water.safetensors", folder / "copy.safetensors", Path(digest), Path(digest[:10])):
        match = identify(adapt.library, given).matches[0]
        assert (match.what, match.name) == ("adapter", "water==1.0.0"), given
    rows = {Path(row["path"]).name: row for row in adapt.json("identify", "loras")["files"]}
    assert {name for name, row in rows.items() if row["adapter"]} == {"water.safetensors", "copy.safetensors"}


def test_a_folder_of_files_is_added_and_what_is_no_adapter_is_refused(adapt):
    files = sorted((adapt.folder / "loras").glob("*.safetensors"))

    done = adapt("add", *files)

    assert done.exit_code == 3
    assert done.stdout.splitlines()[-1] == "4 given: 3 added, 1 refused"
    (build,) = adapt.library.builds_named("water")
    notes = build.manifest.annotations
    assert notes["origin"]["scheme"] == "kohya"
    assert notes["triggers"][0] == {"text": "wtrclr style", "from": "ss_tag_frequency", "kind": "guessed"}
    assert "secret folder" not in json.dumps(build.manifest.to_json())
