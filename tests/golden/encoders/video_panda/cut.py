"""Cuts the recorded Video-Panda data to what the tests need: python cut.py FOLDER_OF_THE_WHOLE_DATA

The tower loses lmhra2, which no feature passes. Of the clips the square and the tall one stay whole, of the wide one a
frame for the canvas; wide tokens are held by the case at 448 pixels, whose frames a rule makes. Of many tokens every
n-th stays, of canvases every fourth row of the first, of masks the rows and columns.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

source, here = Path(sys.argv[1]), Path(__file__).parent
tower, clips = np.load(source / "tower.npz"), np.load(source / "preprocess.npz")
told = json.loads((source / "preprocess.json").read_text())

weights = load_file(source / "tower.safetensors")
np.savez_compressed(here / "weights.npz", **{k: x for k, x in weights.items() if ".lmhra2." not in k})
steps = {"tall_72x128/tokens": 2, "single_frame/tokens": 1, "square_60x60/tokens": 5, "square_60x60/projected": 8}
steps |= {"rule_448_wide/tokens_frame3": 12, "rule_448_square/tokens_frame0": 12}
np.savez_compressed(here / "tower.npz", **{k: tower[k][::step] for k, step in steps.items()})
sources = {k: x[: 1 if k.startswith("wide") else 4] for k, x in clips.items() if k.endswith("source")}
canvases = {k: x[:1, ::4] for k, x in clips.items() if k.endswith("canvas")}
samples = {k: x[: len(sources[k.replace("frames_sampled", "source")])] for k, x in clips.items() if "sampled" in k}
np.savez_compressed(here / "preprocess.npz", **sources, **canvases, **samples)
cases = {k: {"rows": c["mask_rows"], "cols": c["mask_cols"]} for k, c in told["cases"].items()}
(here / "preprocess.json").write_text(json.dumps({"cases": cases, "geometry_448": told["geometry_448"]}))
(here / "frame_indices.json").write_text(json.dumps(json.loads((source / "frame_indices.json").read_text())["rows"]))
full = json.loads((source / "parameters_full_size.json").read_text())
kept = ("tower_used", "projector_parameters", "used_total", "state_keys", "projector_keys")
(here / "parameters_full_size.json").write_text(json.dumps({k: full[k] for k in kept}))
