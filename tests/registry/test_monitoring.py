"""The dashboard and the alerts ask for metrics that a server exports, and each alert fires past its bound only."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.registry.conftest import ROOT
from tests.registry.running import Running, running
from tests.registry.shared_servers import free_ports
from tests.support.programs import needs

MONITORING = ROOT / "registry" / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
OTHERS = {"up", "kube_cronjob_status_last_successful_time"}
"""Metrics of Prometheus itself, and of kube-state-metrics."""
OF_PROMETHEUS = {"job", "instance", "cronjob"}
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
JOB = "adapterhub-registry"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("monitored")) as server:
        server.push("acme/x", b"x" * 5000)
        server.get("/api/models/acme/none")
        server.registry.telemetry.refused.labels("token").inc()
        yield server


def exported(server: Running) -> dict[str, set[str]]:
    """The names of the series that a server exports, each with its labels."""
    found: dict[str, set[str]] = {}
    for path in ("/metrics", "/api/adapt/v1/metrics"):
        for family in text_string_to_metric_families(server.get(path).raise_for_status().text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def asked(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics that an expression asks for, and the labels by which."""
    grouped = {word for words in re.findall(r"\bby \(([^)]*)\)", expression) for word in re.split(r"\W+", words)}
    for name, chosen in re.findall(r"\b(adapterhub_\w+|up|kube_\w+)(?:\{(.*?)\})?(?=[\[\s)]|$)", expression, re.DOTALL):
        yield name, set(re.findall(r"(\w+)(?:=~|!=|=)\"", chosen or "")) | (grouped if "adapterhub_" in name else set())


def test_every_expression_asks_for_metrics_and_labels_that_a_server_exports(server: Running) -> None:
    known = exported(server)
    expressions = [*EXPRESSIONS, *(rule["expr"] for rule in ALERTS)]

    found = [(name, labels) for expression in expressions for name, labels in asked(expression)]

    assert len(found) >= len(expressions)
    assert {name for name, _ in found} - known.keys() == OTHERS
    assert [one for one in found if not one[1] <= known.get(one[0], set()) | OF_PROMETHEUS] == []


def test_every_counter_of_a_server_is_on_the_dashboard(server: Running) -> None:
    shown = {name for expression in EXPRESSIONS for name, _ in asked(expression)}
    ours = {name.rpartition("_bucket")[0] or name for name in shown}
    text = server.get("/metrics").text

    assert set(re.findall(r"^# TYPE (adapterhub_\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE)) - ours == set(
        re.findall(r"^# TYPE (\w+_created) gauge$", text, re.MULTILINE)
    )


def test_the_panels_of_the_dashboard_fit_together() -> None:
    panels, variables = DASHBOARD["panels"], {one["name"] for one in DASHBOARD["templating"]["list"]}
    places = [panel["gridPos"] for panel in panels]

    def overlap(one: Any, other: Any) -> bool:
        return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))

    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    assert not any(overlap(*pair) for pair in combinations(places, 2))
    assert all(place["x"] + place["w"] <= 24 for place in places)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval"} == variables


def test_the_alerts_name_the_jobs_that_are_scraped() -> None:
    jobs = {one["job_name"] for one in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]}

    assert {job for rule in ALERTS for job in re.findall(r'\bjob="([^"]+)"', rule["expr"])} <= jobs


# ------------------------------------------------------------ by Prometheus' own programs
def series(name: str, values: str, **labels: str) -> dict[str, str]:
    chosen = ",".join(f'{key}="{value}"' for key, value in {"job": JOB, "instance": "a", **labels}.items())
    return {"series": f"{name}{{{chosen}}}", "values": values}


def listings(slow: int) -> list[dict[str, str]]:
    """A hundred listings a minute, of which so many take more than a second."""
    of = {"method": "GET", "route": "/api/models"}
    bounds = {"0.1": 100 - slow, "1.0": 100 - slow, "2.5": 100, "+Inf": 100}
    return [series("adapterhub_request_seconds_bucket", f"0+{each}x60", le=le, **of) for le, each in bounds.items()]


