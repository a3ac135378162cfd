"""One flipped bit in an installed adapter: every command and function that uses it refuses, and leaves nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import adapterhub
from adapterhub.cli import COMMANDS
from adapterhub.core.errors import DigestMismatch
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.export import export
from adapterhub.inference.loader import attach
from adapterhub.inference.serving import AdapterProvider
from adapterhub.inference.tuning import read_examples, tune
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights.compare.difference import ComparedSide, differ
from adapterhub.weights.compare.similarity import compare_adapters
from adapterhub.weights.lowrank.factors import AdapterFactors, WeightedAdapter
from adapterhub.weights.merge import MergeInput, merge
from adapterhub.weights.recipes.combination import Ingredient, merge_into_folder, merge_into_library
from adapterhub.weights.recipes.toml import MergeStep
from tests.attacks.installed import FLIPS, base, flipped, folder_of, make_world
from tests.support.command_line import Adapt
from tests.support.fuse_models import fuse

OUT = "OUT"
"""In arguments: a folder that does not exist."""

REFUSES: Mapping[str, list[str]] = {
    "merge": ["a", "b", "-o", OUT],
    "compare": ["b", "a"],
    "resize": ["a", "--rank", "2", "-o", "small"],
    "port": ["a", "--to", "next", "--unproved", "-o", "moved"],
    "fuse": ["a", "-o", OUT],
    "run": ["a", "Where is the boat?", "--max-new-tokens", "1"],
    "export": ["a", "--format", "peft", "-o", OUT],
    "push": ["a", "--to", OUT],
    "pull": ["a", OUT],
}
"""Commands that use what an installed adapter holds, and arguments with which they use `a`."""

MORE: Mapping[str, list[str]] = {
    "key sign": ["key", "sign", "a", "--key", "ana"],
    "compare, one": ["compare", "a"],
    "compare, exactly": ["compare", "--diff", "b", "a"],
    "merge into the library": ["merge", "a", "b", "-o", "sum"],
    "merge, a copy": ["merge", "a", "--weights", "1", "-o", OUT],
    "merge, cut": ["merge", "a", "b", "--method", "svd", "--rank", "2", "-o", OUT],
    "merge, masks": ["merge", "a", "b", "--method", "dare_linear", "-O", "density=0.5", "-o", OUT],
    "merge, a recipe": ["merge", "--recipe", "recipe.toml", "-o", OUT],
    "merge, tuned": ["merge", "a", "b", "--tune", "examples.jsonl", "--tune-budget", "4", "-o", OUT],
    "resize, a copy": ["resize", "a", "--rank", "64", "-o", OUT],
    "export for vLLM": ["export", "a", "--format", "vllm", "-o", OUT],
    "export, merged": ["export", "a", "--format", "merged", "-o", OUT],
}

SAYS_SO: Mapping[str, str] = {
    "verify": "finds the damage: that is what it is for (exit 16)",
    "doctor": "finds and mends it",
    "info": "shows what manifest and header say, and no modules of a damaged one",
    "identify": "passes over what it cannot read; it looks at an orphan",
    "audit": "reports",
}
USES_NO_WEIGHTS: Mapping[str, str] = {
    **dict.fromkeys(("demo", "init", "base", "add", "extract"), "takes nothing that is installed"),
    **dict.fromkeys(("remove", "alias", "list", "search", "cache", "tree"), "names and sizes"),
    **dict.fromkeys(("lock", "upgrade"), "manifests; merges of a project are `merge`"),
    **dict.fromkeys(("install", "mirror"), "hashes every byte that it copies (tests/distribution/test_install.py)"),
    "sync": "links the objects of the store by their digests (tests/projects/test_sync.py)",
    "serve": "hands out what `AdapterProvider` checked, below",
    **dict.fromkeys(("key", "remote"), "no adapters"),
    **dict.fromkeys(("yank", "delete"), "what a server has"),
    **dict.fromkeys(
        ("test", "contract"),
        "these builds have no contract; one that has is refused in tests/inference/contracts/test_verdicts.py",
    ),
    "registry": "no library",
    "route": "compares texts of manifests and contracts",
    "mcp": "types the commands above",
    "ui": "answers by `attach` and the bank, below, and merges as `merge` does",
}


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    return make_world(tmp_path_factory.mktemp("checked"))


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
        for command in ("merge", "compare", "resize", "port", "fuse", "run", "export"):
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
    opened = [AdapterFactors(part.folder, part.pinned().expected) for part in parts]
    return compare_adapters(
        [WeightedAdapter(label=part.label, factors=f) for part, f in zip(parts, opened, strict=True)]
    )


def _differ(use: Uses) -> object:
    first, second = (use.library.builds_named(name)[0] for name in ("b", "a"))
    sides = [
        ComparedSide(folder=b.folder, label=b.full_name, manifest=b.manifest, is_installed=True)
        for b in (first, second)
    ]
    return differ(*sides)


def _bank(use: Uses) -> object:
    with AdapterBank(base(), library=use.library) as bank:
        return bank.load("a")


def _tune(use: Uses) -> object:
    from adapterhub.inference.loader.text import load_base

    model, tokenizer = load_base(use.adapt.folder / "base")
    return tune(model, tokenizer, ["b", "a"], read_examples(use.adapt.folder / "examples.jsonl"), library=use.library)


def _hand_out(use: Uses) -> object:
    record = use.library.bases.find(str(use.adapt.folder / "base"))
    provider = AdapterProvider(use.library, record, engine="vllm@0.32")
    try:
        return provider.find("a")
    finally:
        provider.close()


FUNCTIONS: Mapping[str, Callable[[Uses], object]] = {
    "attach": lambda use: attach(base(), "a", library=use.library),
    "AdapterBank.load": _bank,
    "AdapterFactors": lambda use: AdapterFactors(folder_of(use.library)),
    "merge": lambda use: merge([MergeInput(folder=folder_of(use.library), label="a", weight=0.5)], use.out),
    "merge_into_folder": lambda use: merge_into_folder(MergeStep(inputs=use.ingredients()), use.out),
    "merge_into_library": lambda use: merge_into_library(
        use.library, MergeStep(inputs=use.ingredients()), Description(name=parse_name("sum"), version="1.0.0")
    ),
    "compare_adapters": _compare,
    "differ": _differ,
    "fuse": lambda use: fuse("a", use.out, library=use.library),
    "export": lambda use: export("a", use.out, form="peft", library=use.library),
    "tune": _tune,
    "AdapterProvider.find": _hand_out,
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
    "formats/safetensors/file.py": "defines it",
    **dict.fromkeys(
        (
            "formats/base/folders.py",
            "formats/base/quantised/opening.py",
            "formats/base/weight_files.py",
            "weights/model_files.py",
            "weights/extract/linear.py",
        ),
        "models, which have fingerprints",
    ),
    "formats/meaning/encoder.py": "the model of search by meaning, which has a digest",
    "trust/verify/report.py": "says what other files are",
    "formats/engines/__init__.py": "in its example",
    "formats/safetensors/parts.py": "in the command of its hint",
    **dict.fromkeys(
        (
            "library/identify/matching.py",
            "library/identify/lora_files.py",
            "api/describing.py",
        ),
        "shows, and uses nothing",
    ),
}


def test_nobody_else_reads_a_weights_file_by_its_path() -> None:
    """Whoever uses an adapter takes it from the files that `verify` opened."""
    package = Path(adapterhub.__file__).parent
    by_path = re.compile(r"\b(read_header|safe_open|load_file|load_peft_weights|mmap\.ACCESS)\b")
    found = [p for p in package.rglob("*.py") if by_path.search(p.read_text(encoding="utf-8"))]

    assert sorted(p.relative_to(package).as_posix() for p in found) == sorted(HEADERS_BY_PATH)
