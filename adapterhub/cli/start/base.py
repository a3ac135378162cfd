"""`adapt base`: manage the frozen base models that adapters are made for, identified by their bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, SPEC, Session, common, remote_options
from adapterhub.cli.output import count_text
from adapterhub.core.arguments import Count
from adapterhub.core.errors import Incompatible

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.bases.records import BaseRecord, Bases


@click.group(cls=Group)
def base() -> None:
    """Register, list, show and compare base models.

    \b
    Example:
      adapt base add ./models/base-7b --as base-7b
    """


@base.command("add")
@click.argument("place", metavar="PATH|HUB_ID|RECORD")
@click.option("--as", "alias", metavar="NAME", help="Register under this name [default: from the folder or Hub id].")
@click.option("--threads", type=kind_of(Count), metavar="N", help="Hash with N threads [default: one per core].")
@click.option("--hub-id", metavar="ORG/NAME", help="Id of this model on the Hub, for the cards of its adapters.")
@click.option("--revision", metavar="REV", help="Use this branch, tag or commit of a Hub repository.")
@click.option("--accept", type=click.Choice(["likely"]), help="Let a copy stand for a source that only likely is one.")
@remote_options
@common
def add(session: Session, place: str, **options: Any) -> None:
    """Fingerprint a model by its weights and register it under a name.

    PATH is a folder with safetensors files: a model, or a pipeline of several (with a `model_index.json`), whose
    components become bases: `sdxl/unet`. It may also be one file that holds a pipeline in its authors' names
    (Stable Diffusion 1, 2, XL, Flux). HUB_ID (`org/model`) is read from the Hugging Face cache, or downloaded.
    Digests are cached by path, size, time and inode, so fingerprinting the same files again is instant. --hub-id is
    known for a HUB_ID and for a folder of the Hugging Face cache. RECORD is a `.json` file of
    `adapt base show --record`, for a machine without the weights.

    A quantised copy is linked to its source, if that is registered, and the other way round: adapters of one run on
    the other. Some formats (GPTQ, AWQ) leave a likeness and no proof; --accept likely takes it for this copy.

    \b
    Examples:
      adapt base add ./models/base-7b --as base-7b
      adapt base add ./models/base-7b --as base-7b --hub-id acme/base-7b
      adapt base add ./models/sdxl --as sdxl
      adapt base add sd_xl_base_1.0.safetensors --as sdxl-file
      adapt base add ./models/base-7b-awq --accept likely
      adapt base add base.json
    """
    options["accept"] = options["accept"] or ""
    record = session.opened.add_base(place, **options)

    def text() -> None:
        for each in (record, *record.parts()):
            count = count_text(each.hints.parameters or 0)
            session.out.line(f"{each.alias}  {each.fingerprint.weights}  {count} parameters")
        for name, value in _copy_pairs(record, session.opened.bases):
            session.out.line(f"  {name}: {value}")

    session.out.result(record.to_json, text)


@base.command("set")
@click.argument("which", metavar="BASE", type=BASE)
@click.option("--hub-id", required=True, metavar="ORG/NAME", help="Id of this model on the Hub.")
@common
def set_(session: Session, which: BaseSpec, hub_id: str) -> None:
    """Record the Hub id of a registered base, which the cards of its adapters then name.

    \b
    Example:
      adapt base set base-7b --hub-id acme/base-7b
    """
    record = session.opened.set_base_hub_id(which, hub_id)
    session.out.result(record.to_json(), lambda: session.out.line(f"{record.alias} is {record.hub} on the Hub"))


@base.command("list")
@common
def list_(session: Session) -> None:
    """List the registered bases.

    \b
    Example:
      adapt base list --json
    """
    found = session.index.list_bases()
    session.out.result(found.to_json, lambda: session.out.table(found.columns, found.cells, right=("parameters",)))


@base.command("show")
@click.argument("which", metavar="BASE", type=BASE)
@click.option("--record", "as_record", is_flag=True, help="Print its record, from which another machine registers it.")
@common
def show(session: Session, which: BaseSpec, as_record: bool) -> None:
    """Show the fingerprint, hints and tensors of a base.

    Its record is all that checks need to know of it, without its weights. On another machine, `adapt base add RECORD`
    registers the base from it, so that `add`, `verify` and `audit` compare adapters with the base there.

    \b
    Examples:
      adapt base show base-7b
      adapt base show base-7b --record > base.json
    """
    shown = session.opened.show_base(which)
    if as_record:
        session.out.result(lambda: json.loads(shown.exported), lambda: session.out.line(shown.exported.decode()))
    else:
        session.out.result(shown.to_json, lambda: session.out.fields(_pairs(shown.record, session.opened.bases)))


@base.command("compare")
@click.argument("first", metavar="A", type=BASE)
@click.argument("second", metavar="B", type=BASE)
@click.option("--full", is_flag=True, help="Compare every number, not a sample of each tensor.")
@common
def compare(session: Session, first: BaseSpec, second: BaseSpec, full: bool) -> None:
    """Compare two bases: same weights, another precision, a quantised copy, a fine-tune, or another model.

    A quantised copy is proved by its numbers: each code stands for an interval, and those of the source lie inside.
    It compares two pipelines as a whole, and component by component. Exits with code 0 when adapters fit both bases,
    with 11 when they do not.

    \b
    Examples:
      adapt base compare base-7b ./models/base-7b-fp8
      adapt base compare ./models/base-7b ./base-7b-Q4_K_M.gguf --full
    """
    found = session.opened.compare_bases(first, second, full=full)

    def text() -> None:
        session.out.line(found.label)
        for sentence in found.differences:
            session.out.line(f"  {sentence}")
        for name, part in (found.parts or {}).items():
            session.out.line(f"  {name}: {part.label}")

    session.out.result(found.to_json(), text)
    if not found.verdict.allows_attach:
        raise SystemExit(Incompatible.exit_code)


@base.command("family")
@click.argument("name", required=False)
@click.argument("members", metavar="[BASE]...", nargs=-1, type=BASE)
@click.option("--remove", "removes", is_flag=True, help="Forget the family; its bases stay.")
@common
def family(session: Session, name: str | None, members: tuple[BaseSpec, ...], removes: bool) -> None:
    """Declare bases of the same shapes to be one family, such as SDXL and its fine-tunes.

    An adapter made for one of them then runs on the others, with a note that names both. Without it, a fine-tune of
    the adapter's base is refused. The members count by their weights. Without NAME, lists the families.

    \b
    Examples:
      adapt base family sdxl sdxl pony illustrious
      adapt base family sdxl --remove
      adapt base family
    """
    found = session.opened.family(name, *members, remove=removes)

    def text() -> None:
        for each in found:
            listed = ", ".join(member.alias for member in each.members)
            session.out.line(f"{'removed ' if removes else ''}{each.name}  {listed}")

    session.out.result([each.to_json() for each in found], text)


@base.command("remove")
@click.argument("alias", metavar="BASE", type=BASE)
@common
def remove(session: Session, alias: BaseSpec) -> None:
    """Unregister a base. Keeps its files and the adapters made for it.

    \b
    Example:
      adapt base remove base-7b
    """
    gone = session.opened.remove_base(alias)
    session.out.result(gone.to_json(), lambda: session.out.line(f"removed {gone.record.alias}"))


@base.command("pin")
@click.argument("spec", type=SPEC)
@click.argument("which", metavar="BASE", type=BASE)
@common
def pin(session: Session, spec: AdapterSpec, which: BaseSpec) -> None:
    """Record the base of an adapter that has no fingerprint.

    \b
    Example:
      adapt base pin summarize base-7b
    """
    done = session.opened.pin(spec, which)
    told = f"pinned {done.build.full_name} {done.build.manifest.label} to {done.record.alias}"
    session.out.result(done.to_json(), lambda: session.out.line(told))


def _copy_pairs(record: BaseRecord, bases: Bases) -> list[tuple[str, object]]:
    """Describe the known source of a quantised copy."""
    facts = record.copy
    if facts is None:
        return []
    pairs: list[tuple[str, object]] = [("quantised", facts.form or "in a format that is not known here")]
    if facts.unknown:
        pairs.append(("not readable", facts.unknown))
    for link in facts.sources:
        source = bases.by_weights(link.source)
        found = link.comparison(facts.form or "")
        pairs.append(("copy of", f"{source.alias if source else link.source} ({found.label})"))
        pairs += [("because", sentence) for sentence in link.evidence]
    if not facts.sources:
        pairs.append(("copy of", "no registered base" + (", likely ones are accepted" if facts.accepts else "")))
    return pairs


def _pairs(record: BaseRecord, bases: Bases) -> list[tuple[str, object]]:
    hints, fingerprint = record.hints, record.fingerprint
    return [
        ("alias", record.alias),
        ("path", record.path),
        ("hub id", hints.hub_id),
        ("commit", hints.commit),
        ("model type", hints.model_type),
        ("dtype", hints.dtype),
        ("parameters", f"{hints.parameters:,}" if hints.parameters else None),
        ("tensors", len(record.tensors)),
        ("weights", fingerprint.weights),
        ("tensor set", fingerprint.tensors),
        ("structure", fingerprint.structure),
        ("files", fingerprint.files),
        ("components", ", ".join(f"{record.label}/{name}" for name in record.components) or None),
        ("tokenizer", hints.tokenizer_sha256),
        ("chat template", hints.chat_template_sha256),
        *_copy_pairs(record, bases),
    ]
