"""The input of the checks: one adapter folder, read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.core.digests import Progress
from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import MalformedTensorFile
from adapterhub.formats.base.fingerprint import BaseFingerprint, fingerprint_tensors
from adapterhub.formats.manifest import WEIGHTS_FILE, Manifest
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.keys import AdapterKeys, sort_keys
from adapterhub.formats.safetensors.dtypes import DTYPES
from adapterhub.formats.safetensors.facts import TensorFacts
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.trust.verify.report import Facts
from adapterhub.trust.verify.scan import FLOATS, TensorNumbers, scan_weights

if TYPE_CHECKING:
    from adapterhub.trust.verify.listing import Listing


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An adapter folder whose config and header could be read. `base_tensors` are by name, None when no base is given.

    `base_named`: the caller knows the base or leaves it open, so a base path in the config does no harm. Digests and
    numbers, which take time, are read once, when a check first needs them.
    """

    folder: Path
    listing: Listing
    config: AdapterConfig
    weights: TensorFile
    base_tensors: Mapping[str, TensorFacts] | None = None
    base_fingerprint: BaseFingerprint | None = None
    manifest: Manifest | None = None
    base_named: bool = False
    progress: Progress | None = field(default=None, repr=False, compare=False)
    _known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def keys(self) -> AdapterKeys:
        """The tensors, sorted by what they are."""
        if "keys" not in self._known:
            self._known["keys"] = sort_keys(self.weights, self.config)
        found: AdapterKeys = self._known["keys"]
        return found

    @property
    def numbers(self) -> Mapping[str, TensorNumbers]:
        """The numbers of each tensor by its name; the first use reads and hashes the weights file.

        Raises:
            MalformedTensorFile: the file cannot be read or changed meanwhile.
        """
        if "numbers" not in self._known:
            try:
                self._known["numbers"] = scan_weights(self.held, self.weights, self.progress)
            except OSError as error:
                raise MalformedTensorFile(WEIGHTS_FILE, f"cannot be read: {error.strerror}") from None
        found: Mapping[str, TensorNumbers] = self._known["numbers"]
        return found

    @property
    def held(self) -> HeldFile:
        """The weights file, opened once: it returns only bytes that were checked."""
        return self.listing.taken[WEIGHTS_FILE].held

    @property
    def given_base(self) -> BaseFingerprint | None:
        """Fingerprint of the given base, computed from its tensors if only those are known."""
        if self.base_fingerprint is None and self.base_tensors and "base" not in self._known:
            self._known["base"] = fingerprint_tensors(self.base_tensors.values())
        made: BaseFingerprint | None = self._known.get("base")
        return self.base_fingerprint or made

    @property
    def facts(self) -> Facts:
        """The facts in the files; patterns are not run, and ranks are those of the tensors."""
        if "facts" not in self._known:
            self._known["facts"] = _facts(self)
        found: Facts = self._known["facts"]
        return found


def _facts(subject: Subject) -> Facts:
    config, keys = subject.config, subject.keys
    ranks = Counter(pair.rank for pair in keys.pairs)
    scales: Counter[float] = Counter()
    alpha: float | None = None
    if config.is_lora:
        scales = Counter(config.scaling_of(pair.module) for pair in keys.pairs)
        alpha = max((config.alpha_of(pair.module) for pair in keys.pairs), default=config.lora_alpha)
    dtypes = Counter(spec.dtype for spec in subject.weights.tensors)
    dtype = dtypes.most_common(1)[0][0]
    targets = {pair.module.removesuffix(".base_layer").rpartition(".")[2] for pair in keys.pairs}
    if not config.is_lora and isinstance(config.target_modules, tuple):
        targets = set(config.target_modules)
    return Facts(
        peft_type=config.peft_type,
        methods=config.methods(),
        rank=max(ranks, default=config.r),
        alpha=alpha,
        target_modules=tuple(sorted(targets)),
        modules=len(keys.pairs),
        ranks=tuple(ranks.most_common()),
        scales=tuple(scales.most_common()),
        dtype=DTYPES[dtype].torch if dtype in FLOATS else dtype.lower(),
        parameters=sum(spec.elements for spec in subject.weights.tensors),
    )
