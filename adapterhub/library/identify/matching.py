"""The results of `identify`, as values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import IO, Annotated, Final, Literal

from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.disk.files import open_plain, read_plain
from adapterhub.core.errors import AdapterHubError, MalformedConfig, MalformedManifest, MalformedTensorFile
from adapterhub.formats.base.fingerprint import may_be_same, split_numbers, stored_bytes
from adapterhub.formats.base.weight_files import read_facts
from adapterhub.formats.documented import Documented
from adapterhub.formats.foreign.conversion import foreign, planned
from adapterhub.formats.foreign.reading import Reading
from adapterhub.formats.foreign.telling import family_of_images
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.formats.modules import place_of
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.keys import PREFIX, AdapterKeys, KeyPair, sort_keys
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.formats.safetensors.header import TensorFacts, TensorSpec, sample_offsets
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.identify.lora_files import Hashes, LoraFile
from adapterhub.library.library import Library
from adapterhub.trust.verify import Subject
from adapterhub.trust.verify.checks.digests import read_manifest_file
from adapterhub.trust.verify.checks.fit import check
from adapterhub.trust.verify.subject import FolderListing, list_folder

Sureness = Literal["proven", "likely", "possible"]
What = Literal["adapter", "object", "base", "family"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match(Documented, keys="what name sure how digest path=folder"):
    """A possible identity of a file. `how` is the reason as a clause; `digest` and `folder` are those of the match."""

    what: Annotated[What, "`adapter`, `object`, `base` or `family`"]
    name: str
    sure: Annotated[Sureness, "`proven`, `likely` or `possible`"]
    how: Annotated[str, "the evidence"]
    digest: str | None = None
    folder: Annotated[Path | None, "a path on this machine"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Documented, keys="path files lora hashes matches notes", title="Identified"):
    """The possible identities of a file or folder. `notes` list what could not be used.

    `lora` holds the facts in the header of another program's file, and `hashes` are those that sites know it by.
    """

    path: Annotated[Path, "a path on this machine"]
    files: Annotated[Mapping[str, Digest], "digest of each file"] = field(hash=False)
    notes: Annotated[tuple[str, ...], "remarks, as text"]
    matches: Annotated[tuple[Match, ...], "most certain first"]
    lora: Annotated[LoraFile | None, "null for PEFT's own files"] = None
    hashes: Annotated[Hashes | None, "null where no single file was given"] = None


_MOST_TOLD: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedFamily:
    """Models of one architecture and size. `stack` is how the name of what holds the layers ends.

    `sizes` are `(out, in)` of the modules of a layer, by the name behind the layer's number.
    """

    models: str
    stack: str
    layers: int
    sizes: Mapping[str, tuple[int, int]]


def layers_of(modules: Iterable[str]) -> int:
    """One more than the highest layer number among `modules`; 0 where none has any."""
    return max((place.layer + 1 for module in modules if (place := place_of(module)).layer is not None), default=0)


def family_matches(orphan: Orphan) -> Iterator[Match]:
    """Families that have every module that the orphan is on, in its size."""
    if orphan.reading is not None and (images := family_of_images(orphan.reading)):
        how = f"{len(orphan.reading.modules)} modules with the names and widths of its components"
        yield Match(what="family", name=images, sure="likely", how=how)
        return
    fitting = [family for family in FAMILIES if _has_all(family, orphan)]
    reached = layers_of(pair.module for pair in orphan.pairs)
    whole = [family for family in fitting if family.layers == reached]
    for family in (whole or fitting)[:_MOST_TOLD]:
        sure: Sureness = "likely" if len(whole) == 1 else "possible"
        how = f"{family.layers} layers with modules of these names and sizes"
        if not whole:
            how += f", of which it is on {reached}"
        elif len(whole) > 1:
            how += f"; one of {len(whole)} families that fit"
        yield Match(what="family", name=family.models, sure=sure, how=how)


def _has_all(family: MatchedFamily, orphan: Orphan) -> bool:
    found = False
    for pair in orphan.pairs:
        assert pair.whole
        place = place_of(pair.module)
        stack, star, rest = place.kind.partition(".*.")
        if not star or place.layer is None:
            continue  # a head or an embedding: its size is the vocabulary's
        if place.layer >= family.layers or not f".{stack}".endswith(f".{family.stack}"):
            return False
        a, b = pair.whole
        if family.sizes.get(rest) != (b.shape[0], a.shape[1]):
            return False
        found = True
    return found


# ---------------------------------------------------------------- the table
def _llama(models: str, layers: int, hidden: int, q: int, kv: int, inner: int) -> MatchedFamily:
    attention = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    sizes = {f"self_attn.{n}": s for n, s in attention.items()} | {f"mlp.{n}": s for n, s in mlp.items()}
    return MatchedFamily(models=models, stack="layers", layers=layers, sizes=MappingProxyType(sizes))


def _phi(models: str, layers: int, hidden: int, qkv: int, inner: int) -> MatchedFamily:
    sizes = {
        "self_attn.qkv_proj": (qkv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return MatchedFamily(models=models, stack="layers", layers=layers, sizes=MappingProxyType(sizes))


def _mixtral(models: str, layers: int, hidden: int, kv: int, inner: int) -> MatchedFamily:
    attention = _llama("", layers, hidden, hidden, kv, inner).sizes
    experts = {f"block_sparse_moe.experts.*.{n}": (inner, hidden) for n in ("w1", "w3")}
    experts["block_sparse_moe.experts.*.w2"] = (hidden, inner)
    sizes = {name: size for name, size in attention.items() if name.startswith("self_attn")} | experts
    return MatchedFamily(models=models, stack="layers", layers=layers, sizes=MappingProxyType(sizes))


def _even(models: str, stack: str, layers: int, hidden: int, names: Mapping[str, tuple[int, int]]) -> MatchedFamily:
    """Sizes as multiples of the hidden size."""
    sizes = {name: (out * hidden, into * hidden) for name, (out, into) in names.items()}
    return MatchedFamily(models=models, stack=stack, layers=layers, sizes=MappingProxyType(sizes))


_GPT2: Final = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
_NEOX: Final = {
    "attention.query_key_value": (3, 1),
    "attention.dense": (1, 1),
    "mlp.dense_h_to_4h": (4, 1),
    "mlp.dense_4h_to_h": (1, 4),
}
_BLOOM: Final = {
    "self_attention.query_key_value": (3, 1),
    "self_attention.dense": (1, 1),
    "mlp.dense_h_to_4h": (4, 1),
    "mlp.dense_4h_to_h": (1, 4),
}
_OPT: Final = {
    **{f"self_attn.{n}": (1, 1) for n in ("q_proj", "k_proj", "v_proj", "out_proj")},
    "fc1": (4, 1),
    "fc2": (1, 4),
}
_BERT: Final = {
    **{f"attention.self.{n}": (1, 1) for n in ("query", "key", "value")},
    "attention.output.dense": (1, 1),
    "intermediate.dense": (4, 1),
    "output.dense": (1, 4),
}
_DISTILBERT: Final = {
    **{f"attention.{n}": (1, 1) for n in ("q_lin", "k_lin", "v_lin", "out_lin")},
    "ffn.lin1": (4, 1),
    "ffn.lin2": (1, 4),
}
_PHI2: Final = {
    **{f"self_attn.{n}": (1, 1) for n in ("q_proj", "k_proj", "v_proj", "dense")},
    "mlp.fc1": (4, 1),
    "mlp.fc2": (1, 4),
}

FAMILIES: Final[tuple[MatchedFamily, ...]] = (
    # models, layers, hidden, width of q, width of k and v, inner
    _llama("Llama 7B, Llama 2 7B", 32, 4096, 4096, 4096, 11008),
    _llama("Llama 13B, Llama 2 13B", 40, 5120, 5120, 5120, 13824),
    _llama("Llama 30B", 60, 6656, 6656, 6656, 17920),
    _llama("Llama 65B", 80, 8192, 8192, 8192, 22016),
    _llama("Llama 2 70B, Llama 3 70B", 80, 8192, 8192, 1024, 28672),
    _llama("Code Llama 34B", 48, 8192, 8192, 1024, 22016),
    _llama("Llama 3 8B, Mistral 7B", 32, 4096, 4096, 1024, 14336),
    _llama("Llama 3.2 1B", 16, 2048, 2048, 512, 8192),
    _llama("Llama 3.2 3B", 28, 3072, 3072, 1024, 8192),
    _llama("TinyLlama 1.1B", 22, 2048, 2048, 256, 5632),
    _llama("SmolLM2 135M", 30, 576, 576, 192, 1536),
    _llama("SmolLM2 360M", 32, 960, 960, 320, 2560),
    _llama("SmolLM2 1.7B", 24, 2048, 2048, 2048, 8192),
    _llama("Qwen2 0.5B, Qwen2.5 0.5B", 24, 896, 896, 128, 4864),
    _llama("Qwen2 1.5B, Qwen2.5 1.5B", 28, 1536, 1536, 256, 8960),
    _llama("Qwen2.5 3B", 36, 2048, 2048, 256, 11008),
    _llama("Qwen2 7B, Qwen2.5 7B", 28, 3584, 3584, 512, 18944),
    _llama("Qwen2.5 14B", 48, 5120, 5120, 1024, 13824),
    _llama("Qwen2.5 32B", 64, 5120, 5120, 1024, 27648),
    _llama("Qwen2 72B, Qwen2.5 72B", 80, 8192, 8192, 1024, 29568),
    _llama("Qwen3 0.6B", 28, 1024, 2048, 1024, 3072),
    _llama("Qwen3 1.7B", 28, 2048, 2048, 1024, 6144),
    _llama("Qwen3 4B", 36, 2560, 4096, 1024, 9728),
    _llama("Qwen3 8B", 36, 4096, 4096, 1024, 12288),
    _llama("Qwen3 14B", 40, 5120, 5120, 1024, 17408),
    _llama("Qwen3 32B", 64, 5120, 8192, 1024, 25600),
    _llama("Gemma 2B", 18, 2048, 2048, 256, 16384),
    _llama("Gemma 7B", 28, 3072, 4096, 4096, 24576),
    _llama("Gemma 2 2B", 26, 2304, 2048, 1024, 9216),
    _llama("Gemma 2 9B", 42, 3584, 4096, 2048, 14336),
    _llama("Gemma 2 27B", 46, 4608, 4096, 2048, 36864),
    _llama("Gemma 3 1B", 26, 1152, 1024, 256, 6912),
    _llama("Gemma 3 4B", 34, 2560, 2048, 1024, 10240),
    _llama("Gemma 3 12B", 48, 3840, 4096, 2048, 15360),
    _llama("Gemma 3 27B", 62, 5376, 4096, 2048, 21504),
    _llama("Mistral NeMo 12B", 40, 5120, 4096, 1024, 14336),
    _llama("Mistral Small 24B", 40, 5120, 4096, 1024, 32768),
    _llama("Yi 6B", 32, 4096, 4096, 512, 11008),
    _llama("Yi 34B", 60, 7168, 7168, 1024, 20480),
    _mixtral("Mixtral 8x7B", 32, 4096, 1024, 14336),
    # models, layers, hidden, width of qkv, inner
    _phi("Phi-3 mini", 32, 3072, 9216, 8192),
    _phi("Phi-4", 40, 5120, 7680, 17920),
    _even("Phi-2", "layers", 32, 2560, _PHI2),
    # models, stack, layers, hidden
    _even("GPT-2", "h", 12, 768, _GPT2),
    _even("GPT-2 medium", "h", 24, 1024, _GPT2),
    _even("GPT-2 large", "h", 36, 1280, _GPT2),
    _even("GPT-2 XL", "h", 48, 1600, _GPT2),
    _even("Pythia 70M", "layers", 6, 512, _NEOX),
    _even("Pythia 160M", "layers", 12, 768, _NEOX),
    _even("Pythia 410M", "layers", 24, 1024, _NEOX),
    _even("Pythia 1B", "layers", 16, 2048, _NEOX),
    _even("Pythia 1.4B", "layers", 24, 2048, _NEOX),
    _even("Pythia 2.8B", "layers", 32, 2560, _NEOX),
    _even("Pythia 6.9B", "layers", 32, 4096, _NEOX),
    _even("Pythia 12B", "layers", 36, 5120, _NEOX),
    _even("BLOOM 560M", "h", 24, 1024, _BLOOM),
    _even("BLOOM 1.1B", "h", 24, 1536, _BLOOM),
    _even("BLOOM 1.7B", "h", 24, 2048, _BLOOM),
    _even("BLOOM 3B", "h", 30, 2560, _BLOOM),
    _even("BLOOM 7.1B", "h", 30, 4096, _BLOOM),
    _even("OPT 125M", "decoder.layers", 12, 768, _OPT),
    _even("OPT 1.3B", "decoder.layers", 24, 2048, _OPT),
    _even("OPT 2.7B", "decoder.layers", 32, 2560, _OPT),
    _even("OPT 6.7B", "decoder.layers", 32, 4096, _OPT),
    _even("OPT 13B", "decoder.layers", 40, 5120, _OPT),
    _even("BERT base, RoBERTa base", "encoder.layer", 12, 768, _BERT),
    _even("BERT large, RoBERTa large", "encoder.layer", 24, 1024, _BERT),
    _even("DistilBERT base", "transformer.layer", 6, 768, _DISTILBERT),
)
"""Every family of the table."""


_FACTOR: Final = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.|$)")
_IN_MEMORY: Final = re.compile(r"(\.lora_(?:embedding_)?[AB])\.(?!weight$|bias$)[A-Za-z0-9_-]+(?=\.weight$|\.bias$|$)")
"""The adapter's name in memory, which PEFT leaves out when it saves and other writers do not."""
_PLAIN: Final = b'{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": "all-linear"}'
_CONFIG_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """What could be read. `weights` has the names of the file, `pairs` those of PEFT; `config` is None for a lone file.

    `manifest` is one that lies beside the files; it may say anything. `reading` is another program's file, understood.
    """

    path: Path
    weights: TensorFile | None = None
    config: AdapterConfig | None = None
    manifest: Manifest | None = None
    keys: AdapterKeys | None = None
    reading: Reading | None = None
    notes: tuple[str, ...] = ()

    @property
    def pairs(self) -> tuple[KeyPair, ...]:
        """Its LoRA pairs that are whole."""
        return tuple(pair for pair in self.keys.pairs if pair.whole) if self.keys else ()

    @property
    def plain(self) -> TensorFile | None:
        """The weights file as if it held only the pairs, in PEFT's names."""
        if self.weights is None:
            return None
        specs = tuple(spec for pair in self.pairs for spec in (pair.a, pair.b) if spec is not None)
        return replace(self.weights, tensors=specs) if specs else None


