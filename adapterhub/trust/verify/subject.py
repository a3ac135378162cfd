"""The input of the checks: one adapter folder, read once."""

from __future__ import annotations

import math
import os
import stat
import struct
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import groupby, repeat
from operator import attrgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import NO_LINK, LeadsOut, inside
from adapterhub.core.disk.held_file import PIECE_BYTES, HeldFile
from adapterhub.core.errors import MalformedTensorFile, RefusedAdapter, UsageProblem, shown
from adapterhub.core.limits import limits
from adapterhub.formats.base.comparison import Judge, compare
from adapterhub.formats.base.fingerprint import BaseFingerprint, fingerprint_tensors
from adapterhub.formats.base.weight_files import TOKENIZER_FILES
from adapterhub.formats.dialects import may_differ
from adapterhub.formats.manifest import (
    CARD_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    MEDIA_TYPES,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    Manifest,
)
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.keys import AdapterKeys, sort_keys
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import (
    DTYPES,
    LOOKED_AT,
    POINTER,
    FloatLayout,
    TensorFacts,
    TensorSpec,
    is_pointer,
    recognise,
)
from adapterhub.formats.safetensors.parts import parts_problem
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.report import FoundFacts, some

if TYPE_CHECKING:
    from adapterhub.formats.dialects import Inner
    from adapterhub.formats.dialects.experts import Stacks
    from adapterhub.formats.dialects.form import Form


class _Kind(NamedTuple):
    """How to read a dtype as unsigned integers: without the sign bit, codes order like magnitudes.

    A number whose leading byte, without sign, is `doubtful` or more may be odd, or more than float32 holds. `mask` is
    all bits but the sign; codes above `largest` are infinity or NaN.
    """

    width: int
    layout: FloatLayout
    doubtful: int
    mask: int
    largest: int


