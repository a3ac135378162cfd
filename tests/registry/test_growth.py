"""What a page of each route costs does not grow with the registry, and no list goes through a table.

SQLite counts the steps of its machine, so that no clock decides. PostgreSQL tells the plan of each statement that runs
(`auto_explain`): without leave to go through tables, a plan that does has no index. The bounds of lists are small here,
as the registries are.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from adapterhub_registry.api.hub import repositories
from adapterhub_registry.app import create_app, open_registry
from adapterhub_registry.database.postgresql import look_up_by_index
from adapterhub_registry.database.schema import metadata
from adapterhub_registry.pages import administering, builds, facets, people
from adapterhub_registry.repos import bases, search
from adapterhub_registry.settings import load_settings
from sqlalchemy import event
from starlette.testclient import TestClient

from tests.bench.registry_filling import Shape, fill, store_small_files
from tests.registry.asked_at_size import Asked, requests, tokens_in
from tests.registry.shared_servers import Postgres

SIZES: Final = (8000, 32_000)
REPEATS: Final = 2
MOST: Final = 0.7
"""The greatest exponent: a search reads as many rows as the root of the number of repositories, and chance adds some."""
FEW_STEPS: Final = 40_000
"""Fewer steps are no table of builds, of which the larger registry has 32,000."""
EVERY: Final = 20
"""One tick is so many steps of SQLite's machine."""
BOUNDS: Final = (
    (search, "FEW", 20),
    (search, "_PAGE", 1),
    (builds, "MOST_READ", 20),
    (facets, "MOST_COUNTED", 20),
    (facets, "MOST_WITH_WORDS", 20),
    (bases, "MOST_COUNTED", 20),
    (repositories, "TAGS_PAGE", 10),
    (repositories, "FILES_PAGE", 10),
    (repositories, "REPOSITORIES_PAGE", 10),
    (administering, "_USERS", 10),
    (administering, "_LOG_LINES", 10),
    (administering, "_NAMESPACES", 2),
    (people, "_ROWS", 10),
)
_BOTH: Final = "many meet each condition and few meet both, so a page passes over rows of one"
GROWS: Final[dict[str, str]] = {
    "search page: relevance and task by relevance": "few hold the words and have the task, until a ranking is full",
    "feed of a rare base": "the releases of a base, until these are many",
    "all of many versions": "a page has 1,000 versions, more than there are here",
    "adapters: signed and license": _BOTH,
    "search page: signed and method by changed": _BOTH,
    "search page: signed and method by downloads": _BOTH,
}
"""By name: why a request costs more in a larger registry."""
_PLAIN: Final = "its answer is the same whatever the registry holds"
_NOTHING: Final = "it answers that there is nothing"
_GIT: Final = "git asks for all refs of a repository, and so does a clone"
_LIKE: Final = "its index has tests of its own"
_LOG: Final = "some hashes by their places, as many as the logarithm of the log's length; `test_log` has its proofs"
NOT_ASKED: Final = {
    "/api/adapt/v1/openapi.json": _PLAIN,
    "/api/adapt/v1/healthz": _PLAIN,
    "/api/adapt/v1/webhooks/{number}/deliveries": "the last deliveries of one webhook, by an index",
    "/api/adapt/v1/adapters/{namespace}/{name}/{version}/similar": _LIKE,
    "/api/adapt/v1/{rest:path}": _NOTHING,
    "/livez": _PLAIN,
    "/api/models/{namespace}/{name}/xet-write-token/{revision:path}": "it reads a repository, as `may I write` does",
    "/_xet/{scope}/{epoch}/v1/chunks/{prefix}/{chunk}": _NOTHING,
    "/api/agent-harnesses": _PLAIN,
    "/api/telemetry/{topic:path}": _PLAIN,
    "/api/models/{namespace}/{name}/user-access-request/{status}": "the requests of one repository, in pages",
    "/api/models/{namespace}/{name}/tree/{rev}/{path:path}": "a folder of the tree of `tree`",
    "/api/models/{namespace}/{name}/{part}/{rest:path}": _NOTHING,
    "/api/models/{namespace}/{name}/{part}": _NOTHING,
    "/api/{kind}/{rest:path}": _NOTHING,
    "/api/{kind}": _NOTHING,
    "/{name}/{below}/{last}/resolve/{rest:path}": _NOTHING,
    "/{name}/resolve/{rest:path}": _NOTHING,
    "/{namespace}/{name}/info/refs": _GIT,
    "/models/{namespace}/{name}/info/refs": _GIT,
    "/_lfs/file/{token}": "one file, whose link names it",
    "/static/pages/{name}": _PLAIN,
    "/api/adapt/v1/publishers": "the few that administrators set up",
    "/api/adapt/v1/adapters/{namespace}/{name}/versions/{version}/attestation": _LOG,
    "/api/adapt/v1/tlog/checkpoint": _LOG,
    "/api/adapt/v1/tlog/consistency": _LOG,
    "/api/adapt/v1/tlog/of/{namespace}/{name}/checkpoint": _LOG,
    "/api/adapt/v1/tlog/of/{namespace}/{name}/consistency": _LOG,
    "/api/adapt/v1/tlog/of/{namespace}/{name}/tile/{tile:path}": _LOG,
    "/api/adapt/v1/tlog/releases/{namespace}/{name}/{version}": _LOG,
    "/api/adapt/v1/tlog/tile/{tile:path}": _LOG,
    "/api/adapt/v1/log/export": "all that match, in pages of `log`; `test_people_routes` counts its statements",
    "/join": "one invitation, by the digest of its code",
    "/api/adapt/v1/accounts": "the people of the issuer, in pages, by the names of users",
    "/sign-in": _PLAIN,
    "/sign-in/device": _PLAIN,
    "/sign-in/oidc": "it reads nothing",
    "/sign-in/oidc/done": "one sign-in, by keys",
    "/sign-out": _PLAIN,
    "/{namespace}/{name}/picture/{revision}/{path:path}": "one file, as `raw file` is",
    "/{namespace}/{name}/tree/{revision}/{path:path}": "a folder of the tree of `tree page`",
}
"""By route: why it is not asked here."""


