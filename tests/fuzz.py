"""Mutates good adapters and looks for anything but a verdict: an exception, a hang, much memory, a file that is made.

    python -m tests.fuzz --seconds 60 [--seed 0]

Mutations keep the structure (a header's JSON is changed and packed again with its length), so that most inputs get
behind the first check. The short form is `test_fuzz.py`. A failure prints the seed and number that make it again.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import read_header
from adapterhub.trust.verify import verify_folder
from tests.support.hostile_child import forget_peak, memory_mb
from tests.support.hostile_kinds import CONFIG, WEIGHTS, container, pairs, settings

MAX_S, MAX_MB = 2.0, 300.0
NUMBERS = (
    0,
    1,
    -1,
    7,
    8,
    4096,
    4097,
    2**31,
    2**53,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e308,
    5e-324,
    1e400,
    float("nan"),
)
TEXTS = (
    "", ".", "..", "../x", "/etc/passwd", "x\0y", "\x1b[31m", "\u202e", "\ud800", "caf\u00e9", "-x", "x" * 5000, "*", "(", "(?=a)",
    "(a+)+$", "[", ".*", "q_proj|v_proj", "all-linear", "LORA", "F32", "BF16", "lora_A", "base_model.model.", "__metadata__",
)  # fmt: skip
KEYS = (
    "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "exclude_modules",
    "layers_to_transform", "layers_pattern", "layer_replication", "trainable_token_indices", "target_parameters",
    "use_dora", "use_rslora", "lora_bias", "bias", "peft_type", "task_type", "init_lora_weights", "auto_mapping",
    "megatron_core", "base_model_name_or_path", "revision", "fan_in_fan_out", "base_model_hash", "eva_config",
)  # fmt: skip
PEFT_TYPES = ("LORA", "IA3", "LOHA", "LOKR", "VERA", "ADALORA", "PROMPT_TUNING", "XLORA", "NOPE")


class Fuzzer:
    """A stream of hostile folders, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        kinds = [("F32", "<f4"), ("F16", "<f2"), ("F64", "<f8"), ("I8", "i1")]
        self.files = [container(pairs(rank, dtype, None, name)) for name, dtype in kinds for rank in (1, 8)]

    # ------------------------------------------------------------ values
    def value(self, depth: int = 0) -> Any:
        pick = self.random.randrange(8 if depth < 3 else 5)
        if pick < 2:
            return self.random.choice(NUMBERS)
        if pick < 4:
            return self.random.choice(TEXTS)
        if pick == 4:
            return self.random.choice((None, True, False))
        if pick == 5:
            return {self.random.choice(TEXTS): self.value(depth + 1) for _ in range(self.random.randrange(4))}
        return [self.value(depth + 1) for _ in range(self.random.randrange(5))]

    def changed(self, value: Any, depth: int = 0) -> Any:
        """The value with one place in it changed, dropped, doubled or moved."""
        if not isinstance(value, dict | list) or not value or (depth and self.random.random() < 0.2):
            if isinstance(value, int) and self.random.random() < 0.5:
                return value + self.random.choice((-1, 1, 8, -8, 2**32, -value))
            return self.value()
        if isinstance(value, list):
            items, at = list(value), self.random.randrange(len(value))
            act = self.random.randrange(4)
            if act == 0:
                del items[at]
            elif act == 1:
                items.insert(at, items[self.random.randrange(len(items))])
            else:
                items[at] = self.changed(items[at], depth + 1)
            return items
        made, key = dict(value), self.random.choice(list(value))
        act = self.random.randrange(6)
        if act == 0:
            del made[key]
        elif act == 1:
            made[self.random.choice(TEXTS)] = made.pop(key)
        elif act == 2:
            made[key + self.random.choice(("", ".x", "\0", "/", "B"))] = made[self.random.choice(list(made))]
        else:
            made[key] = self.changed(made[key], depth + 1)
        return made

    def bytes_changed(self, raw: bytes) -> bytes:
        data = bytearray(raw)
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(data) + 1)
            act = self.random.randrange(5)
            if act == 0 and at < len(data):
                data[at] ^= 1 << self.random.randrange(8)
            elif act == 1:
                data[at:at] = self.random.randbytes(self.random.choice((1, 8, 100)))
            elif act == 2:
                del data[at : at + self.random.choice((1, 8, 1000))]
            elif act == 3:
                data[at:at] = data[: self.random.choice((1, 64, 4096))]
            else:
                del data[at:]
        return bytes(data)

    # ------------------------------------------------------------ files
    def weights(self) -> bytes:
        raw = self.random.choice(self.files)
        if self.random.random() < 0.3:
            return self.bytes_changed(raw)
        length = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        for _ in range(self.random.randrange(3)):
            header = self.changed(header)
        text = json.dumps(header).encode()
        if self.random.random() < 0.2:
            text = self.bytes_changed(text)
        told = len(text) if self.random.random() < 0.9 else self.random.choice((0, 7, len(raw), 2**32, 2**63))
        return struct.pack("<Q", told) + text + data

    def config(self) -> bytes:
        value: Any = settings(r=self.random.choice((1, 8)))
        if self.random.random() < 0.2:
            value["peft_type"] = self.random.choice(PEFT_TYPES)
        for _ in range(self.random.randrange(3)):
            if self.random.random() < 0.5 and isinstance(value, dict):
                value[self.random.choice(KEYS)] = self.value()
            else:
                value = self.changed(value)
        raw = json.dumps(value).encode()
        return self.bytes_changed(raw) if self.random.random() < 0.2 else raw

    def manifest(self) -> bytes:
        files = [{"path": p, "sha256": f"sha256:{'0' * 64}", "size_bytes": 10} for p in (CONFIG, WEIGHTS)]
        value: Any = {"schema": "adapterhub/1", "name": "m", "version": "1.0", "base": {}, "method": ["LORA"]}
        value |= {"files": files, "rank": 8, "alpha": 16.0, "parents": [{"spec": "a", "weight": 1.0}], "recipe": {}}
        for _ in range(self.random.randrange(1, 4)):
            value = self.changed(value)
        raw = json.dumps(value).encode()
        return self.bytes_changed(raw) if self.random.random() < 0.2 else raw


