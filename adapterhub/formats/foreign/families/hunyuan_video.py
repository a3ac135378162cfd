"""HunyuanVideo. ComfyUI's own names for it are those of FLUX.1 and lead to the same modules."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.families import Family, OfLinear1, Target, alone, swapped, thirds

_OURS, _THEIRS = "transformer_blocks.N", "double_blocks.N"
_OUR_REFINER: Final = "context_embedder.token_refiner.refiner_blocks.N"
_REFINER: Final = "txt_in.individual_token_refiner.blocks.N"
_TIME: Final = "time_text_embed"
_SINGLE: Final = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")

FAMILY: Final = Family(
    key="hunyuanvideo",
    title="HunyuanVideo",
    classes=("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
    marks=("hunyuan-video", "hunyuan_video", "hunyuanvideo"),
    modules=alone(
        {
            "img_in.proj": "x_embedder.proj",
            "time_in.mlp.0": f"{_TIME}.timestep_embedder.linear_1",
            "time_in.mlp.2": f"{_TIME}.timestep_embedder.linear_2",
            "guidance_in.mlp.0": f"{_TIME}.guidance_embedder.linear_1",
            "guidance_in.mlp.2": f"{_TIME}.guidance_embedder.linear_2",
            "vector_in.in_layer": f"{_TIME}.text_embedder.linear_1",
            "vector_in.out_layer": f"{_TIME}.text_embedder.linear_2",
            "final_layer.linear": "proj_out",
            "txt_in.input_embedder": "context_embedder.proj_in",
            "txt_in.t_embedder.mlp.0": f"context_embedder.{_TIME}.timestep_embedder.linear_1",
            "txt_in.t_embedder.mlp.2": f"context_embedder.{_TIME}.timestep_embedder.linear_2",
            "txt_in.c_embedder.linear_1": f"context_embedder.{_TIME}.text_embedder.linear_1",
            "txt_in.c_embedder.linear_2": f"context_embedder.{_TIME}.text_embedder.linear_2",
            f"{_REFINER}.self_attn_proj": f"{_OUR_REFINER}.attn.to_out.0",
            f"{_REFINER}.mlp.fc1": f"{_OUR_REFINER}.ff.net.0.proj",
            f"{_REFINER}.mlp.fc2": f"{_OUR_REFINER}.ff.net.2",
            f"{_REFINER}.adaLN_modulation.1": f"{_OUR_REFINER}.norm_out.linear",
            f"{_THEIRS}.img_attn_proj": f"{_OURS}.attn.to_out.0",
            f"{_THEIRS}.txt_attn_proj": f"{_OURS}.attn.to_add_out",
            f"{_THEIRS}.img_mod.linear": f"{_OURS}.norm1.linear",
            f"{_THEIRS}.txt_mod.linear": f"{_OURS}.norm1_context.linear",
            f"{_THEIRS}.img_mlp.fc1": f"{_OURS}.ff.net.0.proj",
            f"{_THEIRS}.img_mlp.fc2": f"{_OURS}.ff.net.2",
            f"{_THEIRS}.txt_mlp.fc1": f"{_OURS}.ff_context.net.0.proj",
            f"{_THEIRS}.txt_mlp.fc2": f"{_OURS}.ff_context.net.2",
            "single_blocks.N.linear2": f"single_{_OURS}.proj_out",
            "single_blocks.N.modulation.linear": f"single_{_OURS}.norm.linear",
        }
    )
    | {
        "final_layer.adaLN_modulation.1": (Target(name="norm_out.linear", rows=swapped),),
        f"{_REFINER}.self_attn_qkv": thirds(*(f"{_OUR_REFINER}.attn.to_{x}" for x in "qkv")),
        f"{_THEIRS}.img_attn_qkv": thirds(*(f"{_OURS}.attn.to_{x}" for x in "qkv")),
        f"{_THEIRS}.txt_attn_qkv": thirds(*(f"{_OURS}.attn.add_{x}_proj" for x in "qkv")),
        "single_blocks.N.linear1": tuple(
            Target(name=f"single_{_OURS}.{name}", rows=OfLinear1(part)) for part, name in enumerate(_SINGLE)
        ),
    },
    ratios={"single_blocks.N.linear1": 7, "single_blocks.N.linear2": 1 / 5},
    depths={"transformer_blocks": 20, "single_transformer_blocks": 40},
    widths=(3072,),
)
