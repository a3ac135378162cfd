"""What cannot be added up is refused by name, every reason at once; whole modules are carried over or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.core.errors import MalformedConfig, MergeRefused, RefusedAdapter
from adapterhub.weights.merge import method_names
from tests.support.adapter_folders import PREFIX, write_folder
from tests.weights.merging import config_of, run
from tests.weights.test_merge import MLP, QV

Q = "model.layers.0.self_attn.q_proj"
REFUSED = {
    "DoRA": ({"use_dora": True}, {}),
    "DoRA magnitude": ({}, {f"{Q}.lora_magnitude_vector": torch.ones(8)}),
    "a bias inside a LoRA pair, which its config does not announce (lora_bias)": (
        {},
        {f"{Q}.lora_B.bias": torch.ones(8)},
    ),
    "a trained bias of the base, which its config does not announce": ({}, {f"{Q}.bias": torch.ones(8)}),
    "trained rows": ({}, {"embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 8)}),
    "QALoRA": ({"use_qalora": True}, {}),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, {}),
    "Arrow": ({"arrow_config": {"top_k": 2}}, {}),
    "KaSA": ({"kasa_config": {"beta": 1}}, {}),
    "MonteCLoRA": ({"monteclora_config": {"samples": 2}}, {}),
    "Megatron": ({"megatron_config": {"sequence_parallel": True}}, {}),
    "ensure_weight_tying": ({"ensure_weight_tying": True}, {}),
    "copy of a base weight that is not an embedding": ({}, {f"{Q}.base_layer.weight": torch.ones(8, 8)}),
    "not a LoRA factor": ({}, {"model.norm.weight": torch.ones(8)}),
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("weights", [(0.9,), (0.7, 0.3)])
def test_what_is_no_low_rank_pair_is_refused_by_name(tmp_path: Path, reason: str, weights: tuple[float, ...]) -> None:
    config, extra = REFUSED[reason]
    folder = write_folder(tmp_path / "odd", QV, extra={PREFIX + n: t for n, t in extra.items()}, **config)
    folders = [folder, write_folder(tmp_path / "plain", QV)]

    for method in method_names():
        with pytest.raises(MergeRefused) as refused:
            run(tmp_path / "out", *zip(folders, weights, strict=False), method=method)

        assert [r for r in refused.value.reasons if reason in r and "`odd`" in r] != []
    assert not (tmp_path / "out").exists()


def test_dora_is_refused_with_a_command_that_is_exact(tmp_path: Path) -> None:
    dora = write_folder(tmp_path / "a", QV, use_dora=True)
    plain = write_folder(tmp_path / "b", QV)

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", (dora, 0.7), (plain, 0.3))

    assert "`adapt fuse a -o ./fused`" in refused.value.hint


def test_a_bias_that_the_config_announces_and_the_file_lacks_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV, lora_bias=True)

    with pytest.raises(RefusedAdapter) as refused:
        run(tmp_path / "out", (folder, 0.5))

    assert sum("no bias of B" in text for _, text in refused.value.findings) == len(QV)


@pytest.mark.parametrize("bias", [torch.ones(7), torch.ones(8, 1), torch.ones(8, dtype=torch.int64)])
def test_a_bias_of_another_shape_or_kind_is_refused(bias: torch.Tensor, tmp_path: Path) -> None:
    extra = {f"{PREFIX}q.lora_B.bias": bias}
    folder = write_folder(tmp_path / "a", {"q": (8, 6)}, extra=extra, lora_bias=True)

    with pytest.raises(RefusedAdapter, match=r"`q`: (B is \[8, 4\] and its bias|is stored as I64)"):
        run(tmp_path / "out", (folder, 0.5))


def test_another_method_than_lora_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV, peft_type="LOHA")

    with pytest.raises((MergeRefused, MalformedConfig), match="LOHA"):
        run(tmp_path / "out", (folder, 0.5))


def test_every_reason_is_listed_at_once(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", QV, use_dora=True, extra={f"{PREFIX}norm.weight": torch.ones(8)})
    second = write_folder(tmp_path / "b", dict.fromkeys(QV, (8, 9)), use_qalora=True)

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", (first, 0.5), (second, 0.5))

    text = str(refused.value)
    assert all(word in text for word in ("DoRA", "QALoRA", "norm.weight", *QV))


def test_modules_of_two_kinds_are_refused(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", {"x.embed": (16, 8), "x.q": (8, 8)})
    second = write_folder(tmp_path / "b", {"x.q": (8, 8, 1, 1)})
    tensors = {f"{PREFIX}x.embed.lora_A.weight": torch.ones(4, 16), f"{PREFIX}x.embed.lora_B.weight": torch.ones(8, 4)}
    save_file(tensors | load_file(second / "adapter_model.safetensors"), second / "adapter_model.safetensors")

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", (first, 0.5), (second, 0.5))

    assert any("x.embed" in r and "embedding" in r and "linear" in r for r in refused.value.reasons)
    assert any("x.q" in r and "conv" in r for r in refused.value.reasons)


def test_linear_lists_every_module_it_cannot_average(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", QV, ranks=4)
    second = write_folder(tmp_path / "b", MLP | {m: s for m, s in QV.items() if "q_proj" in m}, ranks=2)

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", (first, 0.5), (second, 0.5), method="linear")

    assert sum("not in every adapter" in r for r in refused.value.reasons) == 6
    assert sum("ranks 4, 2" in r for r in refused.value.reasons) == 3


# ---------------------------------------------------------------- modules_to_save


def with_score(folder: Path, value: float, **config: object) -> Path:
    return write_folder(
        folder, QV, extra={f"{PREFIX}score.weight": torch.full((2, 8), value)}, modules_to_save=["score"], **config
    )


def test_a_saved_module_that_one_adapter_has_is_carried_over(tmp_path: Path) -> None:
    first, second = with_score(tmp_path / "a", 1.5), write_folder(tmp_path / "b", QV, seed=1)

    result = run(tmp_path / "out", (first, 0.7), (second, 0.3))

    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(stored[f"{PREFIX}score.weight"], torch.full((2, 8), 1.5))
    assert config_of(tmp_path / "out")["modules_to_save"] == ["score"]
    assert any("score" in w and "carried over unchanged from `a`" in w for w in result.warnings)


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_a_saved_module_that_is_not_finite_is_refused(tmp_path: Path, weight: float) -> None:
    folder = with_score(tmp_path / "a", float("nan"))

    with pytest.raises(MergeRefused, match=r"score\.weight.*NaN"):
        run(tmp_path / "out", (folder, weight))


@pytest.mark.parametrize(("task", "head"), [("SEQ_CLS", "score"), ("QUESTION_ANS", "qa_outputs")])
def test_a_head_that_peft_saves_unasked_is_carried_over(tmp_path: Path, task: str, head: str) -> None:
    # as PEFT of before 2024 wrote it: the config does not name the head
    tensor = {f"{PREFIX}{head}.weight": torch.ones(2, 8)}
    folder = write_folder(tmp_path / "a", QV, extra=tensor, modules_to_save=None, task_type=task)

    run(tmp_path / "out", (folder, 0.7))

    assert f"{PREFIX}{head}.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert config_of(tmp_path / "out")["modules_to_save"] == [head]


def test_the_name_of_a_saved_module_is_written_as_peft_reads_it(tmp_path: Path) -> None:
    tensor = {f"{PREFIX}score.modules_to_save.default.weight": torch.ones(2, 8)}
    folder = write_folder(tmp_path / "a", QV, extra=tensor, modules_to_save=["score"])

    run(tmp_path / "out", (folder, 0.7))

    assert f"{PREFIX}score.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")


def test_equal_saved_modules_are_carried_over_and_different_ones_refused(tmp_path: Path) -> None:
    first, same, other = (with_score(tmp_path / n, v) for n, v in (("a", 1.5), ("b", 1.5), ("c", 2.5)))

    run(tmp_path / "out", (first, 0.7), (same, 0.3))
    with pytest.raises(MergeRefused, match=r"score\.weight.*modules_to_save"):
        run(tmp_path / "no", (first, 0.7), (other, 0.3))

    assert f"{PREFIX}score.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")


def test_factors_of_a_module_that_another_adapter_replaces_are_refused(tmp_path: Path) -> None:
    first, second = with_score(tmp_path / "a", 1.5), write_folder(tmp_path / "b", {"score": (2, 8)})

    with pytest.raises(MergeRefused, match="replaces all of `score`"):
        run(tmp_path / "out", (first, 0.7), (second, 0.3))
