"""Checkpoints in and out: our folder, and the official PAVE folders under the official names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pave.nn.patch import Patch

# Ours -> official. The only place, beside the glossary, where the old names stand.
_OFFICIAL_PATCH_NAMES = (
    (r"^side_in\.(\d+)\.(\d+)\.time", r"input_mapping.\1.res\2.branch2.a"),
    (r"^side_in\.(\d+)\.(\d+)\.space", r"input_mapping.\1.res\2.branch2.b"),
    (r"^side_in\.(\d+)\.(\d+)\.out", r"input_mapping.\1.res\2.branch2.c"),
    (r"^side_in\.(\d+)\.(\d+)\.skip", r"input_mapping.\1.res\2.branch1"),
    (r"^side_in\.", "input_mapping."),
    (r"^query_in\.", "query_input_mapping."),
    (r"^queries$", "learnable_query"),
    (r"^layers\.(\d+)\.([qkv])\.", r"cross_attn_layers.\1.attn.\2_linear."),
    (r"^layers\.(\d+)\.norm\.", r"cross_attn_layers.\1.ffn.0."),
    (r"^layers\.(\d+)\.up\.", r"cross_attn_layers.\1.ffn.1."),
    (r"^layers\.(\d+)\.down\.", r"cross_attn_layers.\1.ffn.3."),
    (r"^out\.", "output_mapping."),
    (r"^out_norm\.", "output_norm."),
)


def official_patch_name(name: str) -> str:
    """The released name of a patch parameter, without its prefix."""
    for ours, official in _OFFICIAL_PATCH_NAMES:
        renamed, found = re.subn(ours, official, name)
        if found:
            return renamed
    raise KeyError(f"patch parameter '{name}' has no official name")


def rename_patch(patch: Patch, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official patch state under our names; names the patch does not know stay as they are."""
    ours = {official_patch_name(name): name for name in patch.state_dict()}
    # Quirk: start_end_tokens may be saved and is never read by the patch (reference.md C1).
    return {ours.get(name, name): x for name, x in state.items() if name != "start_end_tokens"}
