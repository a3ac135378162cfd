"""The servers that all tests here share, because a start of vLLM takes a minute; and the figures that tests measured.

Nothing here is collected unless an interpreter with vLLM is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # they import torch and PEFT, also in a run without these tests
    from tests.inference.engines.served_library import ServedLibrary
    from tests.inference.engines.servers import Server

collect_ignore_glob = [] if os.environ.get("ADAPTERHUB_VLLM_PYTHON") else ["test_*.py"]
FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Puts a figure, under its name, into the table at the end of the run."""
    return request.config.stash.setdefault(FIGURES, {}).__setitem__


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedLibrary:
    """What `server` serves, and what it must refuse. A test may add adapters of other names."""
    from tests.inference.engines.served_library import make_served_library, other_training, spoil
    from tests.inference.engines.variants import LINEAR, SERVED, SMALL, VARIANTS

    made = make_served_library(tmp_path_factory.mktemp("serve"))
    for seed, (name, config) in enumerate(SERVED.items(), 1):
        made.add(name, config, seed=seed)
    made.add("embedding", VARIANTS["embedding"], seed=7)
    for number in range(6):
        made.add(f"many-{number}", SMALL, seed=20 + number)
    made.add("big", {"r": 32, "lora_alpha": 32, "target_modules": LINEAR}, seed=9)
    made.add("elsewhere", SMALL, seed=10, base=other_training(made.record))
    made.publish("fresh", SMALL, seed=11)
    spoil(made.publish("spoilt", SMALL, seed=12))
    return made


@pytest.fixture(scope="session")
def server(served: ServedLibrary) -> Iterator[Server]:
    """`adapt serve` with few slots."""
    from tests.inference.engines.servers import adapt_serve

    arguments = ["plain", "--base", "smol", "--max-rank", "16", "--slots", "3", "--cpu-slots", "4"]
    with adapt_serve(served.home, served.root / "vllm.log", *arguments, sources=str(served.published)) as running:
        yield running


@pytest.fixture(scope="session")
def bare(served: ServedLibrary) -> Iterator[Server]:
    """vLLM without our plugin, which takes ranks up to 64. Its own resolver knows what PEFT saved for `served`."""
    from tests.inference.engines.servers import bare_vllm
    from tests.support.real_base import smollm2_base

    options = ["--max-lora-rank", "64", "--max-loras", "1", "--max-cpu-loras", "2"]
    resolver = {
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(served.root / "peft"),
    }
    with bare_vllm(smollm2_base(), served.root / "bare.log", *options, environ=resolver) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, {})
    if figures:
        terminalreporter.section("figures")
        width = max(map(len, figures))
        for name, figure in figures.items():
            terminalreporter.line(f"{name:{width}}  {figure}")
