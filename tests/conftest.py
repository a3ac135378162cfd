"""What all tests share: one thread for torch, no network for the hub client, and a library of their own."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import socketserver
import ssl
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# before torch and huggingface_hub are imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each program that tests start would compile what it imports

import httpx
import jinja2
import pytest
from hypothesis import HealthCheck, settings

from adapterhub.core import redaction
from adapterhub.core.limits import use_limits
from adapterhub.core.specs import parse_name
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.support import without_torch
from tests.support.outside import Recording
from tests.support.speed import is_slow, is_slow_file
from tests.support.tiny import make_adapter, make_base

if TYPE_CHECKING:
    from tests.registry.running import Running

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs behind a `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the commands of the tests are interrupted, too

# `httpx.get` reads the certificates of all authorities for each call, which takes ten times as long as a call to loopback
_new_tls_context, _tls_context_of = ssl.create_default_context, functools.cache(ssl.create_default_context)
ssl.create_default_context = lambda *a, **k: (_tls_context_of if k.get("cafile") else _new_tls_context)(*a, **k)

# the hub's client compiles the template of PEFT's model card for each adapter, which is half of the time that saving one takes
jinja2.Template = functools.cache(jinja2.Template)

sys.dont_write_bytecode = False  # each worker would rewrite the assertions of all tests, which takes it 5 seconds

# a server of a test is told to end many hundred times in a run, and would look for that twice a second only
socketserver.BaseServer.serve_forever.__defaults__ = (0.01,)

FAST = "not slow"

# a busy machine is no failure
_patience = httpx.Client.__init__.__kwdefaults__["timeout"]  # the one of all calls: 5 seconds
_patience.connect = _patience.read = _patience.write = _patience.pool = 60
settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-goldens` writes the golden files anew; look at the diff. `--exhaustive` takes all where CI takes a sample."""
    parser.addoption("--update-goldens", action="store_true", help="write golden files anew instead of comparing")
    parser.addoption("--exhaustive", action="store_true", help="run every case where the default is a sample")


def pytest_configure(config: pytest.Config) -> None:
    """Which tests ask for what lies outside the repository is known."""
    config.pluginmanager.register(Recording())
    if without_torch.IS_NEEDED:
        config.pluginmanager.register(without_torch.WithoutTorch())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`, one more than there are cores: tests wait for servers that they start and stop; fast ones have none."""
    from xdist.plugin import pytest_xdist_auto_num_workers

    waiting = "PYTEST_XDIST_AUTO_NUM_WORKERS" not in os.environ and config.option.markexpr != FAST
    return pytest_xdist_auto_num_workers(config) + waiting


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Each worker gets neighbouring tests, and takes over half of what another has left when its own are done.

    So models and servers that the tests of a file share are made once, not once in each worker.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays until the end, so the search for garbage leaves it out, now and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(700, 10, 10)  # that of `adapt`, which some test imported, is for short runs
        gc.enable()
        # pytest adds its handlers to each logger that passes nothing on, six times a test: torch has 87 of them
        for name, logger in logging.root.manager.loggerDict.items():
            if name.startswith("torch") and isinstance(logger, logging.Logger):
                logger.propagate = True


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The fast set does without importing the files that are slow as a whole."""
    return (
        config.option.markexpr == FAST and collection_path.suffix == ".py" and is_slow_file(collection_path)
    ) or None


MANY_CASES = 6
SAMPLED = ("dialects", "formats", "inference", "library", "peft_variants", "registry", "same_base", "weights")
"""Of a test of more cases in these folders, a run without `--exhaustive` takes every second one: they vary one rule."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The fast set, `-m "not slow"`, is without every test that starts a process or a server, or makes a model.

    Without `--exhaustive`, tests with that mark are left out, and half of the cases of `SAMPLED`.
    """
    for item in items if "slow" in config.option.markexpr else ():
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
    if not config.getoption("--exhaustive"):
        kept = [item for item in items if not item.get_closest_marker("exhaustive")]
        cases: dict[str, list[pytest.Item]] = {}
        for item in kept:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        sample = {
            item
            for name, group in cases.items()
            for item in (group[::2] if len(group) > MANY_CASES and name.split("/")[1] in SAMPLED else group)
        }
        left_out = [item for item in items if item not in sample]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in kept if item in sample]


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`amount(30, 100)` is 30, or 100 with `--exhaustive`."""
    exhaustive = request.config.getoption("--exhaustive")
    return lambda few, many: many if exhaustive else few


@pytest.fixture(autouse=True)
def _limits_as_built_in() -> Iterator[None]:
    """A command that a test runs in this process may set them, and they hold for all that follows."""
    yield
    use_limits()


@pytest.fixture(autouse=True, scope="module")
def _no_secrets_of_other_files() -> Iterator[None]:
    """What a process has kept secret is taken out of every text that follows, also of other tests' expectations."""
    yield
    redaction._own = {}  # a program never forgets a secret


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home")


@pytest.fixture
def base(tmp_path: Path, library: Library) -> BaseRecord:
    record = library.bases.add(make_base(tmp_path / "base"), "base-7b")
    library.catalog.put_base(record)
    return record


@pytest.fixture
def add(tmp_path: Path, library: Library, base: BaseRecord) -> Callable[..., Added]:
    """Make a tiny adapter and add it: `add("legal-qa", task="legal", rank=4)`."""

    def make(
        name: str,
        *,
        version: str = "1.0.0",
        task: str | None = None,
        description: str = "",
        known: bool = True,
        namespace: str | None = None,
        into: Library | None = None,
        **adapter: object,
    ) -> Added:
        naming = {key: adapter.pop(key) for key in ("bump", "variant") if key in adapter}
        number = len(list((tmp_path / "made").glob("*"))) if (tmp_path / "made").exists() else 0
        folder = make_adapter(tmp_path / "made" / f"{name}-{number}", **adapter)  # type: ignore[arg-type]
        about = Description(name=parse_name(name), version=version, task=task, description=description)
        told = base if known else None
        return (into or library).add(folder, about, base=told, namespace=namespace, **naming)  # type: ignore[arg-type]

    return make


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client, which is offline in all other tests, may speak to servers on loopback."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry for the tests of a file, in this process and on loopback."""
    from tests.registry.running import running

    with running(tmp_path_factory.mktemp("registry")) as server:
        yield server
