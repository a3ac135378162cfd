"""What a contract is about: an installed build or a folder, its base, and the model in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.api.steps.finding import find_base
from adapterhub.core.arguments import path_of
from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.disk.files import digest_of_file, read_json, read_plain
from adapterhub.core.errors import BaseNotFound, DigestMismatch, UsageProblem
from adapterhub.core.specs import AdapterSpec, BaseSpec, names_folder
from adapterhub.distribution.choosing import find_installed
from adapterhub.distribution.finding import ensure_folder
from adapterhub.formats.contract.contract import IMAGE, Contract
from adapterhub.formats.contract.reader import MAX_BYTES, contract_in
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE, WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.projects.session import wanted_from
from adapterhub.trust.verify import ensure_undamaged, manifest_in
from adapterhub.trust.verify.checks.digests import differing
from adapterhub.trust.verify.subject import list_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.library.bases.records import BaseRecord, Bases
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed

_TASKS = {"SEQ_CLS": "classify", "FEATURE_EXTRACTION": "embed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractSubject:
    """An adapter to test or to record; `build` is None for a folder outside of the library."""

    folder: Path
    label: str
    manifest: Manifest | None
    build: Installed | None = None

    @property
    def name(self) -> str:
        """Its full name, or the folder."""
        return self.build.full_name if self.build else self.label

    @property
    def place(self) -> str | Path:
        """The spec of exactly this build, or the folder."""
        return self.build.spec if self.build else self.folder

    @property
    def base(self) -> BaseRef | None:
        """The base that it declares, or that was pinned for it."""
        return self.build.base if self.build else self.manifest.base if self.manifest else None

    @property
    def version(self) -> str:
        """Its version; empty for a plain folder."""
        return self.manifest.version if self.manifest else ""

    def weights(self) -> Digest:
        """The digest of its weights."""
        entry = self.manifest.file(WEIGHTS_FILE) if self.manifest else None
        return entry.sha256 if entry else digest_of_file(self.folder / WEIGHTS_FILE)[0]

    def contract(self) -> Contract | None:
        """Its contract; None without one.

        Raises:
            DigestMismatch: the file is not the one of the manifest.
            Malformed, CouldNotTell: as `contract_in`.
        """
        entry = self.manifest.file(CONTRACT_FILE) if self.manifest else None
        if entry is not None:
            where = self.folder / CONTRACT_FILE
            try:
                actual: str = digest_of(read_plain(where, max(MAX_BYTES, entry.size_bytes)))
            except OSError as error:
                actual = f"no file ({error.strerror})"
            if actual != entry.sha256:
                hint = "`adapt doctor --repair` mends what it can"
                raise DigestMismatch(str(where), expected=entry.sha256, actual=actual, hint=hint)
        return contract_in(self.folder)

    def ensure_undamaged(self) -> None:
        """Hash every file, for a caller that loads none of them.

        Raises:
            DigestMismatch: one is not the file of the manifest.
        """
        ensure_undamaged(differing(list_folder(self.folder), self.manifest), f"{self.folder}/")

    def kind(self) -> str | None:
        """The kind of contract that its task calls for: `classify`, `embed`, or None for one that writes text."""
        try:
            value = read_json(self.folder / CONFIG_FILE)
        except (OSError, ValueError):
            return None
        return _TASKS.get(str(value.get("task_type"))) if isinstance(value, dict) else None


def subject_of(library: Library, text: str) -> ContractSubject:
    """The adapter that a spec or a folder names.

    Raises:
        AdapterNotFound, NoCompatibleRelease, SpecError: no installed build has the name, or none fits.
        NotFound: there is no such folder.
    """
    if names_folder(text):
        folder = path_of(text)
        ensure_folder(folder)
        return ContractSubject(folder=folder, label=text, manifest=manifest_in(folder))
    spec = AdapterSpec.parse(text)
    build, _ = find_installed(library, spec, wanted=wanted_from(library, spec, None))
    return subject_of_build(build)


def subject_of_build(build: Installed) -> ContractSubject:
    """An installed build."""
    return ContractSubject(folder=build.folder, label=build.spec, manifest=build.manifest, build=build)


def base_for(library: Library, subject: ContractSubject, on: BaseSpec | None) -> BaseRecord:
    """The base to ask on as its files are now: `on`, else the one that the adapter was made for.

    Raises:
        BaseNotFound: it is unknown, or its weights are not on this machine.
        BaseMismatch: its weights are not the registered ones.
    """
    declared = subject.base.fingerprint if subject.base else None
    record: BaseRecord | None
    if on is None and declared is None:
        record = find_base(library, [{subject.label: 1.0}], None)
    elif on is not None:
        record = library.bases.find(on).narrowed(declared=declared)
    else:
        assert declared is not None  # the base that only the user could know was found above
        record = library.bases.by_fingerprint(declared)
    if record is None or record.path is None or not record.path.is_dir():
        label = record.label if record else subject.base.label if subject.base else subject.label
        if record is not None and record.path is not None and record.path.is_file():
            raise BaseNotFound(
                f"base `{label}` is one file, which lacks the settings that a test needs",
                hint="register its folder with `adapt base add FOLDER --as NAME`, then pass `--base NAME`",
            )
        raise BaseNotFound(
            f"the weights of base `{label}` are not on this machine",
            hint="register a local copy with `adapt base add PATH --as NAME`, then pass `--base NAME`",
        )
    return library.bases.current(record)


class Models:
    """The base in memory: the last one that was loaded, so that builds of one base load it once.

    One whose files have changed since is loaded again.
    """

    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self._key: tuple[Any, ...] = ()
        self._held: tuple[Any, Any] | None = None

    def load(
        self,
        record: BaseRecord,
        dtype: str,
        load_in: str | None,
        *,
        labels: int | None = None,
        is_encoder: bool = False,
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base, with an untrained head for so many labels, or the encoder alone."""
        from adapterhub.inference.loader.text import load_base

        assert record.path is not None  # see `base_for`
        path = record.path
        return self._kept(
            (self._bases.state(record), path, dtype, load_in, labels, is_encoder),
            lambda: load_base(path, dtype=dtype, load_in=load_in, labels=labels, is_encoder=is_encoder),
        )

    def pipeline(self, record: BaseRecord, dtype: str) -> Any:  # noqa: ANN401 - of diffusers
        """A base that draws images."""
        from adapterhub.inference.images import load_pipeline

        assert record.path is not None  # see `base_for`
        path = record.path
        return self._kept((self._bases.state(record), path, dtype), lambda: (load_pipeline(path, dtype=dtype), None))[0]

    def _kept(self, key: tuple[Any, ...], load: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        if self._held is None or key != self._key:
            self._held = None  # two bases may not fit
            self._held = load()
            self._key = key
        return self._held


@contextlib.contextmanager
def model_of(
    library: Library,
    subject: ContractSubject,
    record: BaseRecord,
    models: Models,
    *,
    dtype: str,
    load_in: str | None,
    kind: str | None,
) -> Iterator[tuple[Any, Any, str]]:
    """The base with the adapter on it, the tokenizer, and how the bases compare in one word.

    For the kind `image`, it is an `AdaptedPipeline`, which has its tokenizers in itself.

    Raises:
        UsageProblem: a pipeline is needed and the base is none, or `load_in` is given for one.
        BaseMismatch, UnsupportedAdapter, RefusedAdapter, DigestMismatch: as `attach`.
    """
    from adapterhub.inference.classification import kinds_of
    from adapterhub.inference.loader import attach

    adapter = subject.build or subject.folder
    if kind == IMAGE:
        from adapterhub.inference.contracts.images import AdaptedPipeline

        if load_in is not None:
            raise UsageProblem("`--load-in` packs a model of texts, and this base draws images", hint="omit it")
        whole = library.bases.current(library.bases.whole(record))
        pipeline, named = models.pipeline(whole, dtype), BaseSpec.parse(whole.alias or str(whole.path))
        with attach(pipeline, adapter, library=library, base=named) as attached:
            yield AdaptedPipeline(pipeline=pipeline, attached=attached), None, attached.adapters[0].verdict.name
        return
    named = BaseSpec.parse(record.alias or str(record.path))
    labels = kinds_of(library, [subject.place], named, allow_base_mismatch=False).labels if kind != "embed" else None
    base, tokenizer = models.load(record, dtype, load_in, labels=labels, is_encoder=kind == "embed")
    with attach(base, adapter, library=library, base=named) as attached:
        yield attached.model, tokenizer, attached.adapters[0].verdict.name