@dataclass
class Counted:
    """A registry of a size, and what SQLite does for it."""

    shape: Shape
    client: TestClient
    tokens: dict[str, str]
    ticks: int = 0
    statements: list[str] = field(default_factory=list)

    def ask(self, one: Asked) -> tuple[int, int]:
        """The status of the answer, and the steps for it."""
        self.ticks, headers = 0, {}
        self.statements.clear()
        if one.who != "anyone":
            headers["Authorization"] = f"Bearer {self.tokens[one.who]}"
        answer = self.client.request(one.method, one.path(), headers=headers, follow_redirects=False)
        return answer.status_code, self.ticks * EVERY


@dataclass
class Planned:
    """A registry on PostgreSQL, and the plans of the statements that it ran."""

    client: TestClient
    tokens: dict[str, str]
    plans: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, one: Asked) -> int:
        """The status of the answer."""
        headers = {} if one.who == "anyone" else {"Authorization": f"Bearer {self.tokens[one.who]}"}
        return self.client.request(one.method, one.path(), headers=headers, follow_redirects=False).status_code


@contextlib.contextmanager
def planning(folder: Path, database: str, shape: Shape) -> Iterator[Planned]:
    """A filled registry on PostgreSQL, whose connections tell plans."""
    settings = load_settings(folder, database_url=database, derives=False)
    registry = open_registry(settings)
    fill(registry.db, shape, store_small_files(registry.blobs))
    tokens = tokens_in(registry)
    found = Planned(TestClient(create_app(settings, registry), base_url="http://registry"), tokens)

    def tell(notice: Any) -> None:
        _, _, plan = notice.message_primary.partition("plan:\n")
        if plan:
            found.plans.append(json.loads(plan))

    def on_connect(connection: Any, _record: object) -> None:
        connection.execute("LOAD 'auto_explain'")
        for name, value in TOLD.items():
            connection.execute(f"SET {name} = {value}")
        connection.add_notice_handler(tell)

    event.listen(registry.db.engine, "connect", on_connect)
    look_up_by_index(registry.db.engine)
    yield found
    registry.db.close()


@contextlib.contextmanager
def counting(folder: Path, builds: int) -> Iterator[Counted]:
    """A filled registry on SQLite whose connections count."""
    settings = load_settings(folder, derives=False)
    registry = open_registry(settings)
    shape = Shape(builds)
    fill(registry.db, shape, store_small_files(registry.blobs))
    tokens = tokens_in(registry)
    client = TestClient(create_app(settings, registry), base_url="http://registry")
    found = Counted(shape, client, tokens)

    def tick() -> None:
        found.ticks += 1

    def on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.set_progress_handler(tick, EVERY)
        connection.set_trace_callback(found.statements.append)

    event.listen(registry.db.engine, "connect", on_connect)
    registry.db.engine.dispose()
    yield found
    registry.db.close()


@pytest.fixture(scope="module")
def small_bounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for module, name, value in BOUNDS:
            patched.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def registries(small_bounds: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Counted]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(counting(tmp_path_factory.mktemp("filled"), size)) for size in SIZES]


