"""The public Python functions behind each command. The reference page of the commands shows them; a test proves them.

Each function is paired with what it and the command both call: a step, or a method that stands below both. A command
that calls one method has no row: `tests/measure_house.py` reads the method off its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_STEPS: Final = "adapterhub.api.steps"
_REMOVE: Final = {
    "Library.remove": f"{_STEPS}.finding:installed_builds",
    "Library.uninstall": f"{_STEPS}.finding:installed_builds",
    "Project.uninstall": "adapterhub.projects.saving:take_out",
}
_INFO: Final = {
    "Library.info": f"{_STEPS}.describing:installed_document",
    "Library.recipe": "adapterhub.weights.recipes.toml:recipe_of",
}

FUNCTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "base add": {"Library.add_base": f"{_STEPS}.upkeep:add_base"},
    "base set": {"Library.set_base_hub_id": f"{_STEPS}.upkeep:set_base_hub_id"},
    "base list": {"Library.list_bases": "adapterhub.library.store.index:IndexReader.bases"},
    "base export-record": {"Library.export_base_record": "adapterhub.library.bases.records:BaseRecord.exported"},
    "base compare": {"Library.compare_bases": "adapterhub.formats.base.fingerprint:compare"},
    "base family": {"Library.declare_family": "adapterhub.library.bases.families:Families.declare"},
    "base remove": {"Library.remove_base": f"{_STEPS}.upkeep:remove_base"},
    "base pin": {"Library.pin": "adapterhub.library.library:Library.pin"},
    "doctor": {
        "Library.doctor": "adapterhub.api.health:health",
        "Library.repair": f"{_STEPS}.upkeep:repair_store",
        "Library.rebuild_index": "adapterhub.library.find.sketching:rebuild_index",
    },
    "explain": {
        "explain": "adapterhub.trust.explaining:explain",
        "explanations": "adapterhub.trust.explaining:explanations",
    },
    "ui": {
        "Library.ui": "adapterhub.api.pages.serving:Ui",
        "Library.playground": "adapterhub.inference.playground:Playground",
    },
    "remove": _REMOVE,
    "uninstall": _REMOVE,
    "info": _INFO,
    "show": _INFO,
    "sbom": {
        "Library.sbom": f"{_STEPS}.describing:bill_of_adapters",
        "Project.sbom": f"{_STEPS}.describing:bill_of_lock",
    },
    "identify": {
        "Library.identify": "adapterhub.library.identify:identify",
        "Library.identify_files": "adapterhub.library.identify:identify_files",
    },
    "merge": {
        "Library.merge": "adapterhub.weights.catalogue:describe",
    },
    "run": {
        "Library.run": "adapterhub.inference.generation:write",
        "Library.draw": "adapterhub.inference.images:draw",
        "Library.attach": "adapterhub.inference.loader:attach",
        "Library.bank": "adapterhub.inference.bank:AdapterBank",
    },
    "export": {
        "Library.export_router": f"{_STEPS}.find.exporting:export_router",
        "Library.export": "adapterhub.core.arguments:path_of",
        "Project.requirements": "adapterhub.projects.builds:exact_spec",
    },
    "cache": {"Library.space": "adapterhub.library.upkeep.space:space_of"},
    "gc": {
        "Library.gc": "adapterhub.library.library:Library.gc",
        "Library.unused": "adapterhub.library.upkeep.space:unused_builds",
    },
}
"""By command, subcommands included: the public functions, each with what both call."""

WITHOUT: Final[Mapping[str, str]] = {
    "demo": "runs other commands and shows how they are typed",
    "completion": "prints a script for a shell",
    "serve": "starts another program and stays until it ends; a program starts vLLM with our plugin itself",
    "registry": "administers a server; its functions are those of the package `adapterhub_registry`",
}
"""Commands that are about the command line or another program, with the reason."""
