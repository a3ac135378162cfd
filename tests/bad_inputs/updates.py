"""P and N: pairs, shapes and numbers that make no update, or none for this base."""

from __future__ import annotations

import math

import numpy as np

from tests.bad_inputs.cases import case
from tests.support.hostile_kinds import PRE, Tensor, container, good, pairs

Q0 = f"{PRE}0.self_attn.q_proj."


def tensor(name: str, *shape: int, fill: float = 0.0) -> Tensor:
    return (name, "F32", list(shape), np.full(shape, fill, "<f4").tobytes())


def with_value(old: Tensor, place: int, value: float) -> Tensor:
    """A float32 tensor with one other element."""
    name, dtype, shape, raw = old
    values = np.frombuffer(raw, "<f4").copy()
    values[place] = value
    return (name, dtype, shape, values.tobytes())


def put(place: int, new: Tensor) -> bytes:
    """A good file with another tensor at one place."""
    tensors = pairs()
    tensors[place] = new
    return container(tensors)


# ---------------------------------------------------------------- pairs, shapes, base
case("P01", "refuse", "E_PAIR", "lora_A without its lora_B")(lambda f: good(f, container(pairs()[:-1])))
case("P02", "refuse", "E_PAIR", "lora_B without its lora_A")(lambda f: good(f, container(pairs()[1:])))
case("P03", "refuse", "E_RANK", "A has rank 8, B has rank 4")(
    lambda f: good(f, put(1, tensor(f"{Q0}lora_B.weight", 64, 4)))
)
case("P04", "refuse", "E_RANK", "the config says rank 16, the tensors have 8")(lambda f: good(f, r=16))
case("P05", "refuse", "E_SHAPE", "lora_A has one dimension")(
    lambda f: good(f, put(0, tensor(f"{Q0}lora_A.weight", 8 * 64, fill=0.01)))
)
case("P06", "refuse", "E_SHAPE", "tensors of rank 0")(lambda f: good(f, container(pairs(rank=0))))
case("P07", "refuse", "E_DTYPE", "weights that are integers")(
    lambda f: good(f, container(pairs(dtype="<i8", name="I64")))
)
case("P08", "refuse", "E_BASE_WEIGHT", "a tensor of the base, which PEFT would overwrite")(
    lambda f: good(f, container([*pairs(), tensor("base_model.model.model.norm.weight", 64)]))
)
case("P09", "refuse", "E_BASE_MISMATCH", "made for a width of 128; the base has 64")(
    lambda f: good(f, container(pairs(width=128)))
)
case("P10", "refuse", "E_BASE_MISMATCH", "six layers; the base has two")(
    lambda f: good(f, container(pairs(layers=range(6))))
)
case("P11", "refuse", "E_BASE_MISMATCH", "the right shapes, and the hash of another base")(
    lambda f: good(f, base_model_hash="sha256:" + "0" * 64)
)
case("P12", "refuse", "E_VARIANT", "DoRA's vectors in the file, and use_dora is false")(
    lambda f: good(f, container([*pairs(), tensor(f"{Q0}lora_magnitude_vector", 64, fill=1.0)]), use_dora=False)
)
case("P13", "warn", "W_FULL_WEIGHT", "a whole lm_head in modules_to_save")(
    lambda f: good(
        f, container([*pairs(), tensor("base_model.model.lm_head.weight", 100, 64)]), modules_to_save=["lm_head"]
    )
)
case("P14", "warn", "W_RANK", "a rank larger than the matrix")(lambda f: good(f, container(pairs(rank=96)), r=96))

# ---------------------------------------------------------------- numbers
case("N01", "refuse", "E_NONFINITE", "NaN as the first number")(
    lambda f: good(f, put(0, with_value(pairs()[0], 0, math.nan)))
)
case("N02", "refuse", "E_NONFINITE", "infinity in a tensor in the middle")(
    lambda f: good(f, put(3, with_value(pairs()[3], 9, math.inf)))
)


@case("N03", "refuse", "E_NONFINITE", "NaN with a payload and a sign, as the last number of the last float16 tensor")
def _(folder):
    *others, (name, dtype, shape, raw) = pairs(dtype="<f2", name="F16")
    good(folder, container([*others, (name, dtype, shape, raw[:-2] + b"\x01\xfe")]))


case("N04", "warn", "W_NOOP", "every lora_B is zero")(
    lambda f: good(f, container([(n, d, s, bytes(len(raw)) if "lora_B" in n else raw) for n, d, s, raw in pairs()]))
)
case("N05", "warn", "W_OVERFLOW", "an update that overflows float16 once it is scaled by an alpha of 1e6")(
    lambda f: good(f, container(pairs(dtype="<f2", fill=3.0, name="F16")), lora_alpha=1_000_000)
)
