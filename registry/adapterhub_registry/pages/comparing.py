"""The page of two builds beside each other: lists to choose them from, and what a comparison of their weights finds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sqlalchemy.engine import Connection

from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE
from adapterhub.pages.figures import compare_page as page_of_both
from adapterhub.pages.figures import contract_words, lists_of, names_of, verdict_badge, weights_of
from adapterhub.pages.page import PageQuery
from adapterhub.pages.values import Badge, Compared, ComparePage
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.trees import FileTree
from adapterhub_registry.errors import bad_request
from adapterhub_registry.pages.builds import Relation, SeenBuilds, ShownBuild, badges_of, find_build
from adapterhub_registry.pages.files import config_of
from adapterhub_registry.pages.head import contract_of, figures_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits
from adapterhub_registry.testing import results_on, rule_of
from adapterhub_registry.worker import files_of, open_build

if TYPE_CHECKING:
    from adapterhub.formats.derived.comparison import Comparison

MOST_LISTED: Final = 50

TIME_S: Final = 20.0
_SPEC: Final = "expected NAMESPACE/NAME, NAMESPACE/NAME==VERSION or NAMESPACE/NAME@REVISION"


def compare_page(here: Visit, asked: PageQuery) -> ComparePage:
    """Return the comparison that the query names; only the form if a build is missing.

    Raises:
        HttpRefusal: 503 while another comparison of these two runs, or many others.
    """
    registry, caller = here.registry, here.caller
    named, weights = names_of(asked), weights_of(asked)
    with registry.db.read() as connection:
        known = [find_build(registry, connection, caller, *_parsed(name)) if name else None for name in named]
        seen = SeenBuilds(registry, connection, caller)
        lists = tuple(lists_of(known, lambda anchor: _groups(seen, anchor), _choice))
        builds = [build for build in known if build is not None]
        if len(builds) < len(known):
            a, b = (build.name if build else "" for build in known)
            return ComparePage(a=a, b=b, lists=lists)
        files = [files_of(connection, build.row.digest) for build in builds]
        trees = [commits.tree_of(connection, build.repo.id, build.row.commit_id) for build in builds]
        configs = [config_of(registry, tree.find(CONFIG_FILE)) for tree in trees]
        contracts = [_contract(registry, tree) for tree in trees]
        records = [figures_of(connection, build.row).record for build in builds]
        verdicts = [_verdict(connection, build) for build in builds]
    sides = [
        Compared(
            name=build.name,
            label=f"{build.repo.full_name} {build.version[:12]}",
            choice=build.name,
            url=build.url,
            base=build.row.base_sha256,
            weight=weight,
            norm=record.norm if record else None,
            contract=contract,
            verdict=verdict,
            badges=badges_of(build),
        )
        for build, weight, record, contract, verdict in zip(builds, weights, records, contracts, verdicts, strict=True)
    ]

    def make() -> Comparison | str:
        try:
            return _comparison(registry, files, weights)
        except AdapterHubError as error:
            return f"{error.message}; `adapt compare` on your own machine says more"

    digests = tuple(build.row.digest for build in builds)
    # another reader may have other names for the same builds, so what is kept holds none
    found: Comparison | str = registry.once.result(digests, tuple(weights), make)
    return page_of_both(lists, sides, configs, found)


def _groups(seen: SeenBuilds, anchor: ShownBuild | None) -> dict[str, list[tuple[str, str]]]:
    """Return the builds to compare one with: those like it, its versions, and its base's newest adapters."""

    def choices(by: Relation, **given: object) -> list[tuple[str, str]]:
        return [_choice(one) for one in seen.builds(by, MOST_LISTED, **given)]

    if anchor is None:
        return {"Newest": choices("newest")}
    base = anchor.row.base_sha256
    alike = seen.alike(anchor.row) if base else []
    return {
        "Same base, most alike": [(one.name, _text(one.name)) for one in alike],
        "Other versions": choices("repo", repo=anchor.row.repo_id),
        "Same base": choices("base", base=base) if base else [],
    }


def _choice(build: ShownBuild) -> tuple[str, str]:
    return build.name, _text(build.name)


def _text(name: str) -> str:
    return name.replace("==", " ")


def _verdict(connection: Connection, build: ShownBuild) -> Badge | None:
    """Return the latest result by a key that the namespace knows."""
    rule = rule_of(connection, build.repo.namespace)
    for one in results_on(connection, build.repo, build.row.digest, rule):
        if one.signer is not None:
            return verdict_badge(one.said.verdict)
    return None


def _parsed(name: str) -> tuple[str, str]:
    repo, version = (*re.split("==|@", name, maxsplit=1), "")[:2]
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise bad_request(f"build `{shown(name)}`: {_SPEC}")
    return repo, version


def _comparison(registry: Registry, files: list[dict[str, str]], weights: list[float]) -> Comparison:
    from adapterhub.formats.derived.comparison import Weighted, compare_two
    from adapterhub.formats.derived.reading import AdapterUpdates

    pair = []
    for label, mine, weight in zip(("first", "second"), files, weights, strict=True):
        opened = open_build(mine, registry.blobs)
        updates = AdapterUpdates(opened.config, opened.file, opened.read)
        pair.append(Weighted(label=label, weight=weight, updates=updates))
    return compare_two(pair, time_s=TIME_S)


def _contract(registry: Registry, tree: FileTree) -> tuple[str, ...]:
    """Describe the content of a build's contract, in a few words."""
    if tree.find(CONTRACT_FILE) is None:
        return ()
    contract = contract_of(registry, tree)
    if contract is None:
        return ("its contract cannot be read",)
    return contract_words(contract)
