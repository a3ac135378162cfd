"""What a path holds: one model, or a pipeline of several in a folder or in one file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.core.digests import Progress
from adapterhub.formats.base.fingerprint import BaseFingerprint, fingerprint_tensors, samples_agree
from adapterhub.formats.base.folders import fingerprint_checkpoint, fingerprint_folder
from adapterhub.formats.base.hints import BaseHints, read_hints
from adapterhub.formats.base.weight_files import weight_files
from adapterhub.formats.diffusion.checkpoints import is_checkpoint
from adapterhub.formats.diffusion.components import COMPONENTS, DENOISERS, PIPELINE_FILE, component_folders
from adapterhub.formats.safetensors.facts import TensorFacts
from adapterhub.formats.safetensors.file import read_header
from adapterhub.formats.safetensors.header import BASE_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A model, or a pipeline, whose tensors then have their component in front; `components` has the hints of each."""

    fingerprint: BaseFingerprint
    hints: BaseHints
    tensors: tuple[TensorFacts, ...]
    components: Mapping[str, BaseHints]


Part = tuple[BaseFingerprint, BaseHints, tuple[TensorFacts, ...]]


def all_weight_files(place: Path) -> tuple[Path, ...]:
    """The weight files of the model or pipeline at `place`; raises as `look_at`."""
    if not (place / PIPELINE_FILE).is_file():
        return weight_files(place)
    return tuple(file for folder in component_folders(place).values() for file in weight_files(folder))


def look_at(
    place: str | os.PathLike[str],
    *,
    cache_folder: Path | None,
    threads: int | None = None,
    progress: Progress | None = None,
    hub_id: str | None = None,
    commit: str | None = None,
) -> Looked:
    """As `fingerprint_folder`; a folder with a `model_index.json`, or an original checkpoint, is read by components.

    Raises:
        BaseNotFound: there is no such folder or file.
        Malformed: no complete model or pipeline in safetensors, or a checkpoint of a kind that has no table.
        CouldNotTell: a file cannot be read, or changed while it was read.
    """
    place = Path(place)
    if (place / PIPELINE_FILE).is_file():
        parts = {
            name: fingerprint_folder(folder, cache_folder=cache_folder, threads=threads, progress=progress)
            for name, folder in component_folders(place).items()
        }
    elif place.suffix == ".safetensors" and is_checkpoint(read_header(weight_files(place)[0], limits=BASE_LIMITS)):
        parts = fingerprint_checkpoint(place, cache_folder=cache_folder, threads=threads, progress=progress)
    else:
        fingerprint, hints, tensors = fingerprint_folder(
            place, cache_folder=cache_folder, threads=threads, progress=progress, hub_id=hub_id, commit=commit
        )
        return Looked(fingerprint=fingerprint, hints=hints, tensors=tensors, components={})
    return _joined(place, parts, hub_id, commit)


def is_pipeline(base: BaseFingerprint) -> bool:
    """Whether every tensor has a component of a pipeline in front of its name."""
    return all(name.partition(".")[0] in COMPONENTS for name in base.samples)


def component_in(part: BaseFingerprint, whole: BaseFingerprint) -> str:
    """The component of the pipeline `whole` that the model `part` is, in any precision; "" for none, or several.

    By the sampled numbers of all tensors, as `compare` tells two precisions of one model.
    """
    sizes = Counter(name.partition(".")[0] for name in whole.samples)
    found = []
    for component in COMPONENTS:
        names = {name: pipeline_name(component, name) for name in part.samples}
        is_complete = len(names) == sizes[component] and whole.samples.keys() >= set(names.values())
        if is_complete and samples_agree(part, whole, names):
            found.append(component)
    return found[0] if len(found) == 1 else ""


def pipeline_name(component: str, name: str) -> str:
    """A component's tensor or module as a pipeline names it.

    The names are those of published files: transformers 5 saves CLIP's text encoder without `text_model.`.
    """
    is_bare = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"{component}.text_model.{name}" if is_bare and component not in DENOISERS else f"{component}.{name}"


def _joined(place: Path, parts: Mapping[str, Part], hub_id: str | None, commit: str | None) -> Looked:
    named = [
        replace(fact, name=pipeline_name(name, fact.name)) for name, (_, _, facts) in parts.items() for fact in facts
    ]
    hints = read_hints(place)
    known = {name: parts[name][1] for name in COMPONENTS if name in parts}
    return Looked(
        fingerprint=fingerprint_tensors(named),
        hints=replace(
            hints,
            parameters=sum(each.parameters or 0 for each in known.values()),
            hub_id=hub_id or hints.hub_id,
            commit=commit or hints.commit,
            model_type="pipeline",
        ),
        tensors=tuple(sorted(named, key=lambda fact: fact.name)),
        components=known,
    )
