"""The pytest plug-in: the fixture `adapted`, an adapter on its base with a function that answers.

pytest imports this module in every run, whatever is tested: so it imports nothing of the package, which is loaded when
a test asks for the fixture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from adapterhub.api.contracts.testing import Adapted

_SETTINGS = {
    "spec": "Test this adapter, a spec or a folder, with the fixture `adapted`.",
    "base": "Put the adapter on this base.",
    "dtype": "Load the base in this precision.",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that name the adapter; each has a variable that `adapt test --runner pytest` sets."""
    group = parser.getgroup("adapterhub")
    for name, what in _SETTINGS.items():
        group.addoption(
            f"--adapt-{name}", metavar=name.upper(), help=f"{what} Default: $ADAPTERHUB_TEST_{name.upper()}."
        )


@pytest.fixture(scope="session")
def adapted(pytestconfig: pytest.Config) -> Iterator[Adapted]:
    """Provide the adapter that `--adapt-spec` names, on its base: call it with a question. Loading checks it."""
    spec, base, dtype = (_setting(pytestconfig, name) for name in _SETTINGS)
    if spec is None:
        pytest.skip("no adapter is named: `pytest --adapt-spec SPEC`, or `adapt test SPEC --runner pytest --task PATH`")
    import adapterhub
    from adapterhub.api.contracts.testing import adapted as put_on_its_base

    try:
        library = adapterhub.default_library()
        with put_on_its_base(library, spec, on=base, dtype=dtype or "auto") as held:
            yield held
    except adapterhub.AdapterHubError as error:
        pytest.fail(f"{error.message}\n{error.hint}".rstrip(), pytrace=False)


def _setting(config: pytest.Config, name: str) -> str | None:
    typed = config.getoption(f"--adapt-{name}")
    return typed if isinstance(typed, str) else os.environ.get(f"ADAPTERHUB_TEST_{name.upper()}") or None