_DOUBTFUL: Final = {"F64": 0x47, "F32": 0x7F, "F16": 0x7B, "BF16": 0x7F, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
_KINDS: Final[Mapping[str, _Kind]] = {
    name: _Kind(DTYPES[name].bits // 8, layout, doubtful, mask=layout.sign_bit - 1, largest=layout.largest)
    for name, doubtful in _DOUBTFUL.items()
    if (layout := DTYPES[name].layout) is not None
}
_WORTH_NUMPY_BYTES: Final = 32 << 20
_SAMPLE: Final = 512
_UNSIGNED: Final = bytes(byte & 0x7F for byte in range(256))
_STRUCT_CODES: Final = {8: "Q", 4: "I", 2: "H"}
_FLOAT_CODES: Final = {"F64": ("Q", "d", 0), "F32": ("I", "f", 0), "F16": ("H", "e", 0), "BF16": ("I", "f", 16)}
"""What `struct` calls the codes and the numbers of a dtype, and the bits that the codes lack at the end."""
FLOATS: Final = frozenset(_KINDS)
"""The dtypes whose numbers are checked: those that the weights of an adapter may have."""


class TensorNumbers(NamedTuple):
    """`largest` is the greatest magnitude, infinity when some number is not finite.

    It may be greater than that, as far as the leading byte allows (`look_at_bytes`); it is exact when it is zero, and
    when it is more than float32 holds. `odd` is the index of the first NaN or infinity in the flattened tensor, None
    when all are finite.
    """

    largest: float
    odd: int | None


def scan_weights(held: HeldFile, file: TensorFile, progress: Progress | None = None) -> Mapping[str, TensorNumbers]:
    """Return the numbers of each tensor in `FLOATS` by its name; the same pass hashes the file.

    Memory is a few pieces, whatever the size. Raises OSError when the file ends early or grew.
    """
    codes: dict[str, int] = {}
    odd: dict[str, int] = {}
    runs = file.once(_runs)
    sizes = list(map(attrgetter("size_bytes"), runs))
    # numpy is several times as fast, but importing it takes as long as looking at 32 MB without it
    is_worth_it = "numpy" in sys.modules or (sum(sizes) > _WORTH_NUMPY_BYTES and find_spec("numpy") is not None)
    look = look_with_numpy if is_worth_it else look_at_bytes
    pieces = held.pieces(file.data_start, sizes)
    for run, view in zip(runs, pieces, strict=True):  # strict: to the end of `pieces`, where the digest is known
        for kind, first, last, starts, names, before in run.groups:
            most, strange = look(view[first:last], kind, starts)
            if before:  # the rest of a tensor
                most[0] = max(most[0], codes[names[0]])
            codes.update(zip(names, most, strict=True))
            for i, at in strange.items():
                odd.setdefault(names[i], (0 if i else before) // kind.width + at)
        if progress is not None:
            progress(run.size_bytes)
    found: dict[str, TensorNumbers] = {}
    for dtype, specs in groupby(file.tensors, attrgetter("dtype")):
        told = [spec.name for spec in specs if spec.name in codes]
        largest = _magnitudes(dtype, [codes[name] for name in told])
        found.update(zip(told, map(TensorNumbers, largest, repeat(None)), strict=True))
    for name, at in odd.items():
        found[name] = TensorNumbers(math.inf, at)
    return found


class _Group(NamedTuple):
    """Neighbouring parts of tensors of one dtype: the bytes from `first` to `last` of a run."""

    kind: _Kind
    first: int
    last: int
    starts: tuple[int, ...]
    """Where the parts begin, counted from `first`."""
    names: tuple[str, ...]
    before: int
    """How many bytes of the first tensor came in earlier runs; all other parts begin with their tensor."""


class _Run(NamedTuple):
    """Neighbouring bytes that are read together, and the parts of them whose numbers are looked at."""

    size_bytes: int
    groups: tuple[_Group, ...]


_Part = tuple[TensorSpec, int, int, int]
"""Tensor, its first byte in the run, one past its last, and how many of its bytes came in earlier runs."""


def _runs(tensors: tuple[TensorSpec, ...]) -> tuple[_Run, ...]:
    """Return the data section in pieces of at most `PIECE_BYTES`.

    A piece breaks inside a tensor only at a multiple of 8 bytes from that tensor's start, so no number is cut.
    """
    runs: list[_Run] = []
    parts: list[_Part] = []
    filled = 0
    for spec in tensors:
        done, size_bytes = 0, spec.end - spec.start
        while done < size_bytes:
            take = min(size_bytes - done, PIECE_BYTES - filled)
            if take < size_bytes - done:
                take -= take % 8
            if take:
                parts.append((spec, filled, filled + take, done))
                filled += take
                done += take
            if done < size_bytes:
                runs.append(_Run(filled, tuple(_groups(parts))))
                parts, filled = [], 0
    return (*runs, _Run(filled, tuple(_groups(parts)))) if parts else tuple(runs)


def _groups(parts: list[_Part]) -> Iterator[_Group]:
    for dtype, same in groupby(parts, lambda part: part[0].dtype):
        if dtype in _KINDS:
            specs, starts, ends, before = zip(*same, strict=True)
            offsets = tuple(start - starts[0] for start in starts)
            yield _Group(_KINDS[dtype], starts[0], ends[-1], offsets, tuple(spec.name for spec in specs), before[0])


def _magnitudes(dtype: str, codes: list[int]) -> Iterable[float]:
    if dtype not in _FLOAT_CODES:
        return [_KINDS[dtype].layout.magnitude(code) for code in codes]
    of_codes, of_floats, shift = _FLOAT_CODES[dtype]
    raw = struct.pack(f"<{len(codes)}{of_codes}", *([code << shift for code in codes] if shift else codes))
    return struct.unpack(f"<{len(codes)}{of_floats}", raw)


def look_with_numpy(view: memoryview, kind: _Kind, starts: Sequence[int]) -> tuple[list[int], dict[int, int]]:
    """Return the largest code of each tensor, and the index of the first odd number by tensor that has one.

    The tensors begin at `starts`. Exact, and faster than a disk.
    """
    import numpy as np

    codes = np.frombuffer(view, f"<u{kind.width}")
    places = np.array(starts) // kind.width
    # the greatest code is a negative number's, where there is one; for a signed reader, a positive one's
    of_negative = np.maximum.reduceat(codes, places) & codes.dtype.type(kind.mask)
    signed = f"<i{kind.width}"
    largest = np.maximum(np.maximum.reduceat(codes.view(signed), places), of_negative.view(signed))
    odd: dict[int, int] = {}
    for i in np.flatnonzero(largest > kind.largest).tolist():
        end = places[i + 1] if i + 1 < len(places) else len(codes)
        odd[i] = int(((codes[places[i] : end] & kind.mask) > kind.largest).argmax())
    return largest.tolist(), odd


def look_at_bytes(view: memoryview, kind: _Kind, starts: Sequence[int]) -> tuple[list[int], dict[int, int]]:
    """As `look_with_numpy`, but the largest code may be any that begins with the same byte as the true one.

    The leading byte holds most of the exponent. The other bytes are looked at where it does not decide: when a number
    may be odd or more than float32 holds, and when all may be zero.
    """
    found = [_look_at_one(bytes(view[a:b]), kind) for a, b in zip(starts, [*starts[1:], len(view)], strict=True)]
    return [largest for largest, _ in found], {i: odd for i, (_, odd) in enumerate(found) if odd is not None}


def _look_at_one(raw: bytes, kind: _Kind) -> tuple[int, int | None]:
    if raw == bytes(len(raw)):
        return 0, None
    leading = raw[kind.width - 1 :: kind.width]
    top = max(leading[:: len(leading) // _SAMPLE + 1].translate(_UNSIGNED))
    while (at := leading.translate(_above(top)).find(1)) >= 0:
        top = leading[at] & 0x7F
    if kind.width == 1:
        return top, leading.translate(_above(kind.largest)).find(1) if top > kind.largest else None
    if 0 < top < kind.doubtful:
        return ((top + 1) << 8 * (kind.width - 1)) - 1, None
    codes = [code & kind.mask for code in struct.unpack(f"<{len(leading)}{_STRUCT_CODES[kind.width]}", raw)]
    largest = max(codes)
    return largest, next(i for i, code in enumerate(codes) if code > kind.largest) if largest > kind.largest else None


@lru_cache(maxsize=128)
def _above(limit: int) -> bytes:
    """Return a table for `bytes.translate`: 1 for each byte that is greater without its sign bit, otherwise 0."""
    return bytes((byte & 0x7F) > limit for byte in range(256))


def as_floats(raw: bytes | bytearray | memoryview, dtype: str) -> Any:
    """Return the numbers of a tensor in one of `FLOATS`, as float64 for F64 and float32 for all others, flat."""
    from adapterhub.formats.derived.reading import floats

    return floats(raw, dtype)


TAKEN: Final = frozenset({*MEDIA_TYPES, MANIFEST_FILE, CARD_FILE, SIGNATURE_FILE})
"""The only names that a check opens."""


_MEASURED: Final = frozenset({CONFIG_FILE, WEIGHTS_FILE})
"""Files with a limit of their own in their readers."""


_UNSAFE: Final = frozenset({"E_LINK", "E_KIND", "E_LIMIT", "E_NAME"})
"""Findings of a listing about more than a missing file."""


_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5")


_PICKLED_WEIGHTS: Final = "adapter_model.bin"


_CODE: Final = (".py", ".pyc", ".so", ".sh", ".dll", ".dylib", ".exe", ".js", ".ipynb", ".bat", ".ps1", ".whl")


_TEXTS: Final = frozenset({*TOKENIZER_FILES, "chat_template.json"})


_CONVERT: Final = (
    "if you trust it, convert it: load it with PEFT on its base in isolation, call "
    "`save_pretrained(folder)`, and use that folder"
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A taken file: `path` is the regular file itself, whatever link led to it."""

    name: str
    path: Path
    size_bytes: int

    @cached_property
    def held(self) -> HeldFile:
        """The file, opened once: every check and every later reader sees the same bytes.

        Raises:
            OSError: it is gone, has become a link, or is not a regular file.
        """
        return HeldFile(self.path)

    def open(self) -> IO[bytes]:
        """Return the file, opened again for reading from the start.

        Raises:
            OSError: it is gone, has become a link, or is not a regular file.
        """
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(self.path, flags)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(0, "is not a regular file")
        return os.fdopen(handle, "rb")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderListing:
    """What a folder holds. `others` are names that are never opened; `findings` are those of the listing."""

    taken: Mapping[str, Entry]
    others: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def list_folder(folder: Path) -> FolderListing:
    """List a folder without opening other files; never raises for its content."""
    try:
        facts = folder.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have this name"  # Pythons differ here
        return _refused(folder, "E_KIND", f"cannot be inspected: {shown(reason)}")
    if not stat.S_ISDIR(facts.st_mode):
        return _not_a_folder(folder, is_regular=stat.S_ISREG(facts.st_mode))
    names: list[str] = []
    most = limits().entries
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > most:
                    return _refused(folder, "E_LIMIT", f"holds more than {most} entries")
    except OSError as error:
        return _refused(folder, "E_KIND", f"cannot be listed: {error.strerror}")
    taken: dict[str, Entry] = {}
    findings = list(_clashes(names))
    for name in sorted(TAKEN.intersection(names)):
        found = take(folder, name)
        if isinstance(found, Entry):
            taken[name] = found
        else:
            findings.append(found)
    others = tuple(sorted(set(names) - TAKEN))
    if others:
        findings += _skipped(folder, others)
    if not {CONFIG_FILE, WEIGHTS_FILE} <= set(names):
        findings += _missing(folder, names)
    return FolderListing(taken=taken, others=others, findings=tuple(findings))


def safe_listing(folder: Path) -> FolderListing:
    """Return the files of an adapter in a folder that a stranger may have prepared; a missing one is not in it.

    This is how a command that reads single files of a folder opens it: links out of the folder, pipes, devices and
    files beyond the limits are refused before any of them is read.

    Raises:
        RefusedAdapter: lists each error, except missing files and pickles.
    """
    listing = list_folder(folder)
    errors = [f for f in listing.findings if f.severity == "error" and f.code in _UNSAFE]
    for name, most in ((CONFIG_FILE, limits().config_bytes), (WEIGHTS_FILE, limits().file_bytes)):
        if name in listing.taken and listing.taken[name].size_bytes > most:
            errors.append(_too_large(name, listing.taken[name].size_bytes, most))
    if errors:
        hint = next((f.hint for f in errors if f.hint), "`adapt verify FOLDER` shows every finding")
        listed = [(f.code, str(f).removeprefix(f"[{f.code}] ")) for f in errors]
        raise RefusedAdapter(f"`{shown(str(folder), 200)}` is not read. Nothing was changed", listed, hint=hint)
    return listing


def _refused(folder: Path, code: str, message: str, hint: str = "") -> FolderListing:
    where = shown(folder.name or str(folder))
    return FolderListing(taken={}, findings=(Finding(code, where, message, hint=hint),))


def _not_a_folder(path: Path, *, is_regular: bool) -> FolderListing:
    if not is_regular:
        return _refused(path, "E_KIND", "is neither a folder nor a file")
    try:
        with Entry(name=path.name, path=path.resolve(), size_bytes=0).open() as stream:
            kind = recognise(stream.read(LOOKED_AT))
    except OSError as error:
        return _refused(path, "E_KIND", f"cannot be read: {error.strerror}")
    if kind is not None and kind.is_pointer:
        return _refused(path, "E_KIND", f"is {kind.name}; an adapter is a folder", hint=kind.hint)
    if kind is not None and kind.is_archive and not path.name.endswith(_PICKLES):
        return _refused(path, "E_ARCHIVE", f"is {kind.name}; archives are not unpacked", hint=kind.hint)
    if path.name.endswith(_PICKLES) or (kind is not None and kind.is_pickle):
        return _refused(path, "E_PICKLE", "is a pickle, which is never opened", hint=_CONVERT)
    return _refused(path, "E_KIND", "is a file; an adapter is a folder", hint="give the folder that holds it")


def _clashes(names: list[str]) -> Iterator[Finding]:
    """Taken names that another name equals on file systems that fold case or compose accents."""
    folded: dict[str, list[str]] = {}
    for name in names:
        composed = name if name.isascii() else unicodedata.normalize("NFKC", name)
        folded.setdefault(composed.casefold(), []).append(name)
    for same in folded.values():
        if len(same) > 1 and TAKEN.intersection(same):
            yield Finding(
                "E_NAME",
                some(sorted(same)),
                "are the same file on systems that ignore case",
                hint="rename or delete one of them",
            )


def take(folder: Path, name: str) -> Entry | Finding:
    """Return the regular file behind a taken name, or a finding with the reason why there is none."""
    try:
        path = inside(folder, name)
        facts = path.lstat()
    except LeadsOut as error:
        return Finding("E_LINK", name, error.strerror, expected="a plain file", hint=NO_LINK)
    except OSError as error:
        return Finding("E_LINK", name, f"leads nowhere: {shown(error.strerror or str(error))}")
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, socket or device"
        return Finding("E_KIND", name, f"is {kind}", expected="a plain file")
    most = limits().text_bytes
    if name in MEDIA_TYPES and name not in _MEASURED and facts.st_size > most:
        return _too_large(name, facts.st_size, most)
    return Entry(name=name, path=path, size_bytes=facts.st_size)


def _too_large(name: str, size_bytes: int, most: int) -> Finding:
    message, hint = f"holds {size_bytes} bytes, expected at most {most}", "remove or shorten it"
    return Finding("E_LIMIT", name, message, hint=hint)


def kind_of_name(name: str) -> str:
    """Return the kind of a file that is not taken, by its name: `S_PICKLE`, `S_CODE`, `S_TEMPLATE` or `S_OTHER`."""
    low = name.lower()
    if low.endswith(_PICKLES):
        return "S_PICKLE"
    if low.endswith(_CODE) or low == "config.json":
        return "S_CODE"
    return "S_TEMPLATE" if low in _TEXTS or low.endswith(".jinja") else "S_OTHER"


def _skipped(folder: Path, others: tuple[str, ...]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {"S_PICKLE": [], "S_CODE": [], "S_TEMPLATE": [], "S_OTHER": []}
    for name in others:
        kind = kind_of_name(name)
        groups["S_OTHER" if kind == "S_PICKLE" and is_pointer(folder / name) else kind].append(name)
    why = {
        "S_PICKLE": "can run code when opened; never opened",
        "S_CODE": "can hold or name code; never opened",
        "S_TEMPLATE": "tokenizer and chat template are the base's; not taken as files",
        "S_OTHER": "not part of an adapter; not taken",
    }
    for code, names in groups.items():
        if names:
            yield Finding(code, some(names, 6), why[code])


def _pointers(folder: Path, names: list[str]) -> Finding | None:
    """Return an error for weights under any name whose content git has not fetched; None if there are none."""
    weights = sorted(n for n in names if n.lower().endswith((*_PICKLES, ".safetensors")) and is_pointer(folder / n))
    if not weights:
        return None
    return Finding("E_CONTAINER", some(weights), f"is {POINTER.name}", expected=WEIGHTS_FILE, hint=POINTER.hint)


def _missing(folder: Path, names: list[str]) -> Iterator[Finding]:
    """Yield findings for a missing config or missing weights, which depend on the other files."""
    is_others = False
    parts = None if WEIGHTS_FILE in names else parts_problem(names)
    if parts is not None:
        yield Finding("E_CONTAINER", WEIGHTS_FILE, f"is missing: the folder {parts[0]}", hint=parts[1])
    elif WEIGHTS_FILE not in names:
        from adapterhub.trust.verify.report import RENAME, weights_of_others

        foreign = _pointers(folder, names) or weights_of_others(folder, names)
        if foreign is not None:
            yield foreign
            is_others = foreign.code in ("E_UNSUPPORTED", "E_PICKLE") and foreign.hint != RENAME
    if CONFIG_FILE not in names and not is_others:
        yield Finding(
            "E_CONFIG",
            CONFIG_FILE,
            "is missing",
            expected="the settings PEFT writes beside the weights",
            hint="give the folder that `save_pretrained` wrote; weights do not give rank, alpha and targets",
        )
    if WEIGHTS_FILE not in names and parts is None and foreign is None:
        every = sorted(n for n in names if n.lower().endswith(_PICKLES))
        pickles = [n for n in every if n == _PICKLED_WEIGHTS] or every
        yield Finding(
            "E_PICKLE" if pickles else "E_CONTAINER",
            some(pickles) if pickles else WEIGHTS_FILE,
            "is a pickle, which is never opened, and there are no other weights" if pickles else "is missing",
            expected=WEIGHTS_FILE,
            hint=_CONVERT if pickles else "give the folder that `save_pretrained` wrote",
        )


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An adapter folder whose config and header could be read. `base_tensors` are by name, None when no base is given.

    `base_type` is the model type of that base, from which other names of its tensors follow. `config`, `weights` and
    `held` are the adapter in the inner form of `formats.dialects`, whatever dialect its file is in; `inner` tells the
    dialect, and holds the file unchanged.

    `base_named`: the caller knows the base or leaves it open, so a base path in the config does no harm. Digests and
    numbers, which take time, are read once, when a check first needs them; those of `scanned`, another subject that
    holds the same file open, are taken over.
    """

    folder: Path
    listing: FolderListing
    config: AdapterConfig
    weights: TensorFile
    inner: Inner | None = None
    base_tensors: Mapping[str, TensorFacts] | None = None
    base_fingerprint: BaseFingerprint | None = None
    base_type: str | None = None
    manifest: Manifest | None = None
    base_named: bool = False
    progress: Progress | None = field(default=None, repr=False, compare=False)
    scanned: Subject | None = field(default=None, repr=False, compare=False)
    judge: Judge = field(default=compare, repr=False, compare=False)

    @cached_property
    def keys(self) -> AdapterKeys:
        """The tensors, sorted by what they are."""
        return sort_keys(self.weights, self.config)

    @cached_property
    def numbers(self) -> Mapping[str, TensorNumbers]:
        """The numbers of each tensor by its name; the first use reads and hashes the weights file.

        Raises:
            MalformedTensorFile: the file cannot be read or changed meanwhile.
        """
        if self.scanned is not None:
            return self.scanned.numbers
        try:
            return scan_weights(self.held, self.weights, self.progress)
        except OSError as error:
            raise MalformedTensorFile(WEIGHTS_FILE, f"cannot be read: {error.strerror}") from None

    @property
    def held(self) -> HeldFile:
        """The weights in the inner form; they come only from bytes of the file that were checked."""
        return self.inner.form.held if self.inner else self.listing.taken[WEIGHTS_FILE].held

    def on(self, stacks: Stacks) -> Subject:
        """Return the adapter with its dialect judged by the parameters of a base."""
        if self.inner is None:
            return self
        inner = self.inner.on(stacks)
        return self if inner is self.inner else replace(self, **_of_inner(inner))

    @property
    def config_bytes(self) -> bytes:
        """The config in the inner form."""
        return self.inner.form.config_bytes if self.inner else bytes(self.listing.taken[CONFIG_FILE].held.load())

    @property
    def form(self) -> Form:
        """The adapter in the inner form."""
        from adapterhub.formats.dialects.form import Form

        if self.inner is not None:
            return self.inner.form
        return Form(config=self.config, config_bytes=self.config_bytes, weights=self.weights, held=self.held)

    def remade(self, form: Form) -> Subject:
        """Return the adapter in another form of the same update, such as the one that a model in memory needs."""
        from adapterhub.formats.dialects import Inner

        return replace(self, **_of_inner(Inner(raw=form, plain=form, form=form)), scanned=None)

    def beside(
        self,
        tensors: Mapping[str, TensorFacts] | None,
        fingerprint: BaseFingerprint,
        model_type: str | None = None,
        judge: Judge = compare,
    ) -> Subject:
        """Return the adapter with the facts of its base, whose stacked parameters may tell the dialect."""
        from adapterhub.formats.dialects.experts import stacks_among

        known = replace(
            self,
            base_tensors=tensors,
            base_fingerprint=fingerprint,
            base_type=model_type,
            base_named=True,
            judge=judge,
        )
        shapes = ((name, facts.shape) for name, facts in (tensors or {}).items())
        return known.on(stacks_among(self.config, shapes, model_type))

    def read_as(self, dialect: str) -> Subject:
        """Return the adapter in the dialect of that name; "" changes nothing.

        Raises:
            UsageProblem: there is no such dialect, or it is not for such files.
        """
        if not dialect:
            return self
        if self.inner is None:
            raise UsageProblem(
                f"`--dialect {shown(dialect)}` is for LoRA on stacked experts, which this is not",
                hint="drop `--dialect`",
            )
        return replace(self, **_of_inner(self.inner.read_as(dialect)))

    @cached_property
    def given_base(self) -> BaseFingerprint | None:
        """Fingerprint of the given base, computed from its tensors if only those are known."""
        if self.base_fingerprint is None and self.base_tensors:
            return fingerprint_tensors(self.base_tensors.values())
        return self.base_fingerprint

    @cached_property
    def facts(self) -> FoundFacts:
        """The facts in the files; patterns are not run, and ranks are those of the tensors."""
        config = self.config
        ranks: Counter[int] = Counter()
        scales: Counter[float] = Counter()
        targets: set[str] = set()
        alphas: list[float] = []
        for pair in self.keys.pairs:
            ranks[pair.rank] += 1
            targets.add(pair.module.removesuffix(".base_layer").rpartition(".")[2])
            if config.is_lora:
                scales[config.scaling_of(pair.module)] += 1
                alphas.append(config.alpha_of(pair.module))
        dtypes: Counter[str] = Counter()
        parameters = 0
        for spec in self.weights.tensors:
            dtypes[spec.dtype] += 1
            parameters += spec.elements
        if not config.is_lora and isinstance(config.target_modules, tuple):
            targets = set(config.target_modules)
        dtype = dtypes.most_common(1)[0][0]
        return FoundFacts(
            peft_type=config.peft_type,
            methods=config.methods(),
            rank=max(ranks, default=config.r),
            alpha=max(alphas, default=config.lora_alpha) if config.is_lora else None,
            target_modules=tuple(sorted(targets)),
            modules=len(self.keys.pairs),
            ranks=tuple(ranks.most_common()),
            scales=tuple(scales.most_common()),
            dtype=DTYPES[dtype].torch if dtype in FLOATS else dtype.lower(),
            parameters=parameters,
        )


def _of_inner(inner: Inner) -> dict[str, Any]:
    return {"config": inner.form.config, "weights": inner.form.weights, "inner": inner}


def subject_of(
    folder: Path, listing: FolderListing, config: AdapterConfig, weights: TensorFile, *, dialect: str = "", **given: Any
) -> Subject:
    """Return the adapter in `folder`, in the inner form; `given` are the other fields of `Subject`.

    Raises:
        UsageProblem: `dialect` is not a dialect.
        MalformedTensorFile: the layout of its experts is another program's, and is broken or not read.
    """
    if not may_differ(config, weights):
        return Subject(folder=folder, listing=listing, config=config, weights=weights, **given)
    from adapterhub.formats.dialects import inner_form
    from adapterhub.formats.dialects.experts import stacks_among
    from adapterhub.formats.dialects.form import Form

    text = bytes(listing.taken[CONFIG_FILE].held.load())
    raw = Form(config=config, config_bytes=text, weights=weights, held=listing.taken[WEIGHTS_FILE].held)
    base = given.get("base_tensors") or {}
    shapes = ((name, facts.shape) for name, facts in base.items())
    inner = inner_form(raw, stacks_among(config, shapes, given.get("base_type")), dialect)
    return Subject(folder=folder, listing=listing, **_of_inner(inner), **given)
