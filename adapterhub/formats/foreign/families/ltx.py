"""LTX-Video and LTX-2, with the audio stream of the latter; the names of the former are a part of its names."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.families import Family, alone, same

_ADALN: Final = {
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
}
_TIME: Final = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
_ATTENTION: Final = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_INSIDE: Final = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")

FAMILY: Final = Family(
    key="ltx",
    title="LTX-Video or LTX-2",
    classes=("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"),
    marks=("ltx",),
    modules=alone(
        {
            "patchify_proj": "proj_in",
            "audio_patchify_proj": "audio_proj_in",
            **{f"{theirs}.{end}": f"{ours}.{end}" for theirs, ours in _ADALN.items() for end in _TIME},
        }
    )
    | same("proj_out", "audio_proj_out")
    | same(*(f"{audio}caption_projection.linear_{n}" for audio in ("", "audio_") for n in (1, 2)))
    | same(*(f"transformer_blocks.N.{attention}.{name}" for attention in _ATTENTION for name in _INSIDE))
    | same(*(f"transformer_blocks.N.{audio}ff.net.{name}" for audio in ("", "audio_") for name in ("0.proj", "2"))),
    depths={"transformer_blocks": 48},
    widths=(2048, 4096),
)
