"""Every dialect that can express an adapter on experts is written and read back, byte for byte, and computes the dense sum."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import adapterhub
from adapterhub import Library
from adapterhub.core.errors import UnsupportedAdapter, UsageProblem
from adapterhub.inference.export import export
from tests.dialects.mixtures import EXPERTS, FAMILIES, IDS, RANK, Mixture, mixture, named, write
from tests.dialects.test_programs import megatron_fused, tinker

pytestmark = pytest.mark.slow

STACKED = ("peft@0.18", "unsloth", "unsloth@0.18")
SINGLE = ("vllm@2d", "tinker", "mlx", "gguf")
WAYS = [(a, b) for group in (STACKED, SINGLE) for a in group for b in group if a != "gguf" or b == "gguf"]
"""A GGUF file has the scale in B, so that only another GGUF file has the same bytes."""
WEIGHTS = {"mlx": "adapters.safetensors"}


class World:
    """A library with a mixture and `x`, an adapter on its stacked experts; exports are made once."""

    def __init__(self, place: Path, source: Mixture) -> None:
        self.place, self.source, self.library = place, source, Library(place / "home")
        self.library.bases.add(source.folder, alias="b")
        self.library.add(write(place / "x", megatron_fused(source)), name="x", base="b")

    def exported(self, form: str, of: str = "x") -> Path:
        """The export of an adapter."""
        out = self.place / f"{of}-{form}{'.gguf' if form == 'gguf' else ''}"
        if not out.exists():
            export(f"{of}@b", out, form=form, library=self.library)
        return out

    def read(self, form: str) -> str:
        """The name of the adapter that the export of `x` is read as."""
        name = form.replace("@", "-").replace(".", "-")
        if name not in {build.manifest.name for build in self.library.installed()}:
            self.library.add(self.exported(form), name=name, base="b")
        return name

    def error(self, name: str) -> float:
        with adapterhub.attach(self.source.load(), f"{name}@b", library=self.library) as attached, torch.no_grad():
            return self.source.error(attached.model(input_ids=IDS).logits)


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tmp_path_factory) -> World:
    place = tmp_path_factory.mktemp("world")
    return World(place, mixture(place / "base", request.param, has_head=False))


def tensors_in(path: Path, form: str) -> dict[str, bytes]:
    if form == "gguf":
        import gguf

        return {tensor.name: bytes(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    found = load_file(path / WEIGHTS.get(form, "adapter_model.safetensors"))
    return {name: bytes(tensor.numpy().tobytes()) for name, tensor in found.items()}


@pytest.mark.parametrize("form", [*STACKED, *SINGLE])
def test_what_is_written_is_read_as_the_same_adapter(form, world) -> None:
    assert world.error(world.read(form)) < 1e-6


@pytest.mark.parametrize(("first", "second"), WAYS, ids=str)
def test_the_way_through_another_dialect_changes_no_byte(first, second, world) -> None:
    straight = tensors_in(world.exported(second), second)

    assert tensors_in(world.exported(second, of=world.read(first)), second) == straight


def stacked(source: Mixture) -> dict[str, tuple[Tensor, Tensor]]:
    """A [experts, r, in] and B [experts, out, r] of each stacked parameter, by PEFT's name for its pair."""
    found = {}
    for layer in range(2):
        (a, gate), (_, up) = source.stacked(layer, "gate"), source.stacked(layer, "up")
        holder = f"base_model.model.{source.memory(layer)}"
        found |= {holder: source.stacked(layer, "down"), f"{holder}.base_layer": (a, torch.cat([gate, up], 1))}
    return found


def test_peft_0_18_has_what_nemo_s_own_conversion_gives(world) -> None:
    """`_convert_lora_to_paramwrapper` of NeMo Automodel: A is [in, r] and B [r, out] of each expert there."""
    found = load_file(world.exported("peft@0.18") / "adapter_model.safetensors")
    for name, (a, b) in stacked(world.source).items():
        native_a, native_b = a.transpose(1, 2), b.transpose(1, 2)
        first = native_b.reshape(-1, native_b.shape[2])
        second = native_a.permute(1, 2, 0).reshape(native_a.shape[1], -1)
        assert torch.equal(found[f"{name}.lora_A.weight"], first)
        assert torch.equal(found[f"{name}.lora_B.weight"], second)
    assert json.loads((world.exported("peft@0.18") / "adapter_config.json").read_text())["peft_version"] == "0.18.1"


def test_unsloth_0_18_has_what_megatron_bridge_packs(world) -> None:
    """`_pack_target_parameter_adapter_weights` of Megatron-Bridge."""
    found = load_file(world.exported("unsloth@0.18") / "adapter_model.safetensors")
    for name, (a, b) in stacked(world.source).items():
        assert torch.equal(found[f"{name}.lora_A.weight"], torch.cat([one.T for one in b], 0))
        assert torch.equal(found[f"{name}.lora_B.weight"], torch.cat([one.T for one in a], 1))


def test_peft_reads_the_older_layout_where_it_puts_a_on_the_first_side(world) -> None:
    from peft import PeftModel

    model = world.source.load()
    stacks = [module for module in model.modules() if hasattr(module, "gate_up_proj")]
    for stack in stacks:
        stack.is_transposed = True  # PEFT of today then does what PEFT 0.18 did
    adapted = PeftModel.from_pretrained(model, world.exported("peft@0.18"))
    for stack in stacks:
        stack.is_transposed = False
    with torch.no_grad():
        assert world.source.error(adapted.eval()(input_ids=IDS).logits) < 1e-6


def test_peft_reads_single_experts(world) -> None:
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(world.source.load(), world.exported("vllm@2d"))
    with torch.no_grad():
        assert world.source.error(adapted.eval()(input_ids=IDS).logits) < 1e-6


def test_tinker_s_file_is_the_one_that_tinker_writes(world, tmp_path) -> None:
    source = mixture(tmp_path / "base", world.source.family)
    library = Library(tmp_path / "home")
    library.bases.add(source.folder, alias="b")
    library.add(write(tmp_path / "raw", tinker(source)), name="x", base="b")

    export("x@b", tmp_path / "out", form="tinker", library=library)

    again, given = load_file(tmp_path / "out" / "adapter_model.safetensors"), tinker(source)
    assert again.keys() == given.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in given.items())


def test_what_a_dialect_cannot_say_is_refused_by_name(world, tmp_path) -> None:
    library, source = world.library, world.source
    called = dict(zip(("gate", "up", "down"), FAMILIES[source.family][3], strict=True))
    pairs = {f"{source.holder(0)}.{e}.{called['gate']}": source.pairs[0, e, "gate"] for e in range(EXPERTS - 1)}
    library.add(write(tmp_path / "some", named(pairs)), name="some", base="b")
    library.add(write(tmp_path / "rs", named(source.plain), use_rslora=True), name="rs", base="b")
    with pytest.raises(UnsupportedAdapter, match="not all there"):
        export("some@b", tmp_path / "out", form="tinker", library=library)
    with pytest.raises(UnsupportedAdapter, match="`use_rslora`: Tinker"):
        export("rs@b", tmp_path / "out", form="tinker", library=library)
    with pytest.raises(UsageProblem, match="takes no `--dtype`"):
        export("x@b", tmp_path / "out", form="unsloth", library=library, dtype="float16")
    other = Library(tmp_path / "other")
    folder = world.exported("unsloth")
    with pytest.raises(UnsupportedAdapter, match=r"its base is unknown here|no layers of"):
        export(folder, tmp_path / "out", form="vllm@2d", library=other)
    assert not (tmp_path / "out").exists()
    assert RANK > 1, "at rank 1 both packings of B are one"
