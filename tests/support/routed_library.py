"""A library with tiny adapters whose contracts hold the prompts of real tasks, and with the model that compares texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.find.meaning import model_place
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from tests.support.contracts import small_contract
from tests.support.real_encoder import minilm_base
from tests.support.route_tasks import BUILT, prompts_by_task
from tests.support.tiny import make_adapter

TASKS = ("order-json", "legal-qa", "recipe")


def add_task(library: Library, base: BaseRecord, folder: Path, name: str, prompts: list[str]) -> Installed:
    """An adapter with a contract of these prompts."""
    made = make_adapter(folder, seed=len(name))
    whole = small_contract()
    goldens = tuple(replace(whole.goldens[0], id=f"golden-{at}", asked=text) for at, text in enumerate(prompts))
    (made / CONTRACT_FILE).write_bytes(replace(whole, goldens=goldens, expects=(), leave_alone=()).to_bytes())
    return library.add(made, Description(name=parse_name(name), version="1.0.0"), base=base).build


def fill(library: Library, base: BaseRecord, folder: Path) -> dict[str, Installed]:
    """The adapters of three tasks, and the model, by a link."""
    place = model_place(library.root)
    place.parent.mkdir(parents=True)
    place.symlink_to(minilm_base())
    return {name: add_task(library, base, folder / name, name, list(prompts_by_task()[name][:BUILT])) for name in TASKS}