def answers(failed: int) -> list[dict[str, str]]:
    each = {"200": 1000 - failed, "503": failed}
    about = {"method": "GET", "route": "/api/models"}
    return [
        series("adapterhub_requests_total", f"0+{more}x60", status=status, **about) for status, more in each.items()
    ]


CASES: dict[str, tuple[list[dict[str, str]], list[dict[str, str]]]] = {
    "RegistryServerAway": ([series("up", "0x60"), series("up", "1x60", instance="b")], [series("up", "1x60")]),
    "RegistryAway": ([series("up", "0x60")], [series("up", "0x60"), series("up", "1x60", instance="b")]),
    "RegistryFails": (answers(20), answers(5)),
    "RegistryListingsSlow": (listings(5), listings(0)),
    "RegistryBusy": (
        [series("adapterhub_requests_running", "510x60")],
        [series("adapterhub_requests_running", "490x60")],
    ),
    "RegistryRefusesClients": (
        [series("adapterhub_refused_total", "0+90x60", kind="token")],
        [series("adapterhub_refused_total", "0+30x60", kind="token")],
    ),
    "RegistryBackupOld": (
        [
            {
                "series": 'kube_cronjob_status_last_successful_time{cronjob="adapterhub-registry-backup"}',
                "values": "-1e6x90",
            }
        ],
        [
            {
                "series": 'kube_cronjob_status_last_successful_time{cronjob="adapterhub-registry-backup"}',
                "values": "0x90",
            }
        ],
    ),
}
"""By alert: series past its bound, and within."""


def test_each_alert_fires_past_its_bound_and_not_within(tmp_path: Path) -> None:
    tests = []
    for name, pair in CASES.items():
        minutes = 80 if name == "RegistryBackupOld" else 40
        for fires, given in zip((True, False), pair, strict=True):
            ask = f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)'
            expected = [{"labels": "{}", "value": 1 if fires else 0}]
            test = {"expr": ask, "eval_time": f"{minutes}m", "exp_samples": expected}
            tests.append(
                {"name": f"{name} {fires}", "interval": "1m", "input_series": given, "promql_expr_test": [test]}
            )
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(MONITORING / "alerts.yml")], "tests": tests}))

    checked = subprocess.run([needs("promtool"), "check", "rules", MONITORING / "alerts.yml"], check=False)
    done = subprocess.run([needs("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)

    assert checked.returncode == 0
    assert CASES.keys() == {rule["alert"] for rule in ALERTS}
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.exhaustive
def test_prometheus_scrapes_a_server_and_answers_every_expression(server: Running, tmp_path: Path) -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (tmp_path / "token").write_text(server.registry.tokens.create("prometheus", "read", namespaces=["*"]))
    (tmp_path / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text())
    for one in config["scrape_configs"]:
        one |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
        one["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config | {"global": {"evaluation_interval": "1s"}}))
    (port,) = free_ports(1)
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    command = [
        needs("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("w") as out:
        process = subprocess.Popen([*command, f"--storage.tsdb.path={tmp_path / 'data'}"], stdout=out, stderr=out)

    def query(expression: str) -> list[Any]:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=30).raise_for_status().json()
        return list(answer["data"]["result"])

    def scraped() -> bool:
        try:
            return len(query("up == 1")) == 2 and len(query("adapterhub_repos")) == 1
        except httpx.HTTPError:
            return False

    try:
        until = time.monotonic() + 120
        while not scraped():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        values = {"$job": JOB, "$instance": ".*", "$content": f"{JOB}-content", "$__rate_interval": "1m"}
        for expression in EXPRESSIONS:
            for name, value in values.items():
                expression = expression.replace(name, value)  # noqa: PLW2901 - step by step
            query(expression)
        assert query(f'max(adapterhub_repos{{job="{JOB}-content"}})')[0]["value"][1] == "1"
        rules = httpx.get(f"{url}/api/v1/rules", timeout=30).json()["data"]["groups"][0]["rules"]
        assert {rule["name"] for rule in rules} == CASES.keys()
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    finally:
        process.terminate()
        process.wait(60)
