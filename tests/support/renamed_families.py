"""Tiny models of every type whose modules transformers 5 renamed, and the names that transformers 4 had for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4, "num_labels": 3,
}  # fmt: skip
TEXT: dict[str, Any] = {k: SIZES[k] for k in list(SIZES)[:4]} | {"vocab_size": 32}
PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def built(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no two tensors are equal, so that files can be matched by content
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def of(name: str, config_name: str, *, config: Mapping[str, Any] = SIZES, **more: Any) -> Callable[[], nn.Module]:
    return lambda: built(getattr(tf, name), getattr(tf, config_name)(**config, **more))


def qwen2_audio() -> nn.Module:
    sizes = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}
    audio = {"model_type": "qwen2_audio_encoder", "num_mel_bins": 8, "max_source_positions": 20} | sizes
    text = {"model_type": "qwen2", "num_key_value_heads": 2} | TEXT
    return built(tf.Qwen2AudioForConditionalGeneration, tf.Qwen2AudioConfig(audio_config=audio, text_config=text))


def voxtral() -> nn.Module:
    audio = {"model_type": "voxtral_encoder", "num_mel_bins": 8, "max_source_positions": 20} | TEXT
    text = {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 8} | TEXT
    return built(tf.VoxtralForConditionalGeneration, tf.VoxtralConfig(audio_config=audio, text_config=text))


def rt_detr(name: str, config_name: str) -> Callable[[], nn.Module]:
    sizes = {
        "encoder_hidden_dim": 16, "encoder_in_channels": [8, 8, 8], "encoder_ffn_dim": 24, "d_model": 16,
        "encoder_attention_heads": 2, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 24, "decoder_layers": 2,
        "decoder_attention_heads": 2, "num_queries": 4, "num_labels": 3,
    }  # fmt: skip

    def make() -> nn.Module:
        stages = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "out_features": ["stage2", "stage3", "stage4"]}
        backbone = tf.RTDetrResNetConfig(embedding_size=8, layer_type="basic", **stages)
        return built(getattr(tf, name), getattr(tf, config_name)(backbone_config=backbone, **sizes))

    return make


def captioner() -> nn.Module:
    """A ViT and a BERT in one model."""
    torch.manual_seed(0)
    text = tf.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    encoder, decoder = tf.ViTModel(tf.ViTConfig(**SIZES)), tf.BertLMHeadModel(text)
    return tf.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()


class Plain(nn.Module):
    """Two layers under the names of either release, as a model of the other transformers would have them in memory."""

    def __init__(self, place: str, inside: tuple[str, str]) -> None:
        super().__init__()
        self.config = tf.ViTConfig(**SIZES)
        torch.manual_seed(3)
        self.paths = [f"{place}.{layer}.{name}" for layer in (0, 1) for name in inside]
        for path in self.paths:
            holder: nn.Module = self
            *parents, last = path.split(".")
            for part in parents:
                if part not in holder._modules:
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            holder.add_module(last, nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        for path in self.paths:
            x = torch.tanh(self.get_submodule(path)(x))
        return x


def before() -> nn.Module:
    return Plain("vit.encoder.layer", ("attention.attention.query", "output.dense"))


def now() -> nn.Module:
    return Plain("vit.layers", ("attention.q_proj", "mlp.fc2"))


ATTENTION = ("q_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class Family:
    """A model of the installed transformers, modules to adapt, an input, and what stands in its files otherwise."""

    make: Callable[[], nn.Module]
    targets: tuple[str, ...] = (*ATTENTION, "fc1", "fc2")
    inputs: Mapping[str, Tensor] | None = None
    misspelt: tuple[str, str] = ("", "")


vit = of("ViTForImageClassification", "ViTConfig")
MAE = {f"decoder_{key}": SIZES[key] for key in list(SIZES)[:4]}
SWIN = {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2}
SEGFORMER = {
    "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2],
    "sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2], "num_labels": 3,
}  # fmt: skip
SOUND = {"frequency_stride": 4, "time_stride": 4, "max_length": 16, "num_mel_bins": 8}
FAMILIES = {
    "vit": Family(vit),
    "deit": Family(of("DeiTForImageClassification", "DeiTConfig")),
    "beit": Family(of("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True)),
    "dinov2": Family(of("Dinov2ForImageClassification", "Dinov2Config"), (*ATTENTION, "fc1")),
    "vit_mae": Family(
        of("ViTMAEForPreTraining", "ViTMAEConfig", **MAE),
        inputs={"pixel_values": PIXELS, "noise": torch.linspace(0, 1, 8).reshape(2, 4)},
        # transformers 5 writes the decoder's layers under a name that no release has
        misspelt=("decoder_encoder.layer.", "decoder_layers."),
    ),
    "swin": Family(of("SwinForImageClassification", "SwinConfig", config=SWIN, num_labels=3)),
    "segformer": Family(of("SegformerForImageClassification", "SegformerConfig", config=SEGFORMER)),
    "audio-spectrogram-transformer": Family(
        of("ASTForAudioClassification", "ASTConfig", **SOUND),
        inputs={"input_values": PIXELS.reshape(2, -1)[:, :128].reshape(2, 16, 8)},
    ),
    "dinov3_vit": Family(of("DINOv3ViTModel", "DINOv3ViTConfig"), (*ATTENTION, "up_proj")),
    "gpt_neox": Family(
        of("GPTNeoXForCausalLM", "GPTNeoXConfig", config=TEXT),
        ("lm_head", "query_key_value"),
        {"input_ids": torch.arange(8).reshape(2, 4)},
    ),
}
"""Models to attach adapters to, by model type."""

WRITTEN: dict[str, Family] = FAMILIES | {
    "ijepa": Family(of("IJepaModel", "IJepaConfig")),
    "vit_msn": Family(of("ViTMSNModel", "ViTMSNConfig")),
    "vivit": Family(of("VivitModel", "VivitConfig", num_frames=4, tubelet_size=[2, 4, 4])),
    "dinov2_with_registers": Family(of("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig")),
    "qwen2_audio": Family(qwen2_audio),
    "voxtral": Family(voxtral),
    "rt_detr": Family(rt_detr("RTDetrForObjectDetection", "RTDetrConfig")),
    "rt_detr_v2": Family(rt_detr("RTDetrV2ForObjectDetection", "RTDetrV2Config")),
}
"""By model type the models that transformers 5 still writes under the names of transformers 4."""

READ: dict[str, Callable[[], nn.Module]] = {
    "clip_vision_model": of("CLIPVisionModel", "CLIPVisionConfig"),
    "chinese_clip_vision_model": of("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig"),
    "siglip_vision_model": of("SiglipVisionModel", "SiglipVisionConfig"),
    "siglip2_vision_model": of("Siglip2VisionModel", "Siglip2VisionConfig", num_patches=4),
    "mlcd_vision_model": of("MLCDVisionModel", "MLCDVisionConfig"),
    "clip_text_model": of("CLIPTextModel", "CLIPTextConfig", config=TEXT),
}
"""By model type the models of whose names of transformers 4 it only reads files."""


def names_in_files(family: Family, folder: Path) -> dict[str, str]:
    """For every tensor of the model the name that transformers itself gives it in files: that of transformers 4."""
    model = family.make()
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    by_content = {tensor.numpy().tobytes(): name.replace(*family.misspelt) for name, tensor in stored.items()}
    return {name: by_content[parameter.detach().numpy().tobytes()] for name, parameter in model.named_parameters()}
