"""One adapter of weight 1 is its own merge: copied byte for byte whatever kind of LoRA it is, if its numbers are sound."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

from adapterhub.core.errors import AdapterHubError, MalformedTensorFile, MergeRefused, UsageProblem
from adapterhub.weights.catalogue import names
from adapterhub.weights.merge import _one_thread
from tests.support.adapter_folders import PREFIX, write_folder
from tests.support.peft_bases import Attention, Base, fresh, llama, llama_with_biases, logits, mixtral, save, tied_llama
from tests.weights.merging import run

pytestmark = pytest.mark.filterwarnings("ignore")

FILES = ("adapter_config.json", "adapter_model.safetensors")
QV = ["q_proj", "v_proj"]

VARIANTS: dict[str, tuple[Base, Mapping[str, object]]] = {
    "plain": (llama, {}),
    "rsLoRA": (llama, {"use_rslora": True}),
    "patterns": (llama, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}),
    "DoRA": (llama, {"use_dora": True}),
    "lora_bias": (llama_with_biases, {"lora_bias": True}),
    "bias all": (llama_with_biases, {"bias": "all"}),
    "bias lora_only": (llama_with_biases, {"bias": "lora_only"}),
    "bias all and lora_bias": (llama_with_biases, {"bias": "all", "lora_bias": True}),
    "trainable tokens": (llama, {"trainable_token_indices": [1, 3]}),
    "trainable tokens of a tied base": (tied_llama, {"trainable_token_indices": [1, 3]}),
    "copies of embeddings": (llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "DoRA on embeddings": (llama, {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    "modules_to_save": (llama, {"modules_to_save": ["lm_head"]}),
    "tied pairs": (
        tied_llama,
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "aLoRA": (llama, {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"}),
    "layer_replication": (llama, {"layer_replication": [[0, 2], [1, 3]]}),
    "target_parameters": (mixtral, {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    "a layer of layers": (Attention, {"target_modules": ["attn"]}),
    "PiSSA": (llama, {"init_lora_weights": "pissa"}),
    "OLoRA": (llama, {"init_lora_weights": "olora"}),
    "orthogonal": (llama, {"init_lora_weights": "orthogonal"}),
    "KaSA": (llama, {"kasa_config": KasaConfig()}),
    "MonteCLoRA": (llama, {"monteclora_config": MontecloraConfig()}),
    "VeLoRA": (llama, {"velora_config": VeloraConfig()}),
    "BD-LoRA": (llama, {"use_bdlora": BdLoraConfig(nblocks=2, target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"])}),
}  # fmt: skip


def loaded(base: Base, folder: Path) -> torch.Tensor:
    torch.manual_seed(0)  # some of these draw random numbers when they are loaded
    return logits(PeftModel.from_pretrained(fresh(base), folder).eval())


@pytest.mark.parametrize("with_others", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_copy_of_any_variant_acts_as_the_original(variant: str, with_others: bool, tmp_path: Path) -> None:  # noqa: FBT001
    base, options = VARIANTS[variant]
    folder = save(tmp_path / "a", base, {"r": 4, "target_modules": QV} | options)
    other = write_folder(tmp_path / "b", {"x": (3, 3)}, ranks=1)
    before = loaded(base, folder)

    result = run(tmp_path / "out", (folder, 1.0), *([(other, 0.0)] if with_others else []))

    assert all((tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes() for name in FILES)
    assert (result.is_copy, result.relative_error, result.worst_error, result.truncation_error) == (True, 0, 0, None)
    assert any("weight 0" in warning for warning in result.warnings) == with_others
    assert torch.equal(loaded(base, tmp_path / "out"), before)
    assert not torch.equal(before, logits(fresh(base)))


@pytest.mark.parametrize("method", names())
@pytest.mark.parametrize("variant", ["DoRA", "lora_bias", "bias all", "PiSSA"])
def test_every_method_copies(variant: str, method: str, tmp_path: Path) -> None:
    base, options = VARIANTS[variant]
    folder = save(tmp_path / "a", base, {"r": 4, "target_modules": QV} | options)

    result = run(tmp_path / "out", (folder, 1.0), method=method)

    assert result.is_copy
    assert all((tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(
    ("variant", "tensor"),
    [
        ("plain", "lora_A.weight"), ("DoRA", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias"),
        ("bias all", "k_proj.bias"), ("trainable tokens", "trainable_tokens_delta"), ("BD-LoRA", "lora_B.weight"),
        ("copies of embeddings", "embed_tokens.base_layer.weight"), ("modules_to_save", "lm_head.weight"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_with_every_tensor(
    variant: str, tensor: str, bad: float, tmp_path: Path
) -> None:
    base, options = VARIANTS[variant]
    folder = save(tmp_path / "a", base, {"r": 4, "target_modules": QV} | options)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    touched = [name for name in tensors if name.endswith(tensor)]
    for name in touched:
        tensors[name].view(-1)[-1] = bad
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", (folder, 1.0))

    assert touched
    assert sorted(refused.value.reasons) == sorted(f"`{n}` in `a` holds NaN or infinite numbers" for n in touched)
    assert list(tmp_path.iterdir()) == [folder]


def test_numbers_of_eight_bits_are_looked_at_as_well(tmp_path: Path) -> None:
    saved = torch.full((2, 8), float("nan")).to(torch.float8_e4m3fn)
    folder = write_folder(
        tmp_path / "a", {"q_proj": (8, 8)}, extra={f"{PREFIX}score.weight": saved}, modules_to_save=["score"]
    )

    for weight in (1.0, 0.5):
        with pytest.raises(MergeRefused, match=r"score\.weight.*NaN"):
            run(tmp_path / "out", (folder, weight))


@pytest.mark.parametrize("peft_type", ["IA3", "VERA", "PROMPT_TUNING"])
def test_what_is_no_sum_is_not_copied(peft_type: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"q_proj": (8, 8)}, peft_type=peft_type)
    (folder / "adapter_model.safetensors").unlink()
    save_file({f"{PREFIX}q_proj.hada_w1_a": torch.ones(8, 4)}, folder / "adapter_model.safetensors")

    for weight in (1.0, 0.5):
        with pytest.raises(MergeRefused, match=f"`a` is of type {peft_type}, expected LORA"):
            run(tmp_path / "out", (folder, weight))


def test_a_tensor_that_its_config_does_not_announce_is_not_copied(tmp_path: Path) -> None:
    extra = {f"{PREFIX}model.norm.weight": torch.ones(8), f"{PREFIX}q_proj.base_layer.weight": torch.ones(8, 8)}
    folder = write_folder(tmp_path / "a", {"q_proj": (8, 8)}, extra=extra)

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", (folder, 1.0))

    assert all(any(name in reason for reason in refused.value.reasons) for name in extra)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"q_proj": (8, 8)})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")

    with pytest.raises(MalformedTensorFile, match=r"adapter_model\.safetensors"):
        run(tmp_path / "out", (folder, 1.0))


def test_an_adapter_without_factors_is_not_copied(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {}, extra={f"{PREFIX}score.weight": torch.ones(2, 8)}, target_modules=["q"])

    with pytest.raises(MergeRefused, match="holds no LoRA factors"):
        run(tmp_path / "out", (folder, 1.0))


@pytest.mark.parametrize("weight", [0.5, -1.0, 1.0 + 1e-9])
@pytest.mark.parametrize("variant", ["DoRA", "PiSSA", "OLoRA", "KaSA", "MonteCLoRA", "BD-LoRA", "tied pairs"])
def test_what_is_copied_may_be_refused_at_another_weight(variant: str, weight: float, tmp_path: Path) -> None:
    base, options = VARIANTS[variant]
    folder = save(tmp_path / "a", base, {"r": 4, "target_modules": QV} | options)

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", (folder, weight))

    assert all(reason.startswith("`a` ") for reason in refused.value.reasons)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("options", [{"rank": 2}, {"max_error": 0.1}, {"energy": 0.9}, {"dtype": "bfloat16"}])
def test_an_option_makes_it_a_merge(options: dict[str, object], tmp_path: Path) -> None:
    plain = save(tmp_path / "a", llama, {"r": 4, "target_modules": QV})
    dora = save(tmp_path / "b", llama, {"r": 4, "target_modules": QV, "use_dora": True})

    assert not run(tmp_path / "out", (plain, 1.0), **options).is_copy
    with pytest.raises(MergeRefused, match="DoRA"):
        run(tmp_path / "no", (dora, 1.0), **options)


def test_an_unknown_option_is_refused_before_a_copy(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"q_proj": (8, 8)})

    with pytest.raises(UsageProblem):
        run(tmp_path / "out", (folder, 1.0), colour="blue")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_a_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"q_proj": (8, 8)})
    (folder / name).unlink()

    with pytest.raises(AdapterHubError, match=name):
        run(tmp_path / "out", (folder, 1.0))


def test_merges_at_the_same_time_leave_the_number_of_threads_unchanged() -> None:
    def of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    def merging(waits: Event, begun: Event) -> None:
        with _one_thread():
            begun.set()
            assert waits.wait(60)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(2) as pool:
            ends, begun = (Event(), Event()), (Event(), Event())
            first = pool.submit(merging, ends[0], begun[0])
            assert begun[0].wait(60)
            second = pool.submit(merging, ends[1], begun[1])
            assert begun[1].wait(60)
            ends[0].set()
            first.result()
            during = of_a_new_thread()
            ends[1].set()
            second.result()
        assert (during, of_a_new_thread(), torch.get_num_threads()) == (1, 3, 3)
    finally:
        torch.set_num_threads(before)