def read_orphan(path: Path, files: Mapping[str, Path]) -> Orphan:
    """Return the readable parts of `files`; `notes` list the others."""
    notes: list[str] = []
    weights = _weights(files, notes)
    config = _config(files, notes)
    folder = path if path.is_dir() else path.parent
    keys = None
    reading, refusal = _reading(weights) if weights is not None else (None, "")
    if weights is not None:
        own = [spec for spec, _ in planned(reading)] if reading else [_in_peft_names(spec) for spec in weights.tensors]
        named = replace(weights, tensors=tuple(own))
        keys = sort_keys(named, config or AdapterConfig.parse(_PLAIN, CONFIG_FILE))
        if not keys.pairs:
            notes.append(f"`{weights.path.name}` {refusal}" if refusal else "it holds no LoRA pairs")
    return Orphan(
        path=path,
        weights=weights,
        config=config,
        manifest=_manifest(folder) if path.is_dir() else None,
        keys=keys,
        reading=reading,
        notes=tuple(notes),
    )


def _reading(weights: TensorFile) -> tuple[Reading | None, str]:
    """Another program's file as its reader understands it, or why it is not taken."""
    try:
        with foreign(weights.path) as found:
            return (found.reading, "") if found is not None else (None, "")
    except MalformedTensorFile as error:
        return None, error.reason


