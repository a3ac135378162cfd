"""Two builds beside each other: configs, updates, the forecast of their merge, and contracts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE
from adapterhub.pages.changes import changed
from adapterhub.pages.figures import compared, contract_words, weight_of, with_commands
from adapterhub.pages.page import Asked
from adapterhub.pages.values.weights import Compared, ComparePage
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.trees.trees import Tree
from adapterhub_registry.derived.worker import files_of, open_build
from adapterhub_registry.errors import bad_request
from adapterhub_registry.pages.adapter import contract_of
from adapterhub_registry.pages.builds import badges_of, find_build, record_of
from adapterhub_registry.pages.commit import config_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits

if TYPE_CHECKING:
    from adapterhub.formats.derived.comparison import Comparison

TIME_S: Final = 20.0
_SPEC: Final = "expected NAMESPACE/NAME, NAMESPACE/NAME==VERSION or NAMESPACE/NAME@REVISION"


def compare_page(here: Visit, asked: Asked) -> ComparePage:
    """The comparison that the query asks for; the form alone without both builds.

    Raises:
        Refusal: 503 while another comparison of these two runs, or many others.
    """
    registry, caller = here.registry, here.caller
    named = [asked.query.get(key, "").strip() for key in "ab"]
    weights = [weight_of(asked.query.get(key, "")) for key in ("wa", "wb")]
    if not all(named):
        return ComparePage(a=named[0], b=named[1])
    with registry.db.read() as connection:
        builds = [find_build(registry, connection, caller, *_parsed(name)) for name in named]
        files = [files_of(connection, build.row.digest) for build in builds]
        trees = [commits.tree_of(connection, build.repo.id, build.row.commit_id) for build in builds]
        configs = [config_of(registry, tree.find(CONFIG_FILE)) for tree in trees]
        contracts = [_contract(registry, tree) for tree in trees]
        records = [record_of(connection, build.row)[2] for build in builds]
    page = ComparePage(
        a=named[0],
        b=named[1],
        sides=tuple(
            Compared(
                name=build.name,
                url=build.url,
                weight=weight,
                norm=record.norm if record else None,
                contract=contract,
                badges=badges_of(build),
            )
            for build, weight, record, contract in zip(builds, weights, records, contracts, strict=True)
        ),
        config=tuple(changed(configs[0], configs[1])),
    )

    def make() -> ComparePage:
        try:
            return compared(page, _comparison(registry, files, weights))
        except AdapterHubError as error:
            reason = f"{error.message}; `adapt compare` on your own machine says more"
            return replace(page, reason=reason)

    digests = tuple(build.row.digest for build in builds)
    made: ComparePage = registry.once.result(digests, tuple(weights), make)
    # another reader may have other names for the same builds, so the kept page holds none
    named_page = replace(made, a=page.a, b=page.b, sides=page.sides, config=page.config)
    return replace(named_page, forecast=with_commands(made.forecast, page.sides))


def _parsed(name: str) -> tuple[str, str]:
    repo, version = (*re.split("==|@", name, maxsplit=1), "")[:2]
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise bad_request(f"build `{shown(name)}`: {_SPEC}")
    return repo, version


def _comparison(registry: Registry, files: list[dict[str, str]], weights: list[float]) -> Comparison:
    from adapterhub.formats.derived.comparison import Weighted, compare_two  # noqa: PLC0415
    from adapterhub.formats.derived.reading import AdapterUpdates  # noqa: PLC0415 - numpy, for this page alone

    pair = []
    for label, mine, weight in zip(("first", "second"), files, weights, strict=True):
        opened = open_build(mine, registry.blobs)
        updates = AdapterUpdates(opened.config, opened.file, opened.read)
        pair.append(Weighted(label=label, weight=weight, updates=updates))
    return compare_two(pair, time_s=TIME_S)


def _contract(registry: Registry, tree: Tree) -> tuple[str, ...]:
    """What the contract of a build records, in a few words."""
    if tree.find(CONTRACT_FILE) is None:
        return ()
    contract = contract_of(registry, tree)
    if contract is None:
        return ("its contract cannot be read",)
    return contract_words(contract)
