"""`adapt info`: what an adapter on a server is, before a byte of its weights is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.output import size_text
from adapterhub.cli.params import BASE, SPEC, Session, common, rank_options, remote_options, wanted_from
from adapterhub.errors import RemoteUnreachable

if TYPE_CHECKING:
    from adapterhub.hub import Contents, Hub
    from adapterhub.resolve import Resolution
    from adapterhub.specs import AdapterSpec, BaseSpec
    from adapterhub.transfer import Release


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--base", type=BASE, help="The base, where the spec names none.")
@rank_options
@remote_options
@common
def info(
    session: Session,
    spec: AdapterSpec,
    base: BaseSpec | None,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Show what an adapter on a server is, from its manifest, its config and the first bytes of its weights.

    For an adapter that is installed, `adapt show` says more.

    \b
    Example:
      adapt info acme/legal-qa@base-7b --remote ours
    """
    from adapterhub.cli.choice import choose_release
    from adapterhub.install import RankBounds

    if offline:
        raise RemoteUnreachable(
            "`--offline` forbids asking a server", hint=f"`adapt show {spec.name}` asks the library"
        )
    from adapterhub.hub import Hub, HubNamespace

    library = session.library
    release, source, resolution = choose_release(
        session,
        library,
        spec,
        session.sources_of(spec, remote, token=token),
        wanted=wanted_from(library, spec, base),
        bounds=RankBounds(rank=rank, min_rank=min_rank, max_rank=max_rank),
    )
    hub = source.hub if isinstance(source, HubNamespace) else source
    assert isinstance(hub, Hub)  # no other place was asked
    contents = hub.contents(release)
    document = _document(release, contents, resolution, hub)
    session.out.result(document, lambda: session.out.fields(_fields(document)))


def _document(release: Release, contents: Contents, resolution: Resolution, hub: Hub) -> dict[str, Any]:
    manifest, weights = release.manifest, contents.weights
    document = manifest.to_json()
    document["base"].pop("samples", None)
    return document | {
        "name": release.full_name,
        "digest": release.digest,
        "remote": hub.endpoint,
        "repository": contents.repo,
        "commit": contents.commit,
        "yanked": release.yanked,
        "base_verdict": resolution.chosen.verdict.name,
        "size_bytes": manifest.size_bytes,
        "header": {
            "tensors": len(weights.tensors),
            "parameters": sum(spec.elements for spec in weights.tensors),
            "dtypes": sorted({spec.dtype for spec in weights.tensors}),
            "modules": len({spec.name.rpartition(".lora_")[0] for spec in weights.tensors if ".lora_" in spec.name}),
        },
        "config": {
            "peft_type": contents.config.peft_type,
            "r": contents.config.r,
            "lora_alpha": contents.config.lora_alpha,
            "base_model_name_or_path": contents.config.base_model_name_or_path,
        },
        "received_bytes": hub.received_bytes,
    }


def _fields(d: dict[str, Any]) -> list[tuple[str, object]]:
    hints = d["base"].get("hints", {})
    pairs: list[tuple[str, object]] = [
        ("name", d["name"]),
        ("version", d["version"]),
        ("yanked", d["yanked"]),
        ("digest", d["digest"]),
        ("repository", f"{d['repository']} on {d['remote']}"),
        ("commit", d["commit"]),
        ("base weights", d["base"].get("weights", "unknown")),
        ("base hub id", hints.get("hub_id")),
        ("base verdict", d["base_verdict"]),
        ("task", d.get("task")),
        ("description", d.get("description") or None),
        ("license", d.get("license")),
        ("method", ", ".join(d["method"]).lower()),
        ("rank", d.get("rank")),
        ("alpha", d.get("alpha")),
        ("target modules", ", ".join(d.get("target_modules", ())) or None),
        ("tensors", f"{d['header']['tensors']} ({', '.join(d['header']['dtypes'])})"),
        ("parameters", f"{d['header']['parameters']:,}"),
    ]
    pairs += [("file", f"{f['path']}  {size_text(f['size_bytes'])}  {f['sha256']}") for f in d["files"]]
    pairs.append(("read", f"{size_text(d['received_bytes'])} of {size_text(d['size_bytes'])}"))
    return pairs