def plain_tensor_name(name: str) -> str:
    """Return a tensor's name without what writers differ in: PEFT's prefix and the adapter's name in memory."""
    return _IN_MEMORY.sub(r"\1", name).removeprefix(PREFIX)


def _in_peft_names(spec: TensorSpec) -> TensorSpec:
    if not _FACTOR.search(spec.name):
        return spec
    return spec._replace(name=PREFIX + plain_tensor_name(spec.name))


def _weights(files: Mapping[str, Path], notes: list[str]) -> TensorFile | None:
    named = [WEIGHTS_FILE] if WEIGHTS_FILE in files else [n for n in files if n.endswith(".safetensors")]
    if not named and len(files) == 1:  # a lone file under any name; the header says what it is
        named = [name for name in files if name != CONFIG_FILE]
    for name in named[:1]:
        try:
            return read_header(files[name])
        except MalformedTensorFile as error:
            notes.append(f"`{name}`: {error.reason}")
    return None


def _config(files: Mapping[str, Path], notes: list[str]) -> AdapterConfig | None:
    path = files.get(CONFIG_FILE)
    if path is None:
        return None
    try:
        return AdapterConfig.parse(read_plain(path, _CONFIG_LIMIT_BYTES), CONFIG_FILE)
    except MalformedConfig as error:
        notes.append(f"`{CONFIG_FILE}`: {error.reason}")
    except OSError as error:
        notes.append(f"`{CONFIG_FILE}`: {error.strerror}")
    return None


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest_file(list_folder(folder).taken[MANIFEST_FILE])
    except (KeyError, MalformedManifest):
        return None