def test_every_route_that_reads_is_asked() -> None:
    asked = {one.route for one in requests(Shape(SIZES[0]))}
    with tempfile.TemporaryDirectory() as folder:
        registry = open_registry(load_settings(Path(folder), derives=False))
        routes = create_app(registry.settings, registry).router.routes
        registry.db.close()
    reading = {str(route.path) for route in routes if {"GET", "HEAD"} & set(getattr(route, "methods", ()) or ())}

    assert sorted(reading - asked - NOT_ASKED.keys()) == []
    assert sorted((asked | NOT_ASKED.keys()) - reading) == []


@pytest.mark.slow
def test_a_request_costs_as_much_in_a_registry_of_four_times_the_builds(registries: list[Counted]) -> None:
    costs: dict[str, list[float]] = {}
    for registry in registries:
        for one in requests(registry.shape):
            found = [registry.ask(one) for _ in range(REPEATS + 1)][1:]  # the first one prepares statements
            assert {status for status, _ in found} <= {200, 302, 404}, one.name
            costs.setdefault(one.name, []).append(statistics.mean([steps for _, steps in found]))
    times = SIZES[1] / SIZES[0]
    grown = {
        name: round(math.log((more + 1) / (less + 1), times), 2)
        for name, (less, more) in costs.items()
        if more > FEW_STEPS and more > less * times**MOST
    }

    assert {name: exponent for name, exponent in grown.items() if name not in GROWS} == {}


@pytest.mark.slow
def test_no_request_goes_through_a_table_that_grows(registries: list[Counted]) -> None:
    registry, scans = registries[0], {}
    path = registry.client.app.state.registry.db.engine.url.database  # type: ignore[attr-defined]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA case_sensitive_like=ON")
        for one in requests(registry.shape):
            registry.ask(one)
            for statement in [text for text in registry.statements if text.startswith(("SELECT", "WITH"))]:
                plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
                if found := scans_in(plan, statement):
                    scans[one.name] = f"{found} of {statement}"

    assert scans == {}


def scans_in(plan: list[str], statement: str) -> list[str]:
    """The steps that go through all rows of a table that grows: none where a page ends it, in the order of an index."""
    if " LIMIT " in statement and not any(step.startswith("USE TEMP B-TREE") for step in plan):
        return []
    return [step for step in plan if (found := SCAN.match(step)) is not None and found[1] in GROWING]


@pytest.mark.slow
def test_no_request_goes_through_a_table_of_postgresql(small_bounds: None, tmp_path: Path, pg: Postgres) -> None:
    shape, scans, unread = Shape(SIZES[0]), {}, set()
    with planning(tmp_path, pg.new_database(), shape) as registry:
        for one in requests(shape):
            registry.plans.clear()
            assert registry.ask(one) in {200, 302, 404}, one.name
            unread |= {one.name} - {one.name for _ in registry.plans}
            for told in registry.plans:
                if found := list(read_whole(told["Plan"], most=2 * shape.repos)):
                    scans[one.name] = f"{found} of {told['Query Text']}"

    assert scans == {}
    assert len(unread) < 10  # most read the database, and tell so


def read_whole(node: dict[str, Any], *, most: int, ends_early: bool = False) -> Iterator[str]:
    """The steps of a plan that read all rows of a table that grows: none where a page ends them.

    An index without a condition is one, too, beyond `most` rows: a plan for fewer would sort them all.
    """
    kind, table = node["Node Type"], node.get("Relation Name", "")
    is_whole = kind == "Seq Scan" or (kind in BY_INDEX and "Index Cond" not in node and node["Plan Rows"] > most)
    if is_whole and not ends_early and table in GROWING:
        yield f"{kind} {table} {node.get('Index Name', '')}"
    ends_early = kind == "Limit" or (ends_early and kind not in COLLECTING)
    for below in node.get("Plans", ()):
        # a subquery for each row runs to its own end
        yield from read_whole(below, most=most, ends_early=ends_early and below["Parent Relationship"] != "SubPlan")


TOLD: Final = {
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin"), "off"),
}
BY_INDEX: Final = frozenset({"Index Scan", "Index Only Scan"})
COLLECTING: Final = frozenset({"Sort", "Aggregate", "Hash", "Materialize", "WindowAgg"})
SCAN: Final = re.compile(r"SCAN (\w+?)(?:_[0-9]+)?(?: USING (?:COVERING )?INDEX \w+)?$")
BOUNDED: Final = frozenset({"facts", "refusals", "webhooks", "test_rules", "test_keys", "publishers", "abouts"})
GROWING: Final = frozenset(metadata.tables) - BOUNDED
