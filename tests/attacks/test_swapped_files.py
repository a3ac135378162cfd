"""Files that are swapped, by rename and in place, between their check and their use."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.core.errors import AdapterHubError, Conflict, DigestMismatch
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.export import export
from adapterhub.inference.loader import attach
from adapterhub.inference.serving import AdapterProvider
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights.compare.difference import ComparedSide, differ
from adapterhub.weights.recipes.combination import Ingredient, merge_into_folder, merge_into_library
from adapterhub.weights.recipes.toml import MergeStep
from tests.attacks.installed import base, flipped, folder_of, make_world
from tests.support.command_line import Adapt
from tests.support.fuse_models import fuse
from tests.support.tiny_models import logits


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    return make_world(tmp_path_factory.mktemp("swapped"))


def in_place(path: Path, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.write(data)


def by_rename(path: Path, data: bytes) -> None:
    other = path.with_name("." + path.name)
    other.write_bytes(data)
    other.replace(path)


SWAPS = {"in place": in_place, "by rename": by_rename}


@dataclass(frozen=True)
class Swapped:
    """An adapter in a folder that strangers write to: the bytes that pass every check, and others, of equal length."""

    folder: Path
    good: Mapping[str, bytes]
    bad: Mapping[str, bytes]

    def put(self, which: Mapping[str, bytes], swap: Callable[[Path, bytes], None] = in_place) -> None:
        for name, data in which.items():
            swap(self.folder / name, data)


@pytest.fixture
def swapped(adapt: Adapt, tmp_path: Path) -> Swapped:
    """The other bytes are NaN in all weights, and an alpha of 96 instead of 16."""
    folder = tmp_path / "a"
    shutil.copytree(adapt.folder / "a", folder)
    good = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    start = 8 + int.from_bytes(good[WEIGHTS_FILE][:8], "little")
    rest = len(good[WEIGHTS_FILE]) - start
    bad = {
        CONFIG_FILE: good[CONFIG_FILE].replace(b'"lora_alpha": 16', b'"lora_alpha": 96'),
        WEIGHTS_FILE: good[WEIGHTS_FILE][:start] + b"\xff" * rest,
    }
    assert bad[CONFIG_FILE] != good[CONFIG_FILE]
    return Swapped(folder, good, bad)


@pytest.fixture
def expected(swapped: Swapped, adapt: Adapt) -> torch.Tensor:
    with attach(base(), swapped.folder, library=adapt.library) as attached:
        return logits(attached.model)


def after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, act: Callable[[], None]) -> None:
    """Call `act` after each call of a function of the package, which is a place between check and use."""
    function = getattr(module, name)

    def then(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        act()
        return result

    monkeypatch.setattr(module, name, then)


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_attach_uses_the_bytes_it_checked_whatever_is_put_there_afterwards(
    monkeypatch: pytest.MonkeyPatch, adapt: Adapt, swapped: Swapped, expected: torch.Tensor, name: str, swap: str
) -> None:
    from adapterhub.distribution import finding

    after(monkeypatch, finding, "check_folder", lambda: SWAPS[swap](swapped.folder / name, swapped.bad[name]))
    try:
        attached = attach(base(), swapped.folder, library=adapt.library)
    except DigestMismatch:
        assert (name, swap) == (WEIGHTS_FILE, "in place")  # the one file whose bytes are too many to keep
    else:
        assert torch.equal(logits(attached.model), expected)


@pytest.mark.parametrize("swap", SWAPS)
def test_the_bank_uses_the_bytes_it_checked_whatever_is_put_there_afterwards(
    monkeypatch: pytest.MonkeyPatch, adapt: Adapt, swapped: Swapped, expected: torch.Tensor, swap: str
) -> None:
    from adapterhub.inference.bank import residency

    after(monkeypatch, residency, "check_folder", lambda: swapped.put(swapped.bad, SWAPS[swap]))
    with AdapterBank(base(), library=adapt.library) as bank, bank.use(bank.load(swapped.folder)):
        during = logits(bank.model)
        swapped.put({name: b"\xff" * len(data) for name, data in swapped.bad.items()})
        later = logits(bank.model)

    assert torch.allclose(during, expected, atol=1e-5)  # hooks add up in another order than PEFT's layers
    assert torch.equal(during, later)


def test_a_merge_and_the_digests_in_its_recipe_are_of_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, adapt: Adapt, swapped: Swapped, tmp_path: Path
) -> None:
    from adapterhub.weights.recipes import combination as recipe

    shutil.copytree(adapt.folder / "home", tmp_path / "home")
    after(monkeypatch, recipe, "folder_digests", lambda: swapped.put(swapped.bad, by_rename))
    inputs = (Ingredient(folder=swapped.folder, label="./a", weight=1.0),)
    about = Description(name=parse_name("sum"), version="1.0.0")

    with pytest.raises(DigestMismatch):
        merge_into_library(Library(tmp_path / "home"), MergeStep(inputs=inputs), about)


@pytest.mark.parametrize("name", ["fuse", "export", "merge", "diff"])
def test_what_is_written_has_the_numbers_that_were_checked(
    monkeypatch: pytest.MonkeyPatch, adapt: Adapt, swapped: Swapped, tmp_path: Path, name: str
) -> None:
    from adapterhub.distribution import finding
    from adapterhub.inference.export import _job
    from adapterhub.weights.compare import difference
    from adapterhub.weights.lowrank import factors

    place = {"fuse": (finding, "check_folder"), "export": (_job, "verify"), "diff": (difference, "_config")}
    act: Callable[[], object] = {
        "fuse": lambda: fuse(swapped.folder, tmp_path / "out", base=str(adapt.folder / "base"), library=adapt.library),
        "export": lambda: export(swapped.folder, tmp_path / "out", form="peft", library=adapt.library),
        "merge": lambda: merge_into_folder(
            MergeStep(inputs=(Ingredient(folder=swapped.folder, label="./a", weight=0.5),)), tmp_path / "out"
        ),
        "diff": lambda: differ(
            ComparedSide(folder=swapped.folder, label="a"), ComparedSide(folder=adapt.folder / "b", label="b")
        ),
    }[name]
    module, function = place.get(name, (factors, "open_files"))
    with monkeypatch.context() as patch:
        after(patch, module, function, lambda: swapped.put(swapped.bad))
        with pytest.raises(DigestMismatch):
            act()

    assert not (tmp_path / "out").exists()
    swapped.put(swapped.good)
    after(monkeypatch, module, function, lambda: swapped.put(swapped.bad, by_rename))
    act()  # another file of that name is not seen
    assert all(torch.isfinite(numbers).all() for numbers in numbers_in(tmp_path / "out"))


def numbers_in(folder: Path) -> Iterator[torch.Tensor]:
    from safetensors.torch import load_file

    for path in folder.glob("*.safetensors"):
        yield from load_file(path).values()


@contextmanager
def swapping(swapped: Swapped) -> Iterator[None]:
    """Good and bad files in turn, in place and by rename, by a thread, as long as the block lasts."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            for swap in SWAPS.values():
                for name in (WEIGHTS_FILE, CONFIG_FILE):
                    swap(swapped.folder / name, swapped.bad[name])
                    swap(swapped.folder / name, swapped.good[name])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_of_200_attaches_none_gets_bytes_that_were_not_checked(adapt: Adapt, swapped: Swapped) -> None:
    """A refusal is right, and so is an alpha of 96 with the good weights, a sound adapter; NaN never is."""
    model = base()
    attached_ones = 0
    with swapping(swapped):
        for _ in range(200):
            with suppress(AdapterHubError), attach(model, swapped.folder, library=adapt.library) as attached:
                attached_ones += 1
                assert {group.alpha for group in attached.adapters[0].scales} <= {16, 96}
                numbers = [p for name, p in attached.model.named_parameters() if "lora_" in name]
                assert numbers
                assert all(bool(torch.isfinite(p).all()) for p in numbers)
    swapped.put(swapped.good)
    with attach(model, swapped.folder, library=adapt.library):
        attached_ones += 1
    assert attached_ones