_LEAST_VALUES: Final = 64
"""A tensor of fewer numbers may be the same in two models by chance: a bias of zeros, a norm of ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _BaseFit:
    """A base that has every module in its size; `short` where the adapter does not reach all of its layers."""

    record: BaseRecord
    is_named: bool
    is_quantised: bool
    short: str


def base_matches(
    library: Library, orphan: Orphan, builds: Sequence[Known], adapters: Sequence[Match]
) -> Iterator[Match]:
    """Bases that it is or may be for, and what its config names where that is not registered."""
    records = library.bases.list()
    matched: set[str] = set()
    for record, match in [*_declared(library, orphan, builds, adapters), *_copied(orphan, records)]:
        if match.name not in matched:
            matched |= {match.name, *(r.alias for r in records if record and r.fingerprint == record.fingerprint)}
            yield match
    fits = [fit for record in records if record.alias not in matched and (fit := _fit(orphan, record)) is not None]
    # a component that has every module says more than the pipeline that has the component
    wholes = {fit.record.alias.partition("/")[0] for fit in fits if fit.record.component}
    fits = [fit for fit in fits if fit.record.component or fit.record.alias not in wholes]
    kinds = {fit.record.fingerprint.structure for fit in fits}
    for fit in sorted(fits, key=lambda f: (not f.is_named, f.record.alias)):
        rivals = len({other.record.fingerprint.weights for other in fits})
        is_sure = not fit.is_quantised and (fit.is_named or (rivals == 1 and not fit.short and not matched))
        sure: Sureness = "likely" if is_sure else "possible"
        yield _base_match(fit.record, sure, _how(orphan, fit, rivals=rivals, shapes=len(kinds)))
    named = orphan.config.base_model_name_or_path if orphan.config else None
    if named and not matched and not any(is_named(orphan, record) for record in records):
        yield Match(what="base", name=named, sure="possible", how="its config names it, and a name proves nothing")


def _how(orphan: Orphan, fit: _BaseFit, *, rivals: int, shapes: int) -> str:
    parts = [f"has all {len(orphan.pairs)} modules in their sizes"]
    if fit.is_quantised:
        parts = ["has its modules, but is quantised, so their sizes cannot be compared"]
    if fit.is_named:
        parts.append("the config names it")
    if fit.short:
        parts.append(fit.short)
    if rivals > 1:
        same = "of the same shapes" if shapes == 1 else "that fit"
        parts.append(f"one of {rivals} registered bases {same}")
    return "; ".join(parts)


def _declared(
    library: Library, orphan: Orphan, builds: Sequence[Known], adapters: Sequence[Match]
) -> Iterator[tuple[BaseRecord | None, Match]]:
    """Yield the base of an adapter that it is known to be, or of the manifest beside it."""
    known: dict[str, Known] = {build.manifest.digest: build for build in builds}
    proven = [known[m.digest] for m in adapters if m.sure == "proven" and m.digest in known]
    for build in proven:
        if build.base.fingerprint is not None:
            record = library.bases.by_fingerprint(build.base.fingerprint)
            name = record.alias if record else build.base.label
            how = f"`{build.name}` declares it by content"
            yield (
                record,
                Match(what="base", name=name, sure="proven", how=how, digest=build.base.fingerprint.weights),
            )
    if not proven and orphan.manifest is not None and (declared := orphan.manifest.base.fingerprint) is not None:
        record = library.bases.by_fingerprint(declared)
        name = record.alias if record else orphan.manifest.base.label
        how = "the manifest beside it declares it by content"
        yield record, Match(what="base", name=name, sure="likely", how=how, digest=declared.weights)


def _copied(orphan: Orphan, records: Sequence[BaseRecord]) -> Iterator[tuple[BaseRecord, Match]]:
    """Bases some tensor of which the orphan carries byte for byte, as PEFT saves embeddings."""
    if orphan.weights is None or orphan.keys is None:
        return
    names = {spec.name for pair in orphan.keys.pairs for spec in (pair.a, pair.b, pair.magnitude, pair.bias) if spec}
    if len(names) == len(orphan.weights.tensors):
        return
    facts = read_facts([orphan.weights.path], cache_folder=None)[orphan.weights.path]
    width = {spec.name: spec.elements for spec in orphan.weights.tensors}
    own = {(f.dtype, f.shape, f.sha256) for f in facts if width[f.name] >= _LEAST_VALUES and len(set(f.samples)) > 1}
    for record in records:
        common = [f.name for f in record.tensors if (f.dtype, f.shape, f.sha256) in own]
        if common:
            more = f" and {len(common) - 1} more" if len(common) > 1 else ""
            yield record, _base_match(record, "proven", f"carries its `{common[0]}`{more}, byte for byte")


def _fit(orphan: Orphan, record: BaseRecord) -> _BaseFit | None:
    """Return how the base has the orphan's modules; None when it lacks one or one has another size."""
    weights = orphan.plain
    if weights is None:
        return None
    config = orphan.config or AdapterConfig(peft_type="LORA", r=1, lora_alpha=1, target_modules="all-linear")
    subject = Subject(
        folder=orphan.path,
        listing=FolderListing(taken={}, findings=()),
        config=config,
        weights=weights,
        base_tensors={fact.name: fact for fact in record.weights},
        base_type=record.hints.model_type,
    )
    codes = {finding.code for finding in check(subject)}
    if "E_BASE_MISMATCH" in codes or not config.is_lora:
        return None
    mine = layers_of(pair.module for pair in orphan.pairs)
    theirs = layers_of(fact.name.rpartition(".")[0] for fact in record.weights)
    short = f"it has {theirs} layers, the adapter is on the first {mine}" if 0 < mine < theirs else ""
    return _BaseFit(record=record, is_named=is_named(orphan, record), is_quantised="U_SHAPE" in codes, short=short)


