"""Cuts the recorded LanguageBind data to what the tests need: python cut.py FOLDER_OF_THE_WHOLE_DATA

The tower loses its last layer and the norm after it, which no feature passes; of two chunks of frames the first stays,
of each clip of the transform the first frame, of that every 9th pixel; of the table of frames the first 40 of a row.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

source, here = Path(sys.argv[1]), Path(__file__).parent
tower, cases = np.load(source / "tower.npz"), np.load(source / "transform.npz")

weights = load_file(source / "tower.safetensors")
unused = ("vision_model.encoder.layers.2.", "vision_model.post_layernorm.")
save_file({k: x for k, x in weights.items() if not k.startswith(unused)}, here / "tower.safetensors")
names = ("input", "hidden_0", "hidden_1", "hidden_minus2", "hidden_minus2_quick_gelu")
np.savez_compressed(here / "tower.npz", pooled=tower["pooled"][:8], **{k: tower[k][:1] for k in names})
clips = {k: x[:1] for k, x in cases.items() if k.endswith("clip_uint8")}
samples = {k: x[:, :1] for k, x in cases.items() if k.endswith("out_sampled")}
np.savez_compressed(here / "transform.npz", **clips, **samples)
table = json.loads((source / "frame_indices.json").read_text())["rows"]
rows = [{**row, "indices": row["indices"][:40]} for row in table]
(here / "frame_indices.json").write_text(json.dumps(rows).replace("}, ", "},\n"))
