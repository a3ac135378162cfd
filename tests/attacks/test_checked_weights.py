"""Bytes of an installed adapter are used only as they were checked: one flipped bit, and files swapped meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import adapterhub
from adapterhub.bank import AdapterBank
from adapterhub.cli import COMMANDS
from adapterhub.description import Description
from adapterhub.difference import Side, differ
from adapterhub.errors import AdapterHubError, Conflict, DigestMismatch
from adapterhub.export import export
from adapterhub.factors import AdapterFactors
from adapterhub.fuse import fuse
from adapterhub.library import Library
from adapterhub.loader import attach
from adapterhub.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.merge import MergeInput, merge
from adapterhub.recipe import Combination, Ingredient, merge_into_folder, merge_into_library
from adapterhub.serving.counter import Counter
from adapterhub.similarity import Side as Compared
from adapterhub.similarity import compare_adapters
from adapterhub.specs import parse_name
from adapterhub.tuning import read_examples, tune
from tests.command_line import Adapt
from tests.run_library import make_library
from tests.tiny_models import llama, logits

OUT = "OUT"
"""In arguments: a folder that does not exist."""

REFUSES: Mapping[str, list[str]] = {
    "merge": ["a", "b", "-o", OUT],
    "compare": ["b", "a"],
    "resize": ["a", "--rank", "2", "-o", "small"],
    "diff": ["b", "a"],
    "fuse": ["a", "--into", OUT],
    "run": ["a", "Where is the boat?", "--max-new-tokens", "1"],
    "export": ["a", "--format", "peft", "-o", OUT],
    "push": ["a", "--to", OUT],
    "pull": ["a", OUT],
    "sign": ["a", "--key", "ana"],
}
"""Commands that use what an installed adapter holds, and arguments with which they use `a`."""

MORE: Mapping[str, list[str]] = {
    "merge into the library": ["merge", "a", "b", "-o", "sum"],
    "merge, a copy": ["merge", "a", "--weights", "1", "-o", OUT],
    "merge, cut": ["merge", "a", "b", "--method", "svd", "--rank", "2", "-o", OUT],
    "merge, masks": ["merge", "a", "b", "--method", "dare_linear", "--density", "0.5", "-o", OUT],
    "merge, a recipe": ["merge", "--recipe", "recipe.toml", "-o", OUT],
    "merge, tuned": ["merge", "a", "b", "--tune", "examples.jsonl", "--tune-budget", "4", "-o", OUT],
    "resize, a copy": ["resize", "a", "--rank", "64", "-o", OUT],
    "export for vLLM": ["export", "a", "--format", "vllm", "-o", OUT],
    "export, merged": ["export", "a", "--format", "merged", "-o", OUT],
}

SAYS_SO: Mapping[str, str] = {
    "verify": "finds the damage: that is what it is for (exit 16)",
    "doctor": "finds and mends it",
    "check": "says of each engine that the adapter is not sound",
    "info": "shows what manifest and header say, and no modules of a damaged one",
    "show": "is `info`",
    "identify": "passes over what it cannot read; it looks at an orphan",
    "audit": "reports",
}
USES_NO_WEIGHTS: Mapping[str, str] = {
    **dict.fromkeys(("demo", "init", "base", "completion", "add", "extract"), "takes nothing that is installed"),
    **dict.fromkeys(("uninstall", "remove", "list", "search", "path", "cache", "gc", "tree", "why"), "names and sizes"),
    **dict.fromkeys(("lock", "outdated", "upgrade"), "manifests; merges of a project are `merge`"),
    **dict.fromkeys(("install", "mirror"), "hashes every byte that it copies (tests/test_install.py)"),
    "sync": "links the objects of the store by their digests (tests/test_sync.py)",
    "serve": "hands out what `Counter` checked, below",
    "key": "no adapters",
    "remote": "no adapters",
    "registry": "no library",
}


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    folder = make_library(tmp_path_factory.mktemp("checked"))
    adapt = Adapt(folder)
    adapt.ok("key", "new", "ana", "--unencrypted")
    digests = {one["name"]: one["digest"] for one in adapt.json("list")}
    inputs = "".join(
        f'[[inputs]]\nspec = "{name}==1.0.0"\nweight = 0.5\ndigest = "{digests[name]}"\n' for name in ("a", "b")
    )
    (folder / "recipe.toml").write_text(f'format = 1\nname = "again"\nmethod = "cat"\n\n{inputs}')
    line = json.dumps({"prompt": "a b", "completion": "c d"})
    (folder / "examples.jsonl").write_text(f"{line}\n{line}\n")
    return adapt


def base() -> Any:
    """The base of the library, in memory."""
    return llama(initializer_range=0.4, max_position_embeddings=256)


def folder_of(library: Library, name: str = "a") -> Path:
    return library.builds_named(name)[0].folder


# ---------------------------------------------------------------- one flipped bit
def _in_the_numbers(raw: bytearray) -> int:
    return len(raw) - 2


def _in_the_header(raw: bytearray) -> int:
    return raw.index(b"q_proj")


def _in_alpha(raw: bytearray) -> int:
    return raw.index(b"16", raw.index(b'"lora_alpha"')) + 1  # 16 becomes 14 or so: sound, and another update


def _in_a_brace(raw: bytearray) -> int:
    return raw.index(b"{")


FLIPS: Mapping[str, tuple[str, Callable[[bytearray], int], int]] = {
    "weights": (WEIGHTS_FILE, _in_the_numbers, 0x40),
    "header": (WEIGHTS_FILE, _in_the_header, 1),
    "config": (CONFIG_FILE, _in_alpha, 2),
    "broken config": (CONFIG_FILE, _in_a_brace, 1),
}


@contextmanager
def flipped(folder: Path, what: str) -> Iterator[None]:
    """One bit of an object of the library is another one in the block."""
    name, place_in, bit = FLIPS[what]
    path = folder / name
    before, mode = path.read_bytes(), path.stat().st_mode
    raw = bytearray(before)
    raw[place_in(raw)] ^= bit
    path.chmod(0o644)
    try:
        path.write_bytes(raw)  # in place: every hard link of the object
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


def everything_in(folder: Path) -> set[str]:
    """Every file but for those that a refusal may leave: locks, caches, and the index beside its own journals."""
    passing = ("locks", "cache", "intents")
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {str(path) for path in found if not set(path.parts) & set(passing) and "index.db" not in path.name}


def typed(command: str, out: Path) -> list[str]:
    arguments = [command, *REFUSES[command]] if command in REFUSES else MORE[command]
    return [str(out) if argument == OUT else argument for argument in arguments]


def test_every_command_is_in_one_of_the_tables() -> None:
    named = [*REFUSES, *SAYS_SO, *USES_NO_WEIGHTS]

    assert sorted(named) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("command", "what"),
    [*((c, w) for c in REFUSES for w in FLIPS), *((c, w) for c in MORE for w in ("weights", "config"))],
)
def test_a_command_refuses_an_adapter_with_one_flipped_bit(
    adapt: Adapt, tmp_path: Path, command: str, what: str
) -> None:
    before = everything_in(adapt.folder)

    with flipped(folder_of(adapt.library), what):
        done = adapt(*typed(command, tmp_path / "out"))

    assert (done.exit_code, done.stdout) == (12, ""), done.stdout + done.stderr
    assert FLIPS[what][0] in done.stderr
    assert done.stderr.count("sha256:") == 2
    assert "adapt doctor --repair" in done.stderr
    assert (everything_in(adapt.folder), list(tmp_path.iterdir())) == (before, [])


@pytest.mark.parametrize("command", [*REFUSES, *MORE])
def test_the_same_command_succeeds_without_the_flip(adapt: Adapt, tmp_path: Path, command: str) -> None:
    shutil.copytree(adapt.folder, tmp_path / "copy")

    done = Adapt(tmp_path / "copy")(*typed(command, tmp_path / "out"))

    assert done.exit_code == 0, done.stderr


def test_a_changed_manifest_is_no_parent(adapt: Adapt, tmp_path: Path) -> None:
    """What a manifest says is what everything else is held to, and its digest is what lineage records."""
    path = folder_of(adapt.library) / MANIFEST_FILE
    before, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o644)
    try:
        path.write_bytes(before.replace(b'"alpha":16', b'"alpha":17', 1))
        assert path.read_bytes() != before
        for command in ("merge", "compare", "resize", "diff", "fuse", "run", "export"):
            done = adapt(*typed(command, tmp_path / "out"))
            assert (done.exit_code, done.stdout) == (12, ""), done.stderr
            assert MANIFEST_FILE in done.stderr
    finally:
        path.write_bytes(before)
        path.chmod(mode)


@dataclass(frozen=True)
class Uses:
    """What a function of the library is given: the world, and where it may write."""

    adapt: Adapt
    out: Path

    @property
    def library(self) -> Library:
        return self.adapt.library

    def ingredients(self) -> tuple[Ingredient, ...]:
        builds = [self.library.builds_named(name)[0] for name in ("b", "a")]
        return tuple(
            Ingredient(folder=b.folder, label=b.full_name, weight=0.5, base=b.base, digest=b.manifest.digest)
            for b in builds
        )


def _compare(use: Uses) -> object:
    parts = use.ingredients()
    opened = [AdapterFactors(part.folder, part.expected()) for part in parts]
    return compare_adapters([Compared(label=part.label, factors=f) for part, f in zip(parts, opened, strict=True)])


def _differ(use: Uses) -> object:
    first, second = (use.library.builds_named(name)[0] for name in ("b", "a"))
    sides = [Side(folder=b.folder, label=b.full_name, manifest=b.manifest, is_installed=True) for b in (first, second)]
    return differ(*sides)


def _bank(use: Uses) -> object:
    with AdapterBank(base(), library=use.library) as bank:
        return bank.load("a")


def _tune(use: Uses) -> object:
    from adapterhub.loader.text import load_base

    model, tokenizer = load_base(use.adapt.folder / "base")
    return tune(model, tokenizer, ["b", "a"], read_examples(use.adapt.folder / "examples.jsonl"), library=use.library)


def _hand_out(use: Uses) -> object:
    (base,) = use.library.bases.list()
    counter = Counter(use.library, base, engine="vllm@0.32")
    try:
        return counter.find("a")
    finally:
        counter.close()


FUNCTIONS: Mapping[str, Callable[[Uses], object]] = {
    "attach": lambda use: attach(base(), "a", library=use.library),
    "AdapterBank.load": _bank,
    "AdapterFactors": lambda use: AdapterFactors(folder_of(use.library)),
    "merge": lambda use: merge([MergeInput(folder=folder_of(use.library), label="a", weight=0.5)], use.out),
    "merge_into_folder": lambda use: merge_into_folder(Combination(inputs=use.ingredients()), use.out),
    "merge_into_library": lambda use: merge_into_library(
        use.library, Combination(inputs=use.ingredients()), Description(name=parse_name("sum"), version="1.0.0")
    ),
    "compare_adapters": _compare,
    "differ": _differ,
    "fuse": lambda use: fuse("a", use.out, library=use.library),
    "export": lambda use: export("a", use.out, form="peft", library=use.library),
    "tune": _tune,
    "Counter.find": _hand_out,
}


@pytest.mark.parametrize("what", ["weights", "config"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_refuses_an_adapter_with_one_flipped_bit(adapt: Adapt, tmp_path: Path, name: str, what: str) -> None:
    before = everything_in(adapt.folder)

    with flipped(folder_of(adapt.library), what), pytest.raises(DigestMismatch) as refusal:
        FUNCTIONS[name](Uses(adapt, tmp_path / "out"))

    assert refusal.value.exit_code == 12
    assert FLIPS[what][0] in refusal.value.where
    assert (everything_in(adapt.folder), list(tmp_path.iterdir())) == (before, [])


@pytest.mark.parametrize("what", ["weights", "config"])
def test_the_bank_refuses_a_flipped_bit_when_it_loads_an_adapter_again(adapt: Adapt, what: str) -> None:
    """Size and times are put back: what tells is the bytes."""
    folder = folder_of(adapt.library)
    times = [(path, path.stat()) for path in (folder / CONFIG_FILE, folder / WEIGHTS_FILE)]
    with AdapterBank(base(), library=adapt.library, max_resident=1) as bank:
        for name in ("a", "b"):
            bank.load(name)
        with flipped(folder, what):
            for path, facts in times:
                os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            with pytest.raises(DigestMismatch), bank.use("a"):
                pass


HEADERS_BY_PATH: Mapping[str, str] = {
    "tensorfile.py": "defines it",
    **dict.fromkeys(("weightreader.py", "extract/_models.py", "fuse/_model.py"), "models, which have fingerprints"),
    "verify/_foreign.py": "says what other files are",
    "engines/__init__.py": "in its example",
    **dict.fromkeys(("identify/_orphan.py", "identify/_builds.py", "cli/info_local.py"), "shows, and uses nothing"),
    "cli/check.py": "judges by the header; `export` and `serve` judge what they use",
}


def test_nobody_else_reads_a_weights_file_by_its_path() -> None:
    """Whoever uses an adapter takes it from the files that `verify` opened."""
    package = Path(adapterhub.__file__).parent
    by_path = re.compile(r"\b(read_header|safe_open|load_file|load_peft_weights|mmap\.ACCESS)\b")
    found = [p for p in package.rglob("*.py") if by_path.search(p.read_text(encoding="utf-8"))]

    assert sorted(p.relative_to(package).as_posix() for p in found) == sorted(HEADERS_BY_PATH)


# ---------------------------------------------------------------- swapped between check and use
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
    from adapterhub.loader import request

    after(monkeypatch, request, "check_folder", lambda: SWAPS[swap](swapped.folder / name, swapped.bad[name]))
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
    from adapterhub.bank import checker

    after(monkeypatch, checker, "check_folder", lambda: swapped.put(swapped.bad, SWAPS[swap]))
    with AdapterBank(base(), library=adapt.library) as bank, bank.use(bank.load(swapped.folder)):
        during = logits(bank.model)
        swapped.put({name: b"\xff" * len(data) for name, data in swapped.bad.items()})
        later = logits(bank.model)

    assert torch.allclose(during, expected, atol=1e-5)  # hooks add up in another order than PEFT's layers
    assert torch.equal(during, later)


def test_a_merge_and_the_digests_in_its_recipe_are_of_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, adapt: Adapt, swapped: Swapped, tmp_path: Path
) -> None:
    from adapterhub import recipe

    shutil.copytree(adapt.folder / "home", tmp_path / "home")
    after(monkeypatch, recipe, "folder_digests", lambda: swapped.put(swapped.bad, by_rename))
    inputs = (Ingredient(folder=swapped.folder, label="./a", weight=1.0),)
    about = Description(name=parse_name("sum"), version="1.0.0")

    with pytest.raises(DigestMismatch):
        merge_into_library(Library(tmp_path / "home"), Combination(inputs=inputs), about)


@pytest.mark.parametrize("name", ["fuse", "export", "merge", "diff"])
def test_what_is_written_has_the_numbers_that_were_checked(
    monkeypatch: pytest.MonkeyPatch, adapt: Adapt, swapped: Swapped, tmp_path: Path, name: str
) -> None:
    from adapterhub import difference, factors
    from adapterhub.export import _job
    from adapterhub.loader import request

    place = {"fuse": (request, "check_folder"), "export": (_job, "verify"), "diff": (difference, "_config")}
    act: Callable[[], object] = {
        "fuse": lambda: fuse(swapped.folder, tmp_path / "out", library=adapt.library),
        "export": lambda: export(swapped.folder, tmp_path / "out", form="peft", library=adapt.library),
        "merge": lambda: merge_into_folder(
            Combination(inputs=(Ingredient(folder=swapped.folder, label="./a", weight=0.5),)), tmp_path / "out"
        ),
        "diff": lambda: differ(Side(folder=swapped.folder, label="a"), Side(folder=adapt.folder / "b", label="b")),
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
    (base,) = adapt.library.bases.list()
    counter = Counter(adapt.library, base, engine="vllm@0.32")
    try:
        folder = counter.find("a").folder
        assert [path.stat().st_mode & 0o077 for path in (folder, folder.parent)] == [0, 0]
        assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())
    finally:
        counter.close()
