"""The configurations of PEFT's own test suite, read from its source distribution; nothing of it is kept here.

The test modules need packages that this project lacks, so they are not imported: only their lists of configurations,
and the small models that these name, are run.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from tests.peft_variants import bases
from tests.peft_variants.configuration import Base, Configuration

VERSION: Final = "0.21.2"
_DIGEST: Final = "b803ccfb3f3f316004d850284306687833a2235ea278fb56abc856203456142e"
_USABLE: Final = ("torch", "transformers", "peft", "copy", "functools", "math")
_WRAPPER: Final = "MockTransformerWrapper"

_LISTS: Final = {
    "test_decoder_models.py": ("ALL_CONFIGS", bases.llama),
    "test_encoder_decoder_models.py": ("ALL_CONFIGS", bases.t5),
    "test_feature_extraction_models.py": ("ALL_CONFIGS", bases.bert),
    "test_seq_classifier.py": ("ALL_CONFIGS", bases.bert_classifier),
}
"""Lists of (class, settings), each with the base that stands for the models of the hub that the suite downloads."""


def fetched(folder: Path) -> Path:
    """The source distribution of PEFT from the package index, in `folder`. Raises CalledProcessError without one."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=peft", "--no-build-isolation"]
    subprocess.run([*command, "-d", str(folder), f"peft=={VERSION}"], check=True)
    return folder / f"peft-{VERSION}.tar.gz"


def tests_in(sdist: Path, folder: Path) -> Path:
    """The folder with PEFT's tests, unpacked from `sdist` into `folder`.

    Raises:
        SystemExit: the archive is not the one whose lists this module knows.
    """
    if hashlib.sha256(sdist.read_bytes()).hexdigest() != _DIGEST:
        raise SystemExit(f"{sdist} is not the source distribution of PEFT {VERSION}")
    with tarfile.open(sdist) as archive:
        members = [m for m in archive.getmembers() if m.isfile() and "/tests/" in m.name and m.name.endswith(".py")]
        archive.extractall(folder, members, filter="data")
    return folder / f"peft-{VERSION}" / "tests"


def configurations(tests: Path) -> Iterator[Configuration]:
    """Every configuration of the suite: one adapter each, or a pair of the list of adapters that are active together."""
    custom = _run(tests / "test_custom_models.py")
    wrapper = custom[_WRAPPER]
    for title, model, kind, settings in custom["TEST_CASES"]:
        yield Configuration(title=title, base=_custom(wrapper, model), kind=kind, settings=settings)
    for title, _, kind, first, second in custom["MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES"]:
        yield Configuration(
            title=f"two: {title}", base=_custom(wrapper, _model_for(first)), kind=kind, settings=first, second=second
        )
    for file, (name, base) in _LISTS.items():
        for kind, settings in _run(tests / file)[name]:
            title = f"{file.removeprefix('test_').removesuffix('.py')}: {kind.__name__}"
            yield Configuration(title=title, base=_base_for(kind, base), kind=kind, settings=settings)
    heads = _run(tests / "test_token_classification_qa.py")
    for name, base in (("TOKEN_CLS_CONFIGS", bases.bert_tagger), ("QA_CONFIGS", bases.bert_answerer)):
        for kind, settings in heads[name]:
            yield Configuration(title=f"{name}: {kind.__name__}", base=base, kind=kind, settings=settings)
    for model, kind, settings in _run(tests / "test_target_parameters.py")["ALL_CONFIGS"]:
        base = bases.llama4 if "Llama4" in model else bases.gpt_oss
        yield Configuration(title=f"target_parameters: {model}", base=base, kind=kind, settings=settings)


def _model_for(settings: Mapping[str, Any]) -> str:
    return "EmbConv1D" if "trainable_token_indices" in settings else "MLP"


def _base_for(kind: Any, usual: Base) -> Base:
    """The suite tries classifiers of two kinds, and leaves out for each what its model cannot take."""
    is_decoders = usual is bases.bert_classifier and kind.__name__ in ("PrefixTuningConfig", "ShadowConfig")
    return bases.llama_classifier if is_decoders else usual


def _custom(wrapper: Any, model: str) -> Base:
    def make() -> nn.Module:
        made: nn.Module = wrapper.from_pretrained(model)
        return made.eval()

    inputs = {"X": torch.arange(90).view(9, 10)}
    return Base(name=model, make=make, inputs=inputs)


def _run(path: Path) -> dict[str, Any]:
    """The lists, models and helpers of one test module, by name; its tests and its other imports are left out."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    module.body = [node for node in module.body if _is_wanted(node)]
    names: dict[str, Any] = {"__name__": "__main__"}  # what PEFT writes as the library of a model of one's own
    exec(compile(module, str(path), "exec"), names)  # noqa: S102 - the archive has the expected digest
    return names


def _is_wanted(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import):
        return all(alias.name.split(".")[0] in _USABLE for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.level == 0 and (node.module or "").split(".")[0] in _USABLE
    if isinstance(node, ast.ClassDef):
        return node.name == _WRAPPER or any(ast.unparse(base).endswith("Module") for base in node.bases)
    if isinstance(node, ast.FunctionDef):
        return node.name.startswith("_") and not node.decorator_list
    return isinstance(node, ast.Assign)
