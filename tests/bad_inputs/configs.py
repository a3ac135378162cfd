"""C: what may be wrong with `adapter_config.json`."""

from __future__ import annotations

import json
import math
from typing import Any

from tests.bad_inputs.cases import case
from tests.support.hostile_kinds import CONFIG, good, settings, with_config


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in settings().items() if name != field}).encode()


case("C01", "refuse", "E_CONFIG", "no config")(lambda f: (good(f) / CONFIG).unlink())

NOT_READABLE = {
    "C02": ("an empty file", b""),
    "C03": ("YAML", b"r: 8\nlora_alpha: 16\n"),
    "C04": ("a list", b"[8, 16]"),
    "C05": ("nested 100,000 deep", b'{"r":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "C06": ("not UTF-8", b'{"peft_type":"LORA","r":8,"base_model_name_or_path":"caf\xe9"}'),
    "C07": ("6 MB", json.dumps(settings(note="x" * 6_000_000)).encode()),
    "C08": ("the marks of a merge conflict", b"<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> b\n"),
    "C09": ("alpha is NaN, which JSON does not have", json.dumps(settings(lora_alpha=math.nan)).encode()),
    "C10": (
        "alpha 1e400, which reads as infinity",
        json.dumps(settings()).replace('"lora_alpha": 16', '"lora_alpha": 1e400').encode(),
    ),
}
for _name, (_why, _raw) in NOT_READABLE.items():
    case(_name, "refuse", "E_CONFIG", f"config: {_why}")(lambda f, raw=_raw: with_config(f, raw))  # type: ignore[misc]

WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "C11": ("r is text", {"r": "8"}),
    "C12": ("r is zero", {"r": 0}),
    "C13": ("r is negative", {"r": -8}),
    "C14": ("r is true", {"r": True}),
    "C15": ("r is 8.5", {"r": 8.5}),
    "C17": ("r is a billion", {"r": 10**9}),
    "C18": ("alpha is text", {"lora_alpha": "16"}),
    "C19": ("target_modules is a number", {"target_modules": 7}),
    "C20": ("target_modules is an empty list", {"target_modules": []}),
    "C21": ("a peft_type that does not exist", {"peft_type": "NOPE"}),
    "C24": ("the base is an absolute path", {"base_model_name_or_path": "/etc/passwd"}),
    "C25": ("the base is a path out of the folder", {"base_model_name_or_path": "../../../secrets"}),
    "C26": ("the base is the URL of a file", {"base_model_name_or_path": "file:///etc/passwd"}),
    "C27": ("the base reads as an option", {"base_model_name_or_path": "--trust-remote-code"}),
    "C28": ("rank_pattern is a list", {"rank_pattern": [8]}),
}
for _name, (_why, _changed) in WRONG.items():
    case(_name, "refuse", "E_CONFIG", f"config: {_why}")(lambda f, changed=_changed: good(f, **changed))  # type: ignore[misc]

for _name, _field in {"C16": "r", "C22": "peft_type", "C23": "base_model_name_or_path"}.items():
    _verdicts = ("refuse",) if _field == "peft_type" else ("refuse", "warn")
    case(_name, _verdicts, "E_CONFIG", f"config: no {_field}")(
        lambda f, field=_field: with_config(f, without(field))  # type: ignore[misc]
    )

case("C30", "refuse", "E_REGEX", "target_modules is a pattern whose cost doubles with each character")(
    lambda f: good(f, target_modules=r"((\w|\.)+)+!")
)
case("C31", "refuse", "E_CODE", "auto_mapping names a module to import")(
    lambda f: good(f, task_type=None, auto_mapping={"parent_library": "subprocess", "base_model_class": "Popen"})
)
case("C32", "refuse", "E_CODE", "megatron_core names a module to import")(
    lambda f: good(f, megatron_config={"tensor_model_parallel_size": 1}, megatron_core="os")
)
case("C33", "refuse", "E_UNSUPPORTED", "well-formed, but not LoRA")(
    lambda f: good(f, peft_type="PREFIX_TUNING", num_virtual_tokens=8)
)
case("C34", "warn", "W_ALPHA", "alpha is zero, so the adapter has no effect")(lambda f: good(f, lora_alpha=0))
case("C35", "warn", "W_ALPHA", "alpha is negative, so the update is turned around")(lambda f: good(f, lora_alpha=-16))
case("C36", "warn", "W_TARGETS", "the config names modules that the weights do not have")(
    lambda f: good(f, target_modules=["q_proj", "v_proj", "k_proj"])
)
