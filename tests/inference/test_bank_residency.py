"""What a bank holds in memory, what it refuses, and that the base and the files are what they were."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.core.disk import held_file
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    BaseMismatch,
    Conflict,
    DigestMismatch,
    UnsupportedAdapter,
    UsageProblem,
)
from adapterhub.core.specs import parse_name
from adapterhub.inference.bank import AdapterBank, engines
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.support.bank_adapters import hooks_of, lora, make_folders, with_peft
from tests.support.tiny_models import llama, logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

LAYER = "base_model.model.model.layers.0.self_attn."
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return make_folders(tmp_path, "a", "b", "c")


@pytest.fixture
def bank(library: Library) -> Iterator[AdapterBank]:
    with AdapterBank(llama(), library=library) as made:
        yield made


def bytes_of(folder: Path) -> int:
    """Of the factors: PEFT saves a copy of the base's embedding beside those of an embedding."""
    return sum(tensor.nbytes for name, tensor in load_file(folder / WEIGHTS).items() if "lora_" in name)


def says(bank: AdapterBank, name: str, folder: Path) -> None:
    with bank.use(name):
        torch.testing.assert_close(logits(bank.model), with_peft(folder), rtol=1e-5, atol=2e-5)


def counts(bank: AdapterBank) -> tuple[int, int, int, int, int]:
    stats = bank.stats
    return stats.hits, stats.misses, stats.loads, stats.evictions, stats.resident


def into_store(library: Library, folders: dict[str, Path], model_folder: Path) -> None:
    llama().save_pretrained(model_folder)
    base = library.bases.add(model_folder, "small")
    for name, folder in folders.items():
        library.add(folder, Description(name=parse_name(name), version="1.0.0"), base=base)


# ---------------------------------------------------------------- within bounds
def test_the_least_recently_used_goes_and_comes_back(folders: dict[str, Path], library: Library) -> None:
    with AdapterBank(llama(), library=library, max_resident=2) as bank:
        for name in "ab":
            bank.load(folders[name])
        bank.use("a")
        bank.load(folders["c"])  # b goes
        assert counts(bank) == (1, 0, 3, 1, 2)
        bank.use("a")
        bank.use("c")
        assert counts(bank) == (3, 0, 3, 1, 2)
        bank.use("b")  # a goes
        assert counts(bank) == (3, 1, 4, 2, 2)
        bank.use("c")
        assert counts(bank) == (4, 1, 4, 2, 2)
        says(bank, "a", folders["a"])
        assert (counts(bank), bank.names) == ((4, 2, 5, 3, 2), ("a", "b", "c"))


def test_bytes_are_those_of_the_factors_and_bound_what_is_held(folders: dict[str, Path], library: Library) -> None:
    sizes = {name: bytes_of(folder) for name, folder in folders.items()}
    with AdapterBank(llama(), library=library, max_resident_bytes=sizes["a"] + sizes["b"]) as bank:
        bank.load(folders["a"])
        assert bank.stats.resident_bytes == sizes["a"]
        bank.load(folders["b"])
        assert bank.stats.resident_bytes == sizes["a"] + sizes["b"]
        bank.load(folders["c"])
        assert (bank.stats.evictions, bank.stats.resident_bytes) == (1, sizes["b"] + sizes["c"])
        bank.unload("b")
        assert (bank.stats.resident, bank.stats.resident_bytes) == (1, sizes["c"])

    with AdapterBank(llama(), library=library, max_resident_bytes=sizes["b"] - 1) as bank:
        with pytest.raises(UsageProblem, match="no room for `b`"):
            bank.load(folders["b"])
        assert (bank.names, counts(bank)) == ((), (0, 0, 0, 0, 0))


def test_a_pinned_adapter_stays_until_it_is_pinned_no_more(folders: dict[str, Path], library: Library) -> None:
    with AdapterBank(llama(), library=library, max_resident=1) as bank:
        bank.load(folders["a"], pin=True)
        with pytest.raises(UsageProblem, match="no room for `b`"):
            bank.load(folders["b"])
        says(bank, "a", folders["a"])
        assert (bank.names, bank.stats.evictions) == (("a",), 0)

        bank.load(folders["a"], pin=False)
        bank.load(folders["b"])

        assert (bank.names, bank.stats.evictions) == (("a", "b"), 1)