def try_one(fuzzer: Fuzzer, folder: Path) -> str:
    """The verdict on one made adapter. Raises whatever is wrong with ours."""
    config, weights, manifest = fuzzer.config(), fuzzer.weights(), fuzzer.manifest()
    (folder / CONFIG).write_bytes(config)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / "adapterhub.json").unlink(missing_ok=True)
    if fuzzer.random.random() < 0.3:
        (folder / "adapterhub.json").write_bytes(manifest)
    for read in (
        lambda: AdapterConfig.parse(config, "config"),
        lambda: read_header(folder / WEIGHTS),
        lambda: Manifest.parse(manifest),
    ):
        try:
            read()
        except AdapterHubError as refusal:
            check_words(refusal.message)
    started = time.process_time()

    report = verify_folder(folder)

    seconds = time.process_time() - started
    assert seconds < MAX_S, f"{seconds:.1f} s"
    assert len(list(folder.iterdir())) <= 3, "made a file"
    for finding in report.findings:
        check_words(f"{finding}{finding.hint}")
    json.dumps(report.to_json()).encode()
    return report.status


def check_words(text: str) -> None:
    assert all(c.isprintable() or c == "\n" for c in text), f"control characters: {text!r}"


def run(seed: int, *, count: int | None = None, seconds: float | None = None) -> Counter[str]:
    """Verdicts by how often they came; the first failure is raised with its number."""
    fuzzer, verdicts, ends = Fuzzer(seed), Counter[str](), time.monotonic() + (seconds or 1e9)
    with tempfile.TemporaryDirectory() as name:
        try_one(Fuzzer(seed), Path(name))  # what is imported late does not count
        has_peak = forget_peak()
        held = memory_mb("VmRSS")
        while (count is None or verdicts.total() < count) and time.monotonic() < ends:
            state = fuzzer.random.getstate()
            try:
                verdicts[try_one(fuzzer, Path(name))] += 1
            except BaseException as error:
                kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
                fuzzer.random.setstate(state)
                for made, raw in (
                    (CONFIG, fuzzer.config()),
                    (WEIGHTS, fuzzer.weights()),
                    ("m.json", fuzzer.manifest()),
                ):
                    (kept / made).write_bytes(raw)
                error.add_note(f"seed {seed}, number {verdicts.total()}, kept in {kept}") if sys.version_info >= (
                    3,
                    11,
                ) else None
                raise
        if has_peak:
            assert memory_mb("VmHWM") - held < MAX_MB
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    found = run(chosen.seed, seconds=chosen.seconds)
    told = ", ".join(f"{verdict} {number}" for verdict, number in found.most_common())
    sys.stdout.write(
        f"{found.total()} adapters, seed {chosen.seed}, {chosen.seconds:g} s: {told}; nothing but verdicts\n"
    )


if __name__ == "__main__":
    main()