def is_named(orphan: Orphan, record: BaseRecord) -> bool:
    """Return whether the config names this base, by its Hub id, its alias or its folder."""
    named = orphan.config.base_model_name_or_path if orphan.config else None
    if not named:
        return False
    names = {record.alias, record.hub or "", record.hints.hub_id or "", str(record.path or "")}
    return named.rstrip("/").casefold() in {name.casefold() for name in names if name}


def _base_match(record: BaseRecord, sure: Sureness, how: str) -> Match:
    weights = record.fingerprint.weights
    return Match(what="base", name=record.alias, sure=sure, how=how, digest=weights, folder=record.path)


_LOOKED_AT: Final = 12
"""Tensors whose samples decide whether an installed adapter is read whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A build that the store knows; `folder` is None for one that was removed and not swept yet."""

    name: str
    manifest: Manifest
    base: BaseRef
    weights: Path
    folder: Path | None


def builds_known(library: Library) -> list[Known]:
    """Installed builds, then those of which only the store still has the manifest."""
    found = [
        Known(
            name=f"{b.full_name}=={b.manifest.version}",
            manifest=b.manifest,
            base=b.base,
            weights=b.folder / WEIGHTS_FILE,
            folder=b.folder,
        )
        for b in library.installed()
    ]
    seen = {known.manifest.digest for known in found}
    for path in sorted(library.root.glob("manifests/sha256/*.json")):
        with suppress(AdapterHubError, ValueError, OSError):  # `verify` reports the damage
            digest = parse_digest(f"sha256:{path.stem}")
            if digest in seen:
                continue
            manifest = library.store.read_manifest(digest)
            entry = manifest.file(WEIGHTS_FILE)
            if entry is not None:
                weights = library.store.blob_path(entry.sha256)
                name = f"{manifest.name}=={manifest.version}"
                found.append(Known(name=name, manifest=manifest, base=manifest.base, weights=weights, folder=None))
    return found


