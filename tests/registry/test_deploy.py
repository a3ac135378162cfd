"""The files by which a registry is deployed, and the page about it, name what there is: options, variables, limits."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml
from adapterhub_registry.operations.commands import registry
from adapterhub_registry.settings import ServerLimits, parse_networks

from adapterhub.core.extras import EXTRAS
from tests.registry.conftest import ROOT
from tests.registry.proxied import nginx
from tests.registry.pushing import Push
from tests.registry.running import running
from tests.registry.shared_servers import free_ports
from tests.support.programs import needs

DEPLOY = ROOT / "registry" / "deploy"
PAGE = (ROOT / "docs" / "how-to" / "scale-registry.md").read_text()
SERVE = registry.commands["serve"]
OPTIONS = {option.opts[0]: option for option in SERVE.params if isinstance(option, click.Option)}
VARIABLES = {str(option.envvar) for option in OPTIONS.values() if option.envvar}
VARIABLES |= {f"ADAPTERHUB_REGISTRY_S3_{name}" for name in ("ENDPOINT", "PUBLIC_ENDPOINT", "REGION")}  # without options


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


@pytest.mark.exhaustive
def test_docker_compose_takes_the_file(tmp_path: Path) -> None:
    command = [needs("docker-compose"), "--env-file", DEPLOY / "example.env", "-f"]

    def told(path: Path) -> subprocess.CompletedProcess[str]:
        done = [*command, path, "config", "--format", "json"]
        return subprocess.run(done, capture_output=True, text=True, check=False, timeout=60)

    found = json.loads(told(DEPLOY / "compose.yaml").stdout)
    broken = tmp_path / "compose.yaml"
    broken.write_text((DEPLOY / "compose.yaml").read_text().replace("    healthcheck:", "    healthchek:"))

    build = found["services"]["registry-1"]["build"]
    assert (Path(build["context"]) / build["dockerfile"]).resolve() == DEPLOY / "Containerfile"
    assert Path(build["context"]) == ROOT / "dist"
    assert "healthchek" in told(broken).stderr


def test_the_limits_and_proxies_of_the_compose_file_can_be(compose: dict[str, Any]) -> None:
    environment = compose["services"]["registry-1"]["environment"]
    limits = ServerLimits().with_values(tuple(environment["ADAPTERHUB_REGISTRY_LIMITS"].split()))
    subnet = compose["networks"]["inside"]["ipam"]["config"][0]["subnet"]

    assert limits.namespace_bytes == 100 << 30
    assert parse_networks((environment["ADAPTERHUB_REGISTRY_TRUSTED_PROXIES"],)) == parse_networks((subnet,))


def test_what_the_compose_file_asks_of_its_user_is_in_the_example(compose: dict[str, Any]) -> None:
    asked = set(re.findall(r"\$\{(\w+)\}", yaml.safe_dump(compose)))
    given = set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE))

    assert asked == given


def test_clients_reach_the_registry_and_its_bucket_by_tls_alone(compose: dict[str, Any]) -> None:
    text = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    listens = set(re.findall(r"listen (\S+?)( ssl)?;", text))
    addresses = dict(re.findall(r"^(\w+)=(\S+)", (DEPLOY / "example.env").read_text(), re.MULTILINE))
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}

    assert listens == {("80", ""), ("443", " ssl"), ("8443", " ssl")}
    assert "listen 80;\n    return 301 https://$host$request_uri;" in text
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in text
    assert addresses["PUBLIC_URL"].startswith("https://")
    assert addresses["S3_PUBLIC_ENDPOINT"].startswith("https://")
    assert set(published) == {"proxy"}
    assert {port.rpartition(":")[2] for port in published["proxy"]} == {"80", "443", "8443"}


def test_the_container_names_variables_that_exist() -> None:
    named = set(re.findall(r"ADAPTERHUB_REGISTRY_\w+", (DEPLOY / "Containerfile").read_text()))

    assert named
    assert named <= VARIABLES


def test_the_container_installs_extras_that_exist_with_all_they_need() -> None:
    text = re.sub(r"^#.*", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    (extras,) = re.findall(r"pip install --no-cache-dir .*\[([a-z,]+)\]\"$", text, re.MULTILINE)

    assert text.count("pip install") == 1
    assert "--no-deps" not in text
    assert {"registry", "scale"} <= set(extras.split(",")) <= set(EXTRAS)


def test_the_page_names_every_option_and_its_variable() -> None:
    rows = dict(re.findall(r"^\| `(--[a-z0-9-]+)[^`]*` \| (?:`(\w+)`)? *\|", PAGE, re.MULTILINE))
    wanted = {name: str(option.envvar or "").removeprefix("ADAPTERHUB_REGISTRY_") for name, option in OPTIONS.items()}

    assert rows == {name: variable for name, variable in wanted.items() if name not in {"--host", "--port", "--json"}}


def test_the_page_names_every_limit() -> None:
    part = PAGE.partition("## Limits")[2].partition("## Watch")[0]

    assert {field.name for field in fields(ServerLimits)} == {
        name for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }


def test_a_push_goes_through_the_proxy_by_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = free_ports(3)
    with (
        running(tmp_path / "registry", public_url=f"https://localhost:{ports[1]}") as server,
        nginx(tmp_path / "nginx", ports, server.url, s3=server.url) as proxy,
    ):
        monkeypatch.setenv("SSL_CERT_FILE", str(proxy.certificate))
        headers = {"Authorization": f"Bearer {server.token}"}
        with httpx.Client(base_url=proxy.url, headers=headers) as client:
            pushed = Push(repo="acme/x", weights=os.urandom(3_000_000))
            pushed.run(client)
            assert pushed.is_whole(client)
            refs = [client.get(f"/api/models/acme/x/revision/refs%2F{name}") for name in ("heads%2Fmain", "none")]
            assert [answer.status_code for answer in refs] == [200, 404]
        plain = httpx.get(f"{proxy.plain}/api/models?limit=1")
        assert (plain.status_code, plain.headers["location"]) == (301, "https://localhost/api/models?limit=1")
