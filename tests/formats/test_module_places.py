"""Layers and kinds read off module names."""

from __future__ import annotations

import pytest

from adapterhub.formats.modules import place_of, short_names


@pytest.mark.parametrize(
    ("module", "kind", "layer"),
    [
        ("model.layers.12.self_attn.q_proj", "model.layers.*.self_attn.q_proj", 12),
        ("transformer.h.0.attn.c_attn", "transformer.h.*.attn.c_attn", 0),
        ("model.layers.3.mlp.experts.17.w1", "model.layers.*.mlp.experts.*.w1", 3),
        ("lm_head", "lm_head", None),
        ("7", "*", 7),
        ("layers.²", "layers.²", None),
        ("a." + "9" * 5000, "a." + "9" * 5000, None),
    ],
)
def test_the_first_number_is_the_layer(module: str, kind: str, layer: int | None) -> None:
    assert place_of(module) == (kind, layer)


def test_a_kind_is_called_by_the_shortest_end_that_is_its_own() -> None:
    kinds = [
        "model.layers.*.self_attn.q_proj",
        "model.layers.*.cross.q_proj",
        "model.layers.*.mlp.up",
        "up.*",
        "*",
        "*.*",
    ]

    assert short_names(kinds) == {
        "model.layers.*.self_attn.q_proj": "self_attn.q_proj",
        "model.layers.*.cross.q_proj": "cross.q_proj",
        "model.layers.*.mlp.up": "up",
        "up.*": "up.*",
        "*": "*",
        "*.*": "*.*",
    }


def test_a_kind_that_is_the_end_of_another_keeps_its_whole_name() -> None:
    assert short_names(["q", "layers.*.q"]) == {"q": "q", "layers.*.q": "*.q"}