def by_files(
    library: Library, builds: Sequence[Known], digests: Mapping[str, Digest], orphan: Orphan
) -> Iterator[Match]:
    """Adapters that have these very files, and objects of the store that no adapter names."""
    named: set[Digest] = set()
    own = set(digests.values())
    weights = digests.get(orphan.weights.path.name) if orphan.weights is not None else None
    for known in builds:
        expected = {entry.path: entry.sha256 for entry in known.manifest.files}
        shared = [path for path, digest in expected.items() if digest in own]
        if not shared:
            continue
        named |= {expected[path] for path in shared}
        if expected[WEIGHTS_FILE] == weights:
            is_whole = len(shared) == len(expected)
            how = "every file has the same bytes" if is_whole else "the weights file has the same bytes"
            yield _match(known, "proven", how)
        elif weights is None or not orphan.pairs:
            yield _match(known, "possible", f"`{shared[0]}` has the same bytes, which other adapters may have, too")
    for name, digest in digests.items():
        if digest not in named and library.store.has_blob(digest):
            how = f"`{name}` is an object of the store that no adapter names any more"
            yield Match(what="object", name=digest, sure="proven", how=how, folder=library.store.blob_path(digest))
    manifest = orphan.manifest
    if manifest is not None and not any(known.manifest.digest == manifest.digest for known in builds):
        is_true = {e.path: e.sha256 for e in manifest.files}.items() <= digests.items()
        how = "its own manifest says so, " + ("about these very bytes" if is_true else "but about other bytes")
        name = f"{manifest.name}=={manifest.version}"
        sure = "likely" if is_true else "possible"
        yield Match(what="adapter", name=name, sure=sure, how=how, digest=manifest.digest)  # type: ignore[arg-type]  # the two words


