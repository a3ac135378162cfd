"""`adapt diff`: compare two adapters byte for byte, setting for setting, and by their updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.sides import sides_of
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.params import BASE, Session, common, remote_options
from adapterhub.cli.output import json_text
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from adapterhub.cli.output import Output
    from adapterhub.core.specs import BaseSpec
    from adapterhub.weights.compare.difference import Difference, Field, Weights

_FEW = 5


@click.command()
@click.argument("first", metavar="SPEC|FOLDER", shell_complete=complete_spec_or_folder)
@click.argument("second", metavar="SPEC|FOLDER", shell_complete=complete_spec_or_folder)
@click.option("--base", type=BASE, help="Use this base for specs that name none.")
@click.option("--modules", is_flag=True, help="Show every module, not only those that differ most.")
@remote_options
@common
def diff(
    session: Session,
    first: str,
    second: str,
    base: BaseSpec | None,
    modules: bool,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Show the exact differences between two adapters: files, config, manifest and updates.

    The relative difference is the Frobenius norm of the difference of both updates, divided by the norm of the first.
    Updates that are equal but factored or ordered differently count as the same. To compare directions, signs and
    spectra of unrelated adapters, use `adapt compare`.

    What is not installed is read from the server that `adapt install` would ask; with --remote, every SPEC is read from
    that server. The library does not change.

    \b
    Examples:
      adapt diff legal-qa==1.0 legal-qa==1.1
      adapt diff legal-qa ./out/legal-qa --modules
      adapt diff acme/legal-qa==1.0 acme/legal-qa==1.1 --remote ours
    """
    from adapterhub.weights.compare.difference import differ

    asked = sides_of(
        session,
        (first, second),
        base,
        library=session.project_library,
        remote=remote,
        token=token,
        offline=offline,
        bars=session.out,
    )
    with asked as sides, session.out.progress("diff", None, unit="modules") as progress:
        difference = differ(sides[0], sides[1], progress)

    def document() -> dict[str, Any]:
        named = [
            {
                "label": side.label,
                "digest": side.manifest.digest if side.manifest else None,
                "path": None if side.origin else str(side.folder),
                "origin": side.origin or None,
            }
            for side in sides
        ]
        return {"first": named[0], "second": named[1], **difference.to_json()}

    session.out.result(document, lambda: _say(session.out, difference, modules=modules))
    for caveat in difference.weights.caveats if difference.weights else ():
        session.out.warn(caveat)


def _say(out: Output, difference: Difference, *, modules: bool) -> None:
    out.line(_summary(difference))
    rows: list[tuple[object, ...]] = [
        ("file", pair.path, pair.first or "absent", pair.second or "absent")
        for pair in difference.files
        if pair.first != pair.second
    ]
    rows += [_row("config", field) for field in difference.config]
    rows += [_row("manifest", field) for field in difference.manifest or ()]
    if difference.base.name not in ("SAME_WEIGHTS", "UNKNOWN"):
        rows.append(("base", difference.base.name, "", ""))
    if rows:
        out.line()
        out.table(("what", "name", "first", "second"), rows)
    if difference.weights is not None and not difference.weights.is_same:
        out.line()
        _say_weights(out, difference.weights, modules=modules)


def _summary(difference: Difference) -> str:
    weights = difference.weights
    if difference.is_identical:
        return "identical: every file has the same bytes"
    if weights is None:
        return "same update: weights and config are the same, other files differ"
    if weights.is_same:
        return "same update, stored differently: no module differs by more than rounding"
    compared, unlike = len(weights.modules) + len(weights.others), len(weights.unlike)
    if not compared:
        return "cannot compare the updates: no tensor has the same shape in both"
    relative = weights.whole.relative
    size = f"{relative:.4g} of the first's norm" if relative is not None else f"norm {weights.whole.apart:.4g}"
    return (
        f"the updates differ by {size} "
        f"(norms {weights.whole.first:.4g} and {weights.whole.second:.4g}, difference {weights.whole.apart:.4g})"
        + (f", without {unlike} modules of other shapes" if unlike else "")
    )


def _say_weights(out: Output, weights: Weights, *, modules: bool) -> None:
    changed = [one for one in (*weights.modules, *weights.others) if one.apart]
    shown_ones = changed if modules else changed[:_FEW]
    rows = [
        (one.name, _number(one.first), _number(one.second), _number(one.apart), _number(one.relative))
        for one in shown_ones
    ]
    columns = ("module", "norm 1", "norm 2", "difference", "relative")
    if rows:
        out.table(columns, rows, right=columns[1:])
    if len(changed) > len(shown_ones):
        out.line(f"and {len(changed) - len(shown_ones)} more that differ")
    same = len(weights.modules) + len(weights.others) - len(changed)
    if same:
        out.line(f"{same} are the same")
    for name, why in list(weights.unlike.items())[: None if modules else _FEW]:
        out.line(f"{shown(name)}: {shown(why, 200)}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _row(what: str, field: Field) -> tuple[object, ...]:
    return what, field.name, _text(field.first), _text(field.second)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json_text(value)