def test_rows_of_more_adapters_than_there_is_room_for_are_refused(folders: dict[str, Path], library: Library) -> None:
    with AdapterBank(llama(), library=library, max_resident=2) as bank:
        for folder in folders.values():
            bank.load(folder)
        with pytest.raises(UsageProblem, match="no room"):
            bank.rows(["a", "b", "c"])
        with bank.rows(["a", "c"]):
            mixed = logits(bank.model)

    torch.testing.assert_close(mixed[1], with_peft(folders["c"])[1], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "bounds", [{"max_resident": 0}, {"max_resident_bytes": -1}, {"max_resident": True}, {"dtype": "int8"}]
)
def test_bounds_that_make_no_sense_are_refused(bounds: dict[str, Any], library: Library) -> None:
    model = llama()
    before = hooks_of(model)
    with pytest.raises(UsageProblem):
        AdapterBank(model, library=library, **bounds)
    assert before == hooks_of(model)


@pytest.mark.parametrize("source", ["store", "folder"])
def test_an_adapter_keeps_no_more_memory_than_its_factors(
    source: str, folders: dict[str, Path], library: Library, tmp_path: Path
) -> None:
    into_store(library, folders, tmp_path / "model")
    with AdapterBank(llama(), library=library) as bank:
        for name, folder in folders.items():
            bank.load(name if source == "store" else folder)
            updates = bank._get(name).adapter.updates.values()
            storages = [tensor.untyped_storage() for update in updates for tensor in (update.a, update.b)]
            held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
            # a mapping is of the whole file, but only pages that are used come into memory
            assert held <= ((folder / WEIGHTS).stat().st_size if source == "store" else 1.1 * bytes_of(folder))


def test_a_later_choice_by_row_leaves_the_numbers_of_a_backward_pass_alone(
    folders: dict[str, Path], bank: AdapterBank
) -> None:
    names = [bank.load(folder) for folder in folders.values()]

    def gradient(rows: list[str], later: list[str | None]) -> Tensor:
        inputs = torch.ones(3, 4, bank.model.config.hidden_size, requires_grad=True)
        with bank.rows(rows):
            found = bank.model(inputs_embeds=inputs).logits.sum()
        with bank.rows(later), torch.no_grad():  # in the memory of the first, if that is free
            bank.model(inputs_embeds=inputs)
        return torch.autograd.grad(found, inputs)[0]

    assert torch.equal(gradient(names, [None] * 3), gradient(names, names[::-1]))


def test_memory_of_an_unloaded_adapter_is_free(folders: dict[str, Path], bank: AdapterBank) -> None:
    from adapterhub.inference.bank.updates import LoadedAdapter

    with bank.use(bank.load(folders["a"])):
        pass
    bank.unload("a")
    gc.collect()

    assert [o for o in gc.get_objects() if isinstance(o, LoadedAdapter)] == []


