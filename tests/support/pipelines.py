"""Tiny pipelines of random weights with the real structure of Stable Diffusion 1.5, XL, 3 and Flux. Needs diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = ("<start>", "<end>", "a", "cat", "dog", "red", "photo", "of")


START, END = "<start>", "<end>"


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=END))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=START, eos_token=END, pad_token=END, model_max_length=16
    )


def text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2, vocab_size=32,
        max_position_embeddings=16, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def vae(**changes: Any) -> AutoencoderKL:
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(**(sizes | blocks | changes))


def sd15() -> StableDiffusionPipeline:
    torch.manual_seed(15)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=2, sample_size=8, cross_attention_dim=16, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config(16)), tokenizer=tokenizer(), unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(21)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=2, sample_size=8, cross_attention_dim=32, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config(16)), tokenizer=tokenizer(), unet=unet,
        text_encoder_2=CLIPTextModelWithProjection(text_config(16)), tokenizer_2=tokenizer(), scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )  # fmt: skip


def t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(d_model=width, d_ff=32, d_kv=8, num_heads=2, num_layers=2, vocab_size=32))


def flux() -> FluxPipeline:
    torch.manual_seed(31)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(latent_channels=4), text_encoder=CLIPTextModel(text_config(16)),
        tokenizer=tokenizer(), text_encoder_2=t5(32), tokenizer_2=tokenizer(), transformer=transformer,
    )  # fmt: skip


def sd3() -> StableDiffusion3Pipeline:
    torch.manual_seed(3)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(latent_channels=4),
        text_encoder=CLIPTextModelWithProjection(text_config(16)), tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(16)), tokenizer_2=tokenizer(),
        text_encoder_3=t5(32), tokenizer_3=tokenizer(),
    )  # fmt: skip


PIPELINES: dict[str, Callable[[], Any]] = {"sd15": sd15, "sdxl": sdxl, "flux": flux, "sd3": sd3}


# ---------------------------------------------------------------- in the names of the original checkpoints
def ldm_names(unet: nn.Module) -> dict[str, Tensor]:
    """The tensors of a UNet with two levels of two layers each, as ldm names them; written by hand for this shape."""
    levels = 2
    kinds = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    places = {
        "conv_in": "input_blocks.0.0", "conv_out": "out.2", "conv_norm_out": "out.0",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2", "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    }  # fmt: skip
    for level in range(levels):
        for layer in (0, 1):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{1 + 3 * level + layer}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{1 + 3 * level + layer}.1"
        for layer in (0, 1, 2):
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{3 * level + layer}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{3 * level + layer}.1"
    has_attention = any(name.startswith("up_blocks.0.attentions") for name in unet.state_dict())
    places["up_blocks.0.upsamplers.0.conv"] = f"output_blocks.2.{2 if has_attention else 1}.conv"
    found = {}
    for name, tensor in unet.state_dict().items():
        place = max((p for p in places if name.startswith(f"{p}.")), key=len)
        rest = name[len(place) + 1 :]
        if ".resnets." in f".{place}.":
            kind, _, last = rest.partition(".")
            rest = f"{kinds[kind]}.{last}"
        found[f"model.diffusion_model.{places[place]}.{rest}"] = tensor
    return found


def open_clip_names(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The tensors of a CLIP text encoder as OpenCLIP names them: q, k and v in one, the projection transposed."""
    own = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    found = {
        "token_embedding.weight": own["embeddings.token_embedding.weight"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "text_projection": own["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    found |= {f"ln_final.{last}": own[f"final_layer_norm.{last}"] for last in ("weight", "bias")}
    inside = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
              "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    for layer in (0, 1):
        here, there = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for last in ("weight", "bias"):
            found |= {f"{there}.{new}.{last}": own[f"{here}.{old}.{last}"] for new, old in inside.items()}
            fused = [own[f"{here}.self_attn.{which}_proj.{last}"] for which in "qkv"]
            found[f"{there}.attn.in_proj_{last}"] = torch.cat(fused)
    return {prefix + name: tensor for name, tensor in found.items()}


def clip_names(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    own = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    return {f"{prefix}text_model.{name}": tensor for name, tensor in own.items()}


def bfl_names(transformer: nn.Module) -> dict[str, Tensor]:
    """The tensors of a Flux transformer of one double and one single block in the names of its authors."""
    own = transformer.state_dict()
    double, single = "transformer_blocks.0.", "single_transformer_blocks.0."
    plain = {
        "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
        "double_blocks.0.img_mod.lin": f"{double}norm1.linear",
        "double_blocks.0.txt_mod.lin": f"{double}norm1_context.linear",
        "double_blocks.0.img_attn.proj": f"{double}attn.to_out.0", "double_blocks.0.txt_attn.proj": f"{double}attn.to_add_out",
        "double_blocks.0.img_mlp.0": f"{double}ff.net.0.proj", "double_blocks.0.img_mlp.2": f"{double}ff.net.2",
        "double_blocks.0.txt_mlp.0": f"{double}ff_context.net.0.proj",
        "double_blocks.0.txt_mlp.2": f"{double}ff_context.net.2",
        "single_blocks.0.modulation.lin": f"{single}norm.linear", "single_blocks.0.linear2": f"{single}proj_out",
    }  # fmt: skip
    for there, here in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        for old, new in (("in_layer", "linear_1"), ("out_layer", "linear_2")):
            plain[f"{there}.{old}"] = f"time_text_embed.{here}_embedder.{new}"
    found = {}
    for last in ("weight", "bias"):
        found |= {f"{there}.{last}": own[f"{here}.{last}"] for there, here in plain.items()}
        parts = {
            "double_blocks.0.img_attn.qkv": [f"{double}attn.to_{x}" for x in "qkv"],
            "double_blocks.0.txt_attn.qkv": [f"{double}attn.add_{x}_proj" for x in "qkv"],
            "single_blocks.0.linear1": [*(f"{single}attn.to_{x}" for x in "qkv"), f"{single}proj_mlp"],
        }
        found |= {f"{there}.{last}": torch.cat([own[f"{n}.{last}"] for n in names]) for there, names in parts.items()}
        first, second = own[f"norm_out.linear.{last}"].chunk(2)
        found[f"final_layer.adaLN_modulation.1.{last}"] = torch.cat([second, first])
    norms = {
        f"double_blocks.0.img_attn.norm.{w}_norm.scale": f"{double}attn.norm_{w[0]}.weight" for w in ("query", "key")
    }
    norms |= {
        f"double_blocks.0.txt_attn.norm.{w}_norm.scale": f"{double}attn.norm_added_{w[0]}.weight"
        for w in ("query", "key")
    }
    norms |= {f"single_blocks.0.norm.{w}_norm.scale": f"{single}attn.norm_{w[0]}.weight" for w in ("query", "key")}
    return found | {there: own[here] for there, here in norms.items()}


def single_file(kind: str, pipeline: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The pipeline in one file, as its authors publish that kind."""
    if kind == "flux":
        tensors = bfl_names(pipeline.transformer)
    else:
        tensors = ldm_names(pipeline.unet)
        tensors |= {f"first_stage_model.{name}": tensor for name, tensor in pipeline.vae.state_dict().items()}
        tensors |= {"betas": torch.ones(4), "model_ema.decay": torch.tensor(0.9)}
        prefix = "cond_stage_model.transformer." if kind == "sd15" else "conditioner.embedders.0.transformer."
        tensors |= clip_names(pipeline.text_encoder, prefix)
        if kind == "sdxl":
            tensors |= open_clip_names(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    save_file({name: tensor.to(dtype).contiguous().clone() for name, tensor in tensors.items()}, path)
    return path
