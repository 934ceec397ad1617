"""Cuts the recorded PPLLaVA data to what the tests need: python cut.py FOLDER_OF_THE_WHOLE_DATA

The picture tower loses its last layer, the last step of its branch and the norm after them, which no feature passes; of
its two videos the first stays, of its states the one that PPLLaVA takes, and a frame of those at which the branch
starts. Of the text tower's two position tables the rows stay that a text of 110 tokens reads, of the table alone and of
what is pooled 2 channels, of the projector's outputs every fourth.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

source, here = Path(sys.argv[1]), Path(__file__).parent
inside = "vision_tower.vision_model."
unused = ("encoder.layers.5.", "btadapter_S_layers.3.", "btadapter_T_layers.3.", "post_layernorm.")
weights = load_file(source / "bt_adapter.safetensors")
weights = {k: x for k, x in weights.items() if not k.removeprefix(inside).startswith(unused)}
np.savez_compressed(here / "bt_weights.npz", **weights)
states, frames = np.load(source / "bt_adapter.npz"), 5
kept = {k: states[k][:1] for k in ("hidden_2", "hidden_3")}
np.savez_compressed(
    here / "bt_adapter.npz", input=states["input"][:1], hidden_minus2=states["hidden_minus2"][:frames], **kept
)

weights = load_file(source / "prompt_pooling.safetensors")
table = "multi_modal_projector.clip_text_model.embeddings.position_embedding"
weights[table], weights[f"{table}_res"] = weights[table][:20], weights[f"{table}_res"][20:110]
np.savez_compressed(here / "prompt_weights.npz", **weights)
cases = np.load(source / "prompt_pooling.npz")
told = ("patch_tokens", "clip_ids", "clip_mask", "text_pooled", "text_projection", "cosine", "weights")
kept = {k: x for k, x in cases.items() if k.split("/")[-1] in told}
kept |= {k: x[:, :, ::4] for k, x in cases.items() if "output" in k or k.endswith("_frame0")}
np.savez_compressed(here / "prompt_pooling.npz", **kept)
table = np.load(source / "text_positions.npz")
np.savez_compressed(here / "text_positions.npz", **{k: x[:, :2] for k, x in table.items()})
cases = np.load(source / "pooling.npz")
few = {k: x[:, :2] for k, x in cases.items() if not k.endswith("/w")}
np.savez_compressed(here / "pooling.npz", **{**cases, **few})
told = json.loads((source / "pooling.json").read_text())
(here / "pooling.json").write_text(json.dumps({"cases": told["cases"], "get_size": told["get_size"]}))