def by_tensors(builds: Sequence[Known], orphan: Orphan) -> Iterator[Match]:
    """Adapters that hold the same tensors in another file, or the same numbers in another precision."""
    assert orphan.weights is not None
    own = _telling(_facts(orphan.weights.path))
    if not own:
        return
    for known in builds:
        try:
            header = read_header(known.weights)
            is_exact, is_near = _samples_agree(own, header)
            if is_exact:
                theirs = _telling(_facts(known.weights))
                match = _shared(known, own, theirs)
                if match is not None:
                    yield match
            elif is_near:
                how = "every number that was sampled is the same but for its precision"
                yield _match(known, "likely", how)
        except (AdapterHubError, OSError):  # a damaged one is for `verify` to tell
            continue


def by_update(library: Library, orphan: Orphan, found: set[str | None]) -> Iterator[Match]:
    """Installed adapters, beside those with digests in `found`, whose update is that of a PEFT folder or near it."""
    weights = orphan.weights.path if orphan.weights is not None else None
    if weights is None or not (weights.parent / CONFIG_FILE).is_file() or find_spec("numpy") is None:
        return
    if weights.name != WEIGHTS_FILE:
        return
    from adapterhub.formats.derived.likeness import NEAR, SAME
    from adapterhub.library.find.likeness import similar_to

    with suppress(AdapterHubError, OSError):  # it has no update to compare, or none that can be read
        for one in similar_to(library, weights.parent, above=NEAR, with_parents=False).similar:
            if one.build.digest in found or not one.exact:
                continue
            is_same = abs(one.cosine) >= SAME
            how = "its update is that of this adapter in other numbers" if is_same else "its update is near"
            yield Match(
                what="adapter",
                name=f"{one.build.full_name}=={one.build.version}",
                sure="likely" if is_same else "possible",
                how=", ".join((f"{how}: cosine {one.cosine:.4f}", *one.scale_words, *one.notes)),
                digest=one.build.digest,
                folder=library.root / one.build.folder,
            )