def test_a_choice_keeps_its_numbers_where_the_next_load_takes_used_memory(
    folders: dict[str, Path], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    smallest = min((folder / WEIGHTS).stat().st_size for folder in folders.values())
    monkeypatch.setattr(
        held_file, "_SMALL", smallest
    )  # these files have memory of that kind, and factors are views of it
    monkeypatch.setattr(engines, "_MUCH_UNUSED", 1)
    with AdapterBank(llama(), library=library, max_resident=1) as bank:
        bank.load(folders["b"])
        with bank.use("b"):
            bank.load(folders["a"])  # b goes, but is chosen
            bank.load(folders["c"])
            torch.testing.assert_close(logits(bank.model), with_peft(folders["b"]), rtol=1e-5, atol=2e-5)
        for name in "cbacb":
            bank.load(folders[name])
            says(bank, name, folders[name])


# ---------------------------------------------------------------- from the store
def test_a_miss_is_loaded_from_the_store_and_unknown_names_are_looked_up(
    folders: dict[str, Path], library: Library, tmp_path: Path
) -> None:
    into_store(library, folders, tmp_path / "model")
    with AdapterBank(llama(), library=library, max_resident=1) as bank:
        for name in ("a", "b", "a", "c"):
            says(bank, name, folders[name])
        assert (counts(bank), bank.names) == ((0, 4, 4, 3, 1), ("a", "b", "c"))
        assert "same" in bank.explain("b")  # its base, which the store knows
        assert bank.load("a@small", name="first") == "first"


def test_a_build_whose_files_are_gone_works_on_until_it_is_evicted(
    folders: dict[str, Path], library: Library, tmp_path: Path
) -> None:
    into_store(library, folders, tmp_path / "model")
    with AdapterBank(llama(), library=library, max_resident=1) as bank:
        bank.load("a")
        library.remove(library.builds_named("a"))
        library.gc(grace_s=0)
        says(bank, "a", folders["a"])
        bank.load("b")

        with pytest.raises(AdapterNotFound):
            bank.use("a")
        with pytest.raises(AdapterNotFound):
            bank.export("a", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        says(bank, "b", folders["b"])


def test_a_damaged_build_is_not_loaded(folders: dict[str, Path], library: Library, tmp_path: Path) -> None:
    into_store(library, folders, tmp_path / "model")
    [build] = library.builds_named("a")
    weights = build.folder / WEIGHTS
    weights.chmod(0o644)
    with weights.open("r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"\x01")

    with AdapterBank(llama(), library=library) as bank, pytest.raises(DigestMismatch):
        bank.load("a")


def test_files_that_changed_after_the_load_are_not_taken_for_it(folders: dict[str, Path], library: Library) -> None:
    with AdapterBank(llama(), library=library, max_resident=1) as bank:
        bank.load(folders["a"])
        old = with_peft(folders["a"])
        save_file({n: 2 * t for n, t in load_file(folders["a"] / WEIGHTS).items()}, folders["a"] / WEIGHTS)
        with bank.use("a"):
            torch.testing.assert_close(logits(bank.model), old, rtol=1e-5, atol=2e-5)
        bank.load(folders["b"])
        for refused in (lambda: bank.use("a"), lambda: bank.export("a", folders["a"].with_name("out"))):
            with pytest.raises(Conflict, match="changed after it was loaded"):
                refused()
        bank.unload("a")
        bank.load(folders["a"])
        with bank.use("a"):
            assert not torch.allclose(logits(bank.model), old, atol=1e-3)


def test_factors_are_kept_in_the_dtype_that_was_asked_for(folders: dict[str, Path], library: Library) -> None:
    with AdapterBank(llama(), library=library, dtype="bfloat16") as bank:
        bank.load(folders["a"])
        with bank.use("a"):
            narrow = logits(bank.model)
        assert bank.stats.resident_bytes * 2 == bytes_of(folders["a"])

    expected = with_peft(folders["a"])
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    assert not torch.equal(narrow, expected)


@pytest.mark.parametrize("name", ["a", "b"])
def test_export_is_the_stored_bytes(name: str, folders: dict[str, Path], library: Library, tmp_path: Path) -> None:
    into_store(library, {"a": folders["a"]}, tmp_path / "model")
    with AdapterBank(llama(), library=library) as bank:
        bank.load("a")
        bank.load(folders["b"])
        out = bank.export(name, tmp_path / "out")
        with pytest.raises(Conflict):
            bank.export(name, tmp_path / "out")

    for file in ("adapter_config.json", WEIGHTS):
        assert (folders[name] / file).read_bytes() == (out / file).read_bytes()


# ---------------------------------------------------------------- refused, and nothing is another
def edited(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def set_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def narrow(folder: Path) -> None:
    shutil.rmtree(folder)
    save_adapter(folder, lambda: llama(hidden_size=16), lora())


def elsewhere(folder: Path) -> None:
    edited(folder, lambda t: [t.update({n.replace("_proj", "_gone"): t.pop(n)}) for n in list(t)])
    set_config(folder, target_modules=["q_gone", "v_gone"])


BAD: dict[str, tuple[Callable[[Path], object], type[AdapterHubError]]] = {
    "another width": (narrow, BaseMismatch),
    "cut off": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), AdapterHubError),
    "touches nothing": (elsewhere, BaseMismatch),
    "holds nothing": (lambda f: edited(f, lambda t: t.clear()), AdapterHubError),
    "no files": (lambda f: (f / WEIGHTS).unlink(), AdapterHubError),
    "no folder": (shutil.rmtree, AdapterNotFound),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*BAD, "ia3", "another base", "same name"])
def test_a_refused_load_leaves_bank_and_model_as_they_were(
    kind: str, folders: dict[str, Path], library: Library, tmp_path: Path
) -> None:
    make, error = BAD.get(kind, (lambda _: None, BaseMismatch))
    what: str | Path = save_adapter(tmp_path / "more" / "bad", llama, lora())
    name = None
    if kind == "same name":
        name, error = "a", Conflict
    elif kind == "ia3":  # refused when it is tried on PEFT's layers
        what = make_folders(tmp_path / "more", "ia3")["ia3"]
        edited(
            what, lambda t: [t.update({n.replace("self_attn.q_proj", "input_layernorm"): t.pop(n)}) for n in list(t)]
        )
        set_config(what, target_modules=["input_layernorm", "down_proj"])
        error = UnsupportedAdapter
    elif kind == "another base":
        tuned = llama(seed=5)
        tuned.save_pretrained(tmp_path / "tuned")
        base = library.bases.add(tmp_path / "tuned", "tuned")
        library.add(what, Description(name=parse_name("bad"), version="1.0.0"), base=base)
        what = "bad"
    else:
        make(what)

    with AdapterBank(llama(), library=library) as bank, bank.use(bank.load(folders["a"])):
        before = (bank.assert_frozen(), hooks_of(bank.model), bank.names, bank.stats)
        answer = logits(bank.model)
        with pytest.raises(error):
            bank.load(what, name=name)

        assert before == (bank.assert_frozen(), hooks_of(bank.model), bank.names, bank.stats)
        assert torch.equal(answer, logits(bank.model))


def test_factors_that_are_first_used_in_inference_mode_serve_gradients_later(
    folders: dict[str, Path], bank: AdapterBank
) -> None:
    with bank.use(bank.load(folders["a"])):
        with torch.inference_mode():
            first = logits(bank.model).clone()
        embedded = bank.model.get_input_embeddings().weight[:4].detach().clone().requires_grad_()

        bank.model(inputs_embeds=embedded[None]).logits.sum().backward()

        assert embedded.grad is not None
        assert torch.equal(first, logits(bank.model))


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(folders: dict[str, Path], bank: AdapterBank) -> None:
    from adapterhub.inference.bank.engines import FileMemory
    from adapterhub.trust.verify import open_files

    files = open_files(folders["a"])
    path = folders["a"] / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(OSError, match="shorter"):
        FileMemory(files.held, (), "a")


# ---------------------------------------------------------------- the base, and the end
@pytest.mark.parametrize("is_first", [True, False])
def test_a_base_that_somebody_wrote_to_is_told(is_first: bool, folders: dict[str, Path], bank: AdapterBank) -> None:  # noqa: FBT001 - a case
    if not is_first:
        bank.assert_frozen()
    with bank.use(bank.load(folders["a"])), torch.no_grad():
        logits(bank.model)
        weight = bank.model.model.layers[1].mlp.down_proj.weight
        if is_first:
            weight.mul_(1.01)  # what was sampled when the bank was made
        else:
            weight[3, 5] += 1e-3  # one number: the digest sees all of them

    with pytest.raises(DigestMismatch, match="base model in memory"):
        bank.assert_frozen()


@pytest.mark.parametrize("way", ["close", "forget"])
def test_the_end_of_a_bank_gives_the_bare_model_back(way: str, folders: dict[str, Path], library: Library) -> None:
    model = llama()
    before = hooks_of(model)
    bank: AdapterBank | None = AdapterBank(model, library=library)
    bank.load(folders["a"])
    bank.load(folders["b"])
    assert before != hooks_of(model)

    if way == "close":
        bank.use("a")
        bank.close()
        bank.close()
        assert (bank.names, bank.stats.resident, bank.stats.resident_bytes) == ((), 0, 0)
        with pytest.raises(UsageProblem, match="was closed"):
            bank.load(folders["a"])
        with pytest.raises(UsageProblem, match="was closed"):
            bank.use("a")
    del bank
    gc.collect()

    assert before == hooks_of(model)
    assert torch.equal(with_peft(None), logits(model))


def test_two_banks_on_one_model_do_not_meet(folders: dict[str, Path], library: Library) -> None:
    model = llama()
    with AdapterBank(model, library=library) as one, AdapterBank(model, library=library) as other:
        one.load(folders["a"])
        other.load(folders["b"])
        says(one, "a", folders["a"])
        says(other, "b", folders["b"])
