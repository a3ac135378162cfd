"""`adapt compare` as a user meets it: tables, the document, the picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapterhub.core.errors import UsageProblem
from adapterhub.formats.derived.comparison import Comparison
from adapterhub.weights.compare.heatmap import check_picture, draw, panels_of, write_picture
from adapterhub.weights.compare.similarity import compare_adapters
from adapterhub.weights.lowrank.factors import AdapterFactors, WeightedAdapter
from tests.support.adapter_folders import updates_in, write_folder
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

SHAPES = {
    f"model.layers.{i}.{name}": (10, 8) for i in range(3) for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up")
}


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    folder = tmp_path_factory.mktemp("compare")
    make_base(folder / "base")
    shell = Adapt(folder)
    shell.ok("base", "add", "./base", "--as", "base-7b")
    for seed, name in enumerate(("legal-qa", "summarize"), 1):
        make_adapter(folder / "out" / name, seed=seed, rank=4 * seed)
        shell.ok("add", f"out/{name}", "--name", name, "--base", "base-7b")
    write_folder(folder / "a", SHAPES, seed=1)
    write_folder(folder / "b", SHAPES | {"lm_head": (12, 8)}, seed=2, ranks=3)
    write_folder(folder / "c", SHAPES, seed=3)
    write_folder(folder / "dora", SHAPES, use_dora=True)
    return shell


def compared(*folders: Path) -> Comparison:
    opened = [AdapterFactors(folder) for folder in folders]
    try:
        return compare_adapters([WeightedAdapter(label=f.folder.name, factors=f) for f in opened])
    finally:
        for one in opened:
            one.close()


def rows(table: str) -> list[dict[str, str]]:
    header, *lines = (line.split("\t") for line in table.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_the_figures_of_the_document_are_those_of_the_updates(adapt):
    found = adapt.json("compare", "legal-qa", "summarize@base-7b", "--weights", "0.7,0.3")

    assert [(a["label"], a["weight"], a["rank"], a["modules"]) for a in found["adapters"]] == [
        ("legal-qa==1.0.0", 0.7, 4, 4), ("summarize==1.0.0", 0.3, 8, 4)
    ]  # fmt: skip
    assert all(a["digest"].startswith("sha256:") for a in found["adapters"])
    updates = [updates_in(adapt.folder / "out" / name) for name in ("legal-qa", "summarize")]
    whole = [torch.cat([u.flatten() for u in each.values()]) for each in updates]
    cosine = float(whole[0] @ whole[1] / whole[0].norm() / whole[1].norm())
    [pair] = found["pairs"]
    assert pair["cosine"] == pytest.approx(cosine, abs=1e-12)
    assert pair["opposite"]["standard_error"] == 0
    module = found["modules"][0]
    assert module["updates"][0]["norm"] == pytest.approx(float(updates[0][module["module"]].norm()))
    assert found["forecast"]["norm"] == pytest.approx(float((0.7 * whole[0] + 0.3 * whole[1]).norm()))
    assert found["forecast"]["choices"][0] | {"size_bytes": 0} == {
        "options": "--method cat", "rank_min": 8, "rank_mean": 8.0, "rank_max": 8, "relative_error": 0.0, "size_bytes": 0
    }  # fmt: skip


def test_the_forecast_comes_true(adapt):
    wanted = adapt.json("compare", "./a", "./b", "--dtype", "bfloat16")["forecast"]["choices"]
    at_rank = next(c for c in wanted if c["options"] == "--method svd --rank 4")

    made = adapt.json("merge", "./a", "./b", *at_rank["options"].split(), "--dtype", "bfloat16", "-o", "./merged")

    assert made["relative_error"] == pytest.approx(at_rank["relative_error"], rel=0.01)
    size = (adapt.folder / "merged" / "adapter_model.safetensors").stat().st_size
    assert abs(size - at_rank["size_bytes"]) < 200


def test_layers_are_folded_into_one_kind_each(adapt):
    adapters, pairs, kinds, forecast = adapt.ok("compare", "./a", "./b").rstrip().split("\n\n")

    assert [row["adapter"] for row in rows(adapters)] == ["./a", "./b"]
    assert [line.split("\t")[0] for line in pairs.splitlines()] == ["pair", "1, 2"]
    table, last = kinds.rsplit("\n", 1)
    assert last == "only in 2: 1 module (lm_head)"
    assert [(r["module"], r["modules"], r["value"]) for r in rows(table)] == [
        (name, "3", fold) for name in ("up", "q_proj", "v_proj") for fold in ("mean", "min", "max")
    ]
    updates = [updates_in(adapt.folder / n) for n in "ab"]
    cosines = [
        float((updates[0][m] * updates[1][m]).sum() / updates[0][m].norm() / updates[1][m].norm())
        for m in SHAPES
        if "q_proj" in m
    ]
    said = [float(r["cosine"]) for r in rows(table) if r["module"] == "q_proj"]
    assert said == pytest.approx([sum(cosines) / 3, min(cosines), max(cosines)], abs=6e-5)
    assert forecast.startswith("merged as 0.5 x 1 + 0.5 x 2: norm ")
    assert forecast.splitlines()[1] == "adapt merge, float32\trank\terror\tsize"


def test_each_module_is_shown_on_request(adapt):
    [_, _, table, _] = adapt.ok("compare", "./a", "./b", "--modules").rstrip().split("\n\n")

    lines = table.splitlines()
    assert [line.split("\t")[0] for line in lines[1:-1]] == sorted(SHAPES)
    assert lines[-1] == "only in 2: 1 module (lm_head)"


def test_three_adapters_are_compared_pair_by_pair(adapt):
    [_, pairs, kinds, _] = adapt.ok("compare", "./a", "./b", "./c").rstrip().split("\n\n")

    assert [line.split("\t")[0] for line in pairs.splitlines()[1:]] == ["1, 2", "1, 3", "2, 3"]
    assert "norm 1" not in kinds
    assert len(adapt.json("compare", "./a", "./b", "./c")["pairs"]) == 3


def test_adapters_of_two_bases_are_compared_with_a_word(adapt):
    make_base(adapt.folder / "other", seed=5)
    adapt.ok("base", "add", "./other", "--as", "other")
    adapt.ok("add", "out/legal-qa", "--name", "elsewhere", "--base", "other")

    done = adapt("compare", "legal-qa", "elsewhere", "--json")

    assert "cannot be merged: `legal-qa==1.0.0` and `elsewhere==1.0.0` were made for different bases" in done.stderr
    found = json.loads(done.stdout)
    assert found["pairs"][0]["cosine"] == pytest.approx(1.0)
    assert found["forecast"] is None
    assert len(found["obstacles"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["./a", "--diff"], 2, "give two adapters"),
        (["./a", "--weights", "1"], 2, "two adapters or more"),
        (["./a", "--modules"], 2, "two adapters or more"),
        (["./a", "./b", "--above", "0.9"], 2, "this is for one adapter"),
        (["./a", "./b", "--weights", "1"], 2, "1 weight for 2 adapters"),
        (["./a", "./b", "--weights", "nan,1"], 2, "expected a finite number"),
        (
            ["./a", "./b", "--plot", "x.jpg"],
            2,
            "error: `x.jpg` is not a picture file; expected a name that ends in .png, .svg, .pdf\n",
        ),
        (["./a", "./b", "--plot", "nowhere/x.png"], 2, "no folder"),
        (["./a", "./missing"], 10, "missing"),
        (["./a", "./dora"], 11, "DoRA"),
        (["./a", "nothing"], 10, "no adapter `nothing`"),
    ],
)
def test_refusals_say_what_was_wrong(adapt, arguments, code, said):
    assert said in adapt.fails(code, "compare", *arguments)
    assert not (adapt.folder / "x.jpg").exists()


def test_a_picture_is_drawn_without_a_display_and_only_then_matplotlib_is_loaded(adapt):
    picture = adapt.folder / "similarity.png"
    picture.write_bytes(b"an older one")
    code = (
        "import sys\n"
        "from adapterhub.cli import _run\n"
        "sys.argv = ['adapt', 'compare', './a', './b', '--json']\n"
        "assert (_run(), 'matplotlib' in sys.modules) == (0, False)\n"
        f"sys.argv += ['--plot', '{picture.name}']\n"
        "assert _run() == 0\n"
    )
    environ = os.environ | {"ADAPTERHUB_HOME": str(adapt.folder / "home"), "DISPLAY": "", "MPLBACKEND": "TkAgg"}

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=adapt.folder, env=environ, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert f'"plot": "{picture.name}"' in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in adapt.folder.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_a_picture_has_the_format_of_its_name(adapt, tmp_path, suffix, start):
    picture = tmp_path / f"similarity{suffix}"

    write_picture(compared(adapt.folder / "a", adapt.folder / "b"), picture)

    assert picture.read_bytes().startswith(start)


def test_the_picture_has_a_cell_for_every_layer_and_kind(adapt):
    comparison = compared(adapt.folder / "a", adapt.folder / "b")

    figure = draw(panels_of(comparison), "title")

    images = [axes.images[0] for axes in figure.axes if axes.images]
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == ["cosine", "overlap out", "overlap in", "norm of 1", "norm of 2"]
    assert {image.get_array().shape for image in images} == {(4, 4)}  # three layers and none; three kinds and lm_head
    axes = images[0].axes
    kinds = [label.get_text() for label in axes.get_xticklabels()]
    layers = [label.get_text() for label in axes.get_yticklabels()]
    assert (kinds, layers) == (["lm_head", "up", "q_proj", "v_proj"], ["0", "1", "2", "-"])
    shown = images[0].get_array()
    for module in comparison.modules:
        if module.pairs:
            layer, kind = module.module.split(".")[2], module.module.rpartition(".")[2]
            assert shown[layers.index(layer)][kinds.index(kind)] == pytest.approx(module.pairs[0].cosine)
    assert shown.mask.sum() == 4 * 4 - 9  # lm_head is in one adapter only, and no layer has one
    assert images[3].get_array().mask.sum() == 4 * 4 - 9
    assert images[4].get_array().mask.sum() == 4 * 4 - 10
    assert images[3].get_clim() == images[4].get_clim()


def test_the_picture_of_one_of_three_and_of_many(adapt):
    a, b, c = (adapt.folder / name for name in "abc")

    assert [p.title for p in panels_of(compared(a))] == ["norm of 1"]
    assert [p.title for p in panels_of(compared(a, b, c))] == [
        "cosine of 1 and 2", "cosine of 1 and 3", "cosine of 2 and 3"
    ]  # fmt: skip
    many = panels_of(compared(a, b, c, a, b, c))
    assert [p.title for p in many] == ["mean cosine of all pairs", "least cosine", "greatest cosine"]
    assert many[2].values[0][many[2].columns.index("q_proj")] == pytest.approx(1.0)


def test_names_are_no_markup_and_a_hostile_shape_no_huge_picture(tmp_path):
    many = {f"layers.{i}.$x^{{{i}}}$": (2, 2) for i in range(100)}
    few = dict(list(many.items())[:3])
    for name, shapes in (("a$_$", few), ("many", many)):
        write_folder(tmp_path / name, shapes, ranks=1, target_modules=list(shapes))

    write_picture(compared(tmp_path / "a$_$", tmp_path / "a$_$"), tmp_path / "out.png")

    figure = draw(panels_of(compared(tmp_path / "many", tmp_path / "many")), "title")
    width, height = figure.get_size_inches() * figure.dpi
    assert (height < 3000, width < 11000) == (True, True)


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed

    with pytest.raises(UsageProblem) as caught:
        check_picture(tmp_path / "x.png")

    assert caught.value.hint == "`pip install 'adapterhub[plot]'` installs it"