def _shared(known: Known, own: Sequence[TensorFacts], theirs: Sequence[TensorFacts]) -> Match | None:
    mine, yours = (Counter((f.dtype, f.shape, f.sha256) for f in facts) for facts in (own, theirs))
    common = (mine & yours).total()
    if common == mine.total() == yours.total():
        return _match(known, "proven", f"all {common} tensors have the same bytes, in another file")
    if not common:
        return None
    return _match(known, "likely", f"{common} of its {mine.total()} tensors are tensors of that adapter")


def _facts(path: Path) -> tuple[TensorFacts, ...]:
    return read_facts([path], cache_folder=None)[path]


def _telling(facts: Sequence[TensorFacts]) -> list[TensorFacts]:
    """Those that can tell anything: a tensor of one number all over (an untrained B) is that of every adapter."""
    return [f for f in facts if len(set(split_numbers(f.dtype, f.samples))) > 1]


def _samples_agree(own: Sequence[TensorFacts], header: TensorFile) -> tuple[bool, bool]:
    """Whether some tensor has the samples of one there, and whether all do that have its name, in any precision."""
    step = max(1, len(own) // _LOOKED_AT)
    looked_at = own[::step][:_LOOKED_AT]
    by_name = {plain_tensor_name(spec.name): spec for spec in header.tensors}
    by_shape: dict[tuple[str, tuple[int, ...]], list[TensorSpec]] = {}
    for spec in header.tensors:
        by_shape.setdefault((spec.dtype, spec.shape), []).append(spec)
    near = 0
    with open_plain(header.path) as stream:
        for fact in looked_at:
            same = by_name.get(plain_tensor_name(fact.name))
            there = [same] if same is not None else by_shape.get((fact.dtype, fact.shape), [])
            for spec in there:
                samples = _samples(stream, spec)
                if (spec.dtype, spec.shape, samples) == (fact.dtype, fact.shape, fact.samples):
                    return True, True
                near += spec is same and spec.shape == fact.shape and _is_near(fact, spec.dtype, samples)
    return False, near == len(looked_at)


def _samples(stream: IO[bytes], spec: TensorSpec) -> bytes:
    width, found = stored_bytes(spec.dtype), bytearray()
    for offset in sample_offsets(spec):
        stream.seek(spec.start + offset)
        found += stream.read(width)
    if len(found) % width:
        raise MalformedTensorFile(str(getattr(stream, "name", "")), "ends inside a tensor")
    return bytes(found)


def _is_near(fact: TensorFacts, dtype: str, samples: bytes) -> bool:
    if dtype == fact.dtype:
        return False  # another precision of itself it is not
    pairs = zip(split_numbers(fact.dtype, fact.samples), split_numbers(dtype, samples), strict=True)
    return all(may_be_same(fact.dtype, mine, dtype, theirs) for mine, theirs in pairs)


def _match(known: Known, sure: str, how: str) -> Match:
    if known.folder is None:
        how += "; it was removed, and the store still has it"
    return Match(
        what="adapter",
        name=known.name,
        sure=sure,  # type: ignore[arg-type]  # one of the three
        how=how,
        digest=known.manifest.digest,
        folder=known.folder,
    )
