"""A patch from the arguments of the official constructor, as the stored cases have them."""

from __future__ import annotations

from typing import Any

import torch

from pave.models.patch.patch import ConvShape, Patch


def build(ctor: dict[str, Any], dtype: torch.dtype = torch.float32) -> Patch:
    """A patch from the official constructor's arguments."""
    conv = None
    if ctor["fast_input_mapping_type"] == "conv":
        conv = ConvShape(ctor["number_of_block_each_layer"], ctor["sptial_stride"], ctor["dim_scaling"])
    learnable = ctor.get("query_type") == "learnable"
    return Patch(
        ctor["input_dim"],
        ctor["query_input_dim"],
        ctor["output_dim"],
        hidden_dim=ctor["cross_attn_hidden_dim"],
        side_hidden_dim=ctor["embed_dim"] or 4 * ctor["input_dim"],
        heads=ctor["num_cross_attn_head"],
        num_layers=ctor["num_cross_attn_layer"],
        rope=ctor.get("use_3d_rope", True),
        conv=conv,
        queries=(ctor["chunks_number"], ctor["number_of_query"]) if learnable else None,
        out_mlp=ctor["use_output_mlp"],
        out_norm=ctor["use_output_norm"],
        dropout=ctor.get("dropout_rate", 0.0),
    ).to(dtype)