def test_what_the_bank_holds_no_write_to_the_library_reaches(adapt: Adapt) -> None:
    folder = folder_of(adapt.library)
    with AdapterBank(base(), library=adapt.library) as bank, bank.use(bank.load("a")):
        before = logits(bank.model)
        with flipped(folder, "weights"):
            during = logits(bank.model)
    assert torch.equal(before, during)


def test_a_reload_of_a_folder_that_was_written_to_is_refused(adapt: Adapt, swapped: Swapped) -> None:
    path = swapped.folder / WEIGHTS_FILE
    with AdapterBank(base(), library=adapt.library, max_resident=1) as bank:
        name = bank.load(swapped.folder, name="mine")
        bank.load("b")
        facts = path.stat()
        in_place(path, swapped.bad[WEIGHTS_FILE])
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        with pytest.raises((DigestMismatch, Conflict)), bank.use(name):
            pass


def test_the_folder_that_vllm_opens_is_ours_alone(adapt: Adapt) -> None:
    record = adapt.library.bases.find(str(adapt.folder / "base"))
    provider = AdapterProvider(adapt.library, record, engine="vllm@0.32")
    try:
        folder = provider.find("a").folder
        assert [path.stat().st_mode & 0o077 for path in (folder, folder.parent)] == [0, 0]
        assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())
    finally:
        provider.close()
