"""Hostile adapters beside those of `tests.bad_inputs`, each with the verdicts that are right for it.

A kind says what is strange about it, the verdicts (`refuse`, `warn`, `accept`; a file that is passed over counts as
`accept`), the code of the finding that tells, and makes the folder. The writer of safetensors here is its own, so that
it can write what ours refuses to.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PRE = "base_model.model.model.layers."
TAKEN = ("accept",)
PICKLE = b"\x80\x02cos\nmkdir\nX\x0a\x00\x00\x00CANARY_RAN\x85R."
"""Makes a folder CANARY_RAN where it is loaded, which no test does."""
Tensor = tuple[str, str, list[int], bytes]


@dataclass(frozen=True)
class Kind:
    why: str
    verdicts: tuple[str, ...]
    code: str
    make: Callable[[Path], Path | None]
    skip: tuple[str, ...] = ()
    """Files that are passed over, and named."""


KINDS: list[Kind] = []


def into_new_folder(make: Callable[[Path], Any]) -> Callable[[Path], Path | None]:
    """The maker of a kind: makes the folder first, and returns the path that `make` returns, if it does."""

    def made(folder: Path) -> Path | None:
        folder.mkdir(parents=True)
        found = make(folder)
        return found if isinstance(found, Path) else None

    return made


def kind(
    why: str, verdict: str | tuple[str, ...], code: str = ""
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def keep(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        verdicts = (verdict,) if isinstance(verdict, str) else verdict
        KINDS.append(Kind(why, verdicts, code, into_new_folder(make)))
        return make

    return keep


# ---------------------------------------------------------------- material
MODULES = (("q_proj", 64), ("v_proj", 32))
"""The attention modules of the corpus's base, and how wide each one's output is."""


def pairs(
    rank: int = 8,
    dtype: str = "<f4",
    fill: float | None = None,
    name: str = "F32",
    *,
    width: int = 64,
    layers: Iterable[int] = range(2),
    modules: Sequence[tuple[str, int]] = MODULES,
) -> list[Tensor]:
    random, tensors = np.random.default_rng(0), []
    for layer in layers:
        for module, out in modules:
            for half, shape in (("A", [rank, width]), ("B", [out, rank])):
                values = random.normal(0, 0.05, shape) if fill is None else np.full(shape, fill)
                tensors.append(
                    (f"{PRE}{layer}.self_attn.{module}.lora_{half}.weight", name, shape, values.astype(dtype).tobytes())
                )
    return tensors


def container(
    tensors: Sequence[Tensor], *, metadata: str = "", between: str = "", before: str = "", after: str = ""
) -> bytes:
    """A safetensors file; `before` and `after` stand around the JSON of its header, `between` in it."""
    parts, data, at = [f'"__metadata__":{metadata}'] if metadata else [], [], 0
    for name, dtype, shape, raw in tensors:
        place = f'"data_offsets":[{at},{at + len(raw)}]'
        parts.append(f'{json.dumps(name)}:{{"dtype":"{dtype}","shape":{json.dumps(shape)},{place}}}')
        data.append(raw)
        at += len(raw)
    return framed((before + "{" + f",{between}".join(parts) + "}" + after).encode(), b"".join(data))


def framed(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A header, true or not, behind its length, true or not."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def settings(**changed: Any) -> dict[str, Any]:
    plain = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "test/tiny", "r": 8,
        "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "bias": "none",
    }  # fmt: skip
    return plain | changed


def good(folder: Path, weights: bytes | None = None, /, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(container(pairs()) if weights is None else weights)
    (folder / CONFIG).write_text(json.dumps(settings(**changed)))
    return folder


def with_config(folder: Path, raw: bytes) -> None:
    good(folder)
    (folder / CONFIG).write_bytes(raw)


def instead(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    good(folder)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)


def listening(path: Path) -> None:
    # bound by a short relative name: the path of a socket has at most 107 bytes
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as place:
            place.bind(path.name)
    finally:
        os.chdir(before)


def sparse(path: Path, size: int = 100 << 30, start: bytes = b"") -> None:
    with path.open("wb") as sink:
        sink.write(start)
        sink.truncate(size)


def linked(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def with_card(folder: Path, matter: str) -> None:
    good(folder)
    (folder / "README.md").write_text(f"---\n{matter}\n---\n# A card\n")


# ---------------------------------------------------------------- special and enormous files
for _name in (WEIGHTS, CONFIG, "README.md", "adapterhub.json"):
    kind(f"`{_name}` is a FIFO that nobody writes to", "refuse", "E_KIND")(
        lambda f, n=_name: instead(f, n, os.mkfifo)  # type: ignore[misc]
    )
kind("LICENSE is a socket", "refuse", "E_KIND")(lambda f: instead(f, "LICENSE", listening))
kind("weights of 100 GB of nothing", "refuse", "E_LIMIT")(lambda f: instead(f, WEIGHTS, sparse))
kind("LICENSE of 100 GB", "refuse", "E_LIMIT")(lambda f: instead(f, "LICENSE", sparse))
kind("evals.jsonl of 100 GB", "refuse", "E_LIMIT")(lambda f: instead(f, "evals.jsonl", sparse))
kind("README of 100 GB, which is no part of a build", TAKEN)(lambda f: instead(f, "README.md", sparse))
kind("adapterhub.json of 100 GB", "refuse", "E_MANIFEST")(lambda f: instead(f, "adapterhub.json", sparse))
kind("config of 100 GB", "refuse", "E_CONFIG")(lambda f: instead(f, CONFIG, sparse))


@kind("a header that announces the 100 GB that the file has", "refuse", "E_LIMIT")
def _(folder: Path) -> None:
    text = b'{"a":{"dtype":"U8","shape":[107374182400],"data_offsets":[0,107374182400]}}'
    start = struct.pack("<Q", len(text)) + text
    instead(folder, WEIGHTS, lambda path: sparse(path, len(start) + 107374182400, start))


@kind("a zip bomb, a tar and a pickle beside a good adapter", TAKEN)
def _(folder: Path) -> None:
    good(folder)
    for name in ("bomb.zip", "more.tar.gz", "optimizer.pt", "scheduler.pkl"):
        (folder / name).write_bytes(PICKLE)


@kind("20,001 files", "refuse", "E_LIMIT")
def _(folder: Path) -> None:
    good(folder)
    for number in range(20_001):
        os.close(os.open(folder / f"f{number}", os.O_CREAT))


# ---------------------------------------------------------------- links and names
kind("weights link to a link that links back", "refuse", "E_LINK")(
    lambda f: (instead(f, WEIGHTS, linked("a")), (f / "a").symlink_to("b"), (f / "b").symlink_to("a"))
)
kind("weights link through a folder that holds itself", "refuse", "E_LINK")(
    lambda f: (instead(f, WEIGHTS, linked("d/d/d/d/w")), (f / "d").symlink_to("."))
)
kind("weights link to nothing", "refuse", "E_LINK")(lambda f: instead(f, WEIGHTS, linked("gone")))
kind("weights link to a device", "refuse", "E_LINK")(lambda f: instead(f, WEIGHTS, linked("/dev/zero")))
kind("LICENSE links to the environment of the process", "refuse", "E_LINK")(
    lambda f: instead(f, "LICENSE", linked("/proc/self/environ"))
)
kind("LICENSE links out by a chain of links inside", "refuse", "E_LINK")(
    lambda f: (
        instead(f, "LICENSE", linked("one")),
        (f / "one").symlink_to("two"),
        (f / "two").symlink_to("../../outside_secret.txt"),
    )
)
kind("adapterhub.json links to a file outside", "refuse", "E_LINK")(
    lambda f: instead(f, "adapterhub.json", linked("../../outside_secret.txt"))
)
kind("a file name of 255 bytes, one that is no UTF-8, and one of spaces", TAKEN)(
    lambda f: (good(f), [(f / n).write_text("x") for n in ("x" * 255, os.fsdecode(b"\xff\xfe\x80"), "  ")])
)
kind("the config's name in full-width letters beside it", "refuse", "E_NAME")(
    lambda f: (good(f), (f / "\uff41dapter_config.json").write_text("{}"))
)
kind("the config's name with a Cyrillic letter beside it", TAKEN)(
    lambda f: (good(f), (f / "\u0430dapter_config.json").write_text("{}"))
)
kind("the weights' name in capitals beside it", "refuse", "E_NAME")(
    lambda f: (good(f), (f / WEIGHTS.upper()).write_bytes(b"x"))
)
kind("the config is a folder", "refuse", "E_KIND")(lambda f: instead(f, CONFIG, Path.mkdir))
kind("LICENSE is a folder", "refuse", "E_KIND")(lambda f: instead(f, "LICENSE", Path.mkdir))
kind("the adapter is a FIFO", "refuse", "E_KIND")(lambda f: (os.mkfifo(f / "pipe"), f / "pipe")[1])

# ---------------------------------------------------------------- config
kind("config begins with a byte order mark", "refuse", "E_CONFIG")(
    lambda f: with_config(f, b"\xef\xbb\xbf" + json.dumps(settings()).encode())
)
kind("config in UTF-16", "refuse", "E_CONFIG")(lambda f: with_config(f, json.dumps(settings()).encode("utf-16")))
kind("a key given twice, once by an escape", "refuse", "E_CONFIG")(
    lambda f: with_config(f, json.dumps(settings()).replace('"r": 8', '"r": 8, "\\u0072": 4').encode())
)
kind("half of a UTF-16 pair in the base's name", ("refuse", "warn"), "E_CONFIG")(
    lambda f: with_config(f, json.dumps(settings(base_model_name_or_path="org/\ud800")).encode())
)
kind("half of a UTF-16 pair in a setting that nobody knows", ("accept", "refuse"))(
    lambda f: with_config(f, json.dumps(settings(**{"note\udc00": "\ud800"})).encode())
)
kind("a rank of 5,000 digits", "refuse", "E_CONFIG")(
    lambda f: with_config(f, json.dumps(settings()).replace('"r": 8', '"r": ' + "9" * 5000).encode())
)
kind("alpha 1e308", "refuse", "E_CONFIG")(lambda f: good(f, lora_alpha=1e308))
kind("alpha 1e308 for one module", "refuse", "E_CONFIG")(lambda f: good(f, alpha_pattern={"q_proj": 1e308}))
kind("alpha 5e-324, which is nothing once divided", "warn", "W_ALPHA")(lambda f: good(f, lora_alpha=5e-324))
kind("targets that name every module there is", ("accept", "warn"))(lambda f: good(f, target_modules=".*"))
kind("rank 0 for one module", "refuse", "E_CONFIG")(lambda f: good(f, rank_pattern={"q_proj": 0}))
kind("layers copied a billion times", "refuse", "E_CONFIG")(lambda f: good(f, layer_replication=[[0, 10**9]]))
kind("layers copied two million times, 2 by 2", "refuse", "E_CONFIG")(
    lambda f: good(f, layer_replication=[[0, 2]] * 60_000)
)
kind("65,000 targets", ("accept", "warn"))(
    lambda f: good(f, target_modules=["q_proj", "v_proj", *(f"m{i}" for i in range(65_000))])
)
kind("20,000 ranks by name", ("accept", "warn"))(
    lambda f: good(f, rank_pattern={f"layers.{i}.m": 8 for i in range(20_000)})
)
kind("a pattern of a thousand options", "refuse", "E_REGEX")(lambda f: good(f, target_modules="(a?)" * 1000 + "q"))
kind("a pattern that looks behind and repeats", ("accept", "warn", "refuse"))(
    lambda f: good(f, target_modules=r"(?=.*q)(?=.*_)(?=.*p).*(q|v)_proj")
)
for _pattern in (
    "((a|a))*b",
    r"(?:\w|.)" * 30 + "!",
    (r"\w?" * 12 + "x") * 4 + "!",
    "(^){99999999}",
    "(?:){99999999}q",
):
    kind(f"a pattern without end that repeats no repeat: {_pattern[:20]}", "refuse", "E_REGEX")(
        lambda f, p=_pattern: good(f, target_modules=p)  # type: ignore[misc]
    )
kind("a revision with a newline", "refuse", "E_CONFIG")(lambda f: good(f, revision="main\nrm -rf"))
kind("a start that would decompose the base", "warn", "W_INIT")(lambda f: good(f, init_lora_weights="pissa"))
kind("a start that would quantise the base", "warn", "W_INIT")(
    lambda f: good(f, init_lora_weights="loftq", loftq_config={"loftq_bits": 4})
)
kind("a runtime that would offload to a path", ("accept", "refuse"))(
    lambda f: good(f, runtime_config={"ephemeral_gpu_offload": "/etc"}, eva_config={"rho": "x"})
)

# ---------------------------------------------------------------- container
kind("a million entries of metadata", "refuse", "E_LIMIT")(
    lambda f: good(f, container(pairs(), metadata="{" + ",".join(f'"{i}":""' for i in range(1_000_000)) + "}"))
)
kind("15 MB of spaces between two tensors", TAKEN)(lambda f: good(f, container(pairs(), between=" " * 2_000_000)))
kind("a tensor name of 10 MB", "refuse", "E_TENSOR_NAME")(
    lambda f: good(f, container([*pairs(), ("x" * 10_000_000, "F32", [1], b"\0" * 4)]))
)
kind("a tensor name that turns the line around", "refuse", "E_TENSOR_NAME")(
    lambda f: good(f, container([*pairs(), ("\u202e" + PRE + "0.x.lora_A.weight", "F32", [1], b"\0" * 4)]))
)
kind("a module named with a Cyrillic letter", "refuse", "E_BASE_MISMATCH")(
    lambda f: good(
        f,
        container([(n.replace("q_proj", "q_\u0440roj"), *rest) for n, *rest in pairs()]),  # type: ignore[misc, arg-type]
        target_modules=["q_\u0440roj", "v_proj"],
    )
)
kind("a layer under another name that leads to where the next layer lies", "refuse", "E_BASE_MISMATCH")(
    lambda f: good(f, container([(n.replace("layers.0", "layers%2f.0"), *rest) for n, *rest in pairs()]))  # type: ignore[misc, arg-type]
)
kind("lora_A with a Greek letter", "refuse")(
    lambda f: good(f, container([(n.replace("lora_A", "lora_\u0391"), *rest) for n, *rest in pairs()]))  # type: ignore[misc, arg-type]
)
kind("a factor with 31 dimensions", "refuse")(
    lambda f: good(f, container([(n, d, [*s, *[1] * 29], raw) for n, d, s, raw in pairs()]))
)
kind("32,768 pairs on modules that no base has", "refuse", "E_BASE_MISMATCH")(
    lambda f: good(
        f,
        container(
            [(f"{PRE}{i}.q_proj.lora_{h}.weight", "F32", [1, 1], b"\0\0\0\1") for i in range(32_768) for h in "AB"]
        ),
        r=1,
        target_modules=["q_proj"],
    )
)
kind("32,768 pairs and 256 patterns for their ranks", "refuse")(
    lambda f: good(
        f,
        container(
            [(f"{PRE}{i}.q_proj.lora_{h}.weight", "F32", [1, 1], b"\0\0\0\1") for i in range(32_768) for h in "AB"]
        ),
        r=1,
        target_modules=["q_proj"],
        rank_pattern={rf"layers\.{i}[0-9]*\.x": 2 for i in range(256)},
    )
)
kind("every tensor of the base, shipped as a module that was trained whole", ("warn", "refuse"))(
    lambda f: good(
        f,
        container([*pairs(), ("base_model.model.model.norm.weight", "F32", [64], np.zeros(64, "<f4").tobytes())]),
        modules_to_save=["l", "m"],
    )
)

# ---------------------------------------------------------------- numbers
kind("finite in float64, infinite in float32", "refuse", "E_OVERFLOW")(
    lambda f: good(f, container(pairs(dtype="<f8", fill=1e300, name="F64")))
)
kind("the product overflows float32", "warn", "W_OVERFLOW")(lambda f: good(f, container(pairs(fill=1e30))))
kind("the product overflows fp16, and a small alpha hides it", "warn", "W_OVERFLOW")(
    lambda f: good(f, container(pairs(dtype="<f2", fill=6e4, name="F16")), lora_alpha=1e-6)
)
kind("the product fits in float64, and not in float32", "warn", "W_OVERFLOW")(
    lambda f: good(f, container(pairs(dtype="<f8", fill=3e38, name="F64")))
)
kind("every number subnormal in fp16", TAKEN)(lambda f: good(f, container(pairs(dtype="<f2", fill=6e-8, name="F16"))))

# ---------------------------------------------------------------- cards
kind("a card whose YAML doubles 40 times by merging", TAKEN)(
    lambda f: with_card(
        f, "a0: &a0 {k: v}\n" + "\n".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 41))
    )
)
kind("a card whose YAML doubles 40 times by aliases", TAKEN)(
    lambda f: with_card(f, "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 41)))
)
kind("a card with a number of 200,000 digits", TAKEN)(lambda f: with_card(f, "n: 0x" + "f" * 200_000))
kind("a card with a number in base 60, 30,000 long", TAKEN)(lambda f: with_card(f, "n: 1" + ":59" * 30_000))
kind("a card that holds itself", TAKEN)(lambda f: with_card(f, "a: &a [*a]\nb: &b {c: *b}"))
kind("a card with 200 kB of brackets", TAKEN)(lambda f: with_card(f, "a: " + "[" * 100_000 + "]" * 100_000))
kind("a card with 200 kB of keys", TAKEN)(lambda f: with_card(f, "\n".join(f"k{i}: v" for i in range(20_000))))
kind("a card with a Python object", TAKEN)(lambda f: with_card(f, "a: !!python/object/apply:os.mkdir [CANARY_RAN]"))
kind("a card with half of a UTF-16 pair, a date and a set", TAKEN)(
    lambda f: with_card(
        f, 'a: "\\ud800"\nb: 2001-12-14\nc: !!set {x, y}\nd: !!binary aGk=\n? [x]\n: y\nlicense: "\\e[31m"'
    )
)
