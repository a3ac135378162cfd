"""The files by which a registry is deployed, and the page about it, name what there is: options, variables, limits."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import click
import pytest
import yaml
from adapterhub_registry.operations.commands import registry
from adapterhub_registry.settings import Limits, parse_networks

from adapterhub.core.extras import EXTRAS
from tests.registry.conftest import ROOT

DEPLOY = ROOT / "registry" / "deploy"
PAGE = (ROOT / "docs" / "how-to" / "scale-registry.md").read_text()
SERVE = registry.commands["serve"]
OPTIONS = {option.opts[0]: option for option in SERVE.params if isinstance(option, click.Option)}
VARIABLES = {str(option.envvar) for option in OPTIONS.values() if option.envvar}


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def test_the_compose_file_starts_two_servers_with_options_that_exist(compose: dict[str, Any]) -> None:
    servers = [service for name, service in compose["services"].items() if name.startswith("registry-")]
    ours = {name for name in servers[0]["environment"] if name.startswith("ADAPTERHUB_")}

    assert len(servers) == 2
    assert ours <= VARIABLES
    assert {"ADAPTERHUB_REGISTRY_DATABASE", "ADAPTERHUB_REGISTRY_BLOBS", "ADAPTERHUB_REGISTRY_SECRET_FILE"} <= ours


def test_the_limits_and_proxies_of_the_compose_file_can_be(compose: dict[str, Any]) -> None:
    environment = compose["services"]["registry-1"]["environment"]
    limits = Limits().with_values(tuple(environment["ADAPTERHUB_REGISTRY_LIMITS"].split()))
    subnet = compose["networks"]["inside"]["ipam"]["config"][0]["subnet"]

    assert limits.namespace_bytes == 100 << 30
    assert parse_networks((environment["ADAPTERHUB_REGISTRY_TRUSTED_PROXIES"],)) == parse_networks((subnet,))


def test_what_the_compose_file_asks_of_its_user_is_in_the_example(compose: dict[str, Any]) -> None:
    asked = set(re.findall(r"\$\{(\w+)\}", yaml.safe_dump(compose)))
    given = set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE))

    assert asked == given


def test_the_container_names_variables_that_exist() -> None:
    named = set(re.findall(r"ADAPTERHUB_REGISTRY_\w+", (DEPLOY / "Containerfile").read_text()))

    assert named
    assert named <= VARIABLES


def test_the_container_installs_extras_that_exist_with_all_they_need() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    (extras,) = re.findall(r"pip install --no-cache-dir \"\.\[([a-z,]+)\]\"$", text, re.MULTILINE)

    assert text.count("pip install") == 1
    assert "--no-deps" not in text
    assert {"registry", "scale"} <= set(extras.split(",")) <= set(EXTRAS)


def test_the_page_names_every_option_and_its_variable() -> None:
    rows = dict(re.findall(r"^\| `(--[a-z0-9-]+)[^`]*` \| (?:`(\w+)`)? *\|", PAGE, re.MULTILINE))
    wanted = {name: str(option.envvar or "").removeprefix("ADAPTERHUB_REGISTRY_") for name, option in OPTIONS.items()}

    assert rows == {name: variable for name, variable in wanted.items() if name not in {"--host", "--port", "--json"}}


def test_the_page_names_every_limit() -> None:
    part = PAGE.partition("## Limits")[2].partition("## Watch")[0]

    assert {field.name for field in fields(Limits)} == {
        name for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
