"""The export for programs that read PEFT folders with experts in their own layout, which `formats/dialects` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import UnsupportedAdapter, UsageProblem, shown
from adapterhub.formats.base.stacking import TRANSPOSED
from adapterhub.formats.dialects.experts import LAYOUTS, expert_pairs, laid_out
from adapterhub.formats.dialects.form import Form
from adapterhub.formats.dialects.single import single
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.inference.export import Adapter, Exported, Job
from adapterhub.library.intake.foreign import shapes_of


def form_of(adapter: Adapter) -> Form:
    """Return the adapter in the inner form."""
    factors = adapter.factors
    return Form(config=factors.config, config_bytes=factors.config_bytes, weights=factors.header, held=factors.weights)


def single_of(adapter: Adapter) -> Form:
    """Return the adapter with one pair for each layer of each expert.

    Raises:
        UnsupportedAdapter: its base has no single experts.
    """
    return single(form_of(adapter), shapes_of(adapter.record), adapter.facts.model_type, adapter.base_name)


def export_as(dialect: str, make: Callable[[Adapter], Form], job: Job, out: Path) -> Exported:
    """Write the folder `out` with what `make` makes of the adapter; no number changes.

    Raises:
        UsageProblem: a dtype was given; the numbers are the author's.
        UnsupportedAdapter: the dialect has no form for a part of the adapter; names each.
    """
    if job.dtype is not None:
        raise UsageProblem(
            f"the format `{dialect}` keeps the author's numbers and takes no `--dtype`", hint="drop `--dtype`"
        )
    with job.opened("peft", needs_base=False) as adapter:
        form = make(adapter)
        with new_folder(out, durable=True) as folder:
            job.step(0, 1)
            form.write(folder)
            job.step(1, 1)
        plain = form.config_bytes == adapter.factors.config_bytes
        notes = ["it has no stacked experts, so its files are the same for every version"] if plain else []
        return adapter.exported(out / CONFIG_FILE, out / WEIGHTS_FILE, notes=notes)


def export_layout(dialect: str, job: Job, out: Path) -> Exported:
    """Write the folder `out` with stacked experts in the layout of that name; errors as for `export_as`."""
    layout = next(one for one in LAYOUTS if one.name == dialect)

    def make(adapter: Adapter) -> Form:
        form, kind = form_of(adapter), adapter.facts.model_type
        if layout.is_turned and kind is None and expert_pairs(form):
            raise UnsupportedAdapter(
                f"`{shown(adapter.label, 200)}` cannot be exported as `{dialect}`; nothing was written",
                ["its base is unknown here, and the side of A depends on how it keeps its experts"],
                hint="name its base with `--base`",
            )
        return laid_out(form, layout, is_transposed=kind in TRANSPOSED)

    return export_as(dialect, make, job, out)
