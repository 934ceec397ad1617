"""Pooling, newlines and splicing against the official code (tests/golden/module/{packing,splice})."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.golden_patch import build
from helpers.paths import GOLDEN, read_json
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from pave.checkpoints.official import patch_name, rename_patch
from pave.data.collate import expand_video_tokens, pad_rows
from pave.models.bases import _llava_onevision_layouts
from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.models.patched_model import PatchedModel
from pave.types import IGNORE_INDEX, UserError, VideoTokens

SPLICE, PACKING = GOLDEN / "module/splice", GOLDEN / "module/packing"
SPEC = read_json(SPLICE / "weights.json")
WEIGHTS = load_file(SPLICE / "weights.safetensors")
INPUTS = load_file(SPLICE / "inputs.safetensors")
"""Equal in most cases, so stored once."""
CASES = sorted(p.stem for p in SPLICE.glob("s*.json") if p.stem != "s01_gradients")
"""Those in which the patch is added; the original's legacy modes (concat, interleave) are not built here."""


class StoredTower(nn.Module):
    """Gives stored tower features instead of looking at pixels."""

    dtype = torch.float32

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixels: Tensor, output_hidden_states: bool) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[self.features[: len(pixels)]])


def skeleton(width: int, vocabulary: int, vision: dict[str, int], text_heads: int) -> Any:
    """A model with one layer in each tower, of these sizes."""
    layers = {"intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": text_heads, "num_key_value_heads": text_heads}
    text = {"hidden_size": width, "vocab_size": vocabulary, "tie_word_embeddings": True, **layers, **heads}
    return _llava_onevision_layouts.build_model(text, {**vision, **layers})


def fake_model(case: dict[str, Any], data: dict[str, Tensor]) -> PatchedModel:
    """The 40-wide fake model of the stored cases: embeddings, projector, newline and one patch."""
    hf = skeleton(
        40, 48, {"hidden_size": 28, "num_attention_heads": 4, "image_size": 70, "patch_size": 14}, text_heads=2
    )
    for name, parameter in (
        ("embed_tokens.weight", hf.model.language_model.embed_tokens.weight),
        ("mm_projector.0.weight", hf.model.multi_modal_projector.linear_1.weight),
        ("mm_projector.0.bias", hf.model.multi_modal_projector.linear_1.bias),
        ("mm_projector.2.weight", hf.model.multi_modal_projector.linear_2.weight),
        ("mm_projector.2.bias", hf.model.multi_modal_projector.linear_2.bias),
        ("image_newline", hf.model.image_newline),
    ):
        parameter.data.copy_(WEIGHTS[f"A/{name}"])
    base = LlavaOnevision(hf, None, case["config"]["mm_newline_position"])
    if "vision_tower_output" in data:
        hf.model.vision_tower = StoredTower(data["vision_tower_output"])
    else:
        stored = torch.stack([data["slow_features/0"], data["slow_features/1"]])
        base.encode = lambda pixels, prompt_ids: VideoTokens(stored, stored)
    prefix = f"{case['patch']}/temporal_aggregator."
    state = {k.removeprefix(prefix): v for k, v in WEIGHTS.items() if k.startswith(prefix)}
    patch = build(SPEC[f"patch_{case['patch']}"])
    patch.load_state_dict(rename_patch(patch, state))
    return PatchedModel(base, {"side": patch})


def splice(name: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], PatchedModel]:
    """Our embeddings, labels and mask of one stored case."""
    case = read_json(SPLICE / f"{name}.json")
    shared = {key: x for key, x in INPUTS.items() if key in case["tensors"]}
    data = {**shared, **load_file(SPLICE / f"{name}.safetensors")}
    model = fake_model(case, data)
    limit = case["config"]["tokenizer_model_max_length"] or 10**6
    ids = data["input_ids"]
    stored_mask = data.get("attention_mask", torch.ones_like(ids)).bool()
    stored_labels = data.get("labels", torch.full_like(ids, IGNORE_INDEX))
    rows = [
        expand_video_tokens(i[m].tolist(), label[m].tolist(), model.base.num_visual_tokens(4), limit)
        for i, label, m in zip(ids, stored_labels, stored_mask)
    ]
    left = case["config"]["tokenizer_padding_side"] == "left"
    videos = len(case["modalities"])
    # The official code lets a text without a video use up one of the batch's videos; ours is given none for it.
    owners = [b for b, row in enumerate(ids) for _ in range(int((row == case["image_token"]).sum()))]
    videos = len(owners)
    sides: dict[str, Any] = {}
    if "video_feats" in data:
        x = data["video_feats"].permute(0, 2, 3, 4, 1)[:videos]
        sides["side"] = {"x": x, "steps": data["feat_frame_nums"][:videos].tolist(), "seconds": None}
    ids, pixels = pad_rows([r[0] for r in rows], 0, left), torch.zeros(videos, 4, 3, 70, 70)
    if len(set(owners)) < videos:
        # The original takes two videos in a row, of which ours has no use and makes a mistake of the data.
        with pytest.raises(UserError, match="1 rows show a video, there are 2 videos"):
            model.splice(ids, pixels, sides)
        visual = model.fuse(pixels, sides).flatten(0, 1)
        embeds = model.scatter_visual_tokens(ids, visual, torch.zeros(len(ids), dtype=torch.long))
    else:
        embeds = model.splice(ids, pixels, sides)
    labels = pad_rows([r[1] for r in rows], IGNORE_INDEX, left)
    mask = pad_rows([[1] * len(r[0]) for r in rows], 0, left).bool()
    return embeds, labels, mask, data, model


@pytest.mark.parametrize("name", CASES)
def test_splice(name: str) -> None:
    embeds, labels, mask, data, _ = splice(name)
    expected = data["out/inputs_embeds"]
    assert embeds.shape == expected.shape
    assert_close(embeds[mask], expected[mask], atol=1e-5, rtol=0)
    if "out/labels" in data:
        assert torch.equal(labels, data["out/labels"])
    if "out/attention_mask" in data:
        assert torch.equal(mask, data["out/attention_mask"].bool())


def test_splice_gradients() -> None:
    stored = load_file(SPLICE / "s01_gradients.safetensors")
    embeds, _, mask, _, model = splice("s01_right_pad_grid_add")
    (embeds * stored.pop("grad_seed_tensor") * mask[..., None]).sum().backward()
    hf = model.base.hf.model
    actual = {
        "image_newline": hf.image_newline.grad,
        "embed_tokens.weight": hf.language_model.embed_tokens.weight.grad,
        "mm_projector.0.weight": hf.multi_modal_projector.linear_1.weight.grad,
        "mm_projector.0.bias": hf.multi_modal_projector.linear_1.bias.grad,
        "mm_projector.2.weight": hf.multi_modal_projector.linear_2.weight.grad,
        "mm_projector.2.bias": hf.multi_modal_projector.linear_2.bias.grad,
    }
    for name, parameter in model.patches["side"].named_parameters():
        actual[f"temporal_aggregator.{patch_name(name)}"] = parameter.grad
    for key, expected in stored.items():
        assert_close(actual[key.removeprefix("grad/")], expected, atol=1e-4, rtol=1e-4)


def test_pooling() -> None:
    data = load_file(PACKING / "packing.safetensors")
    keys = [k for k in data if k.startswith("pool/") and k.endswith("stride2")]
    assert len(keys) == 19
    for key in keys:
        _, side, pool, _ = key.split("/")
        base = stub(int(side), pool, "grid", data["image_newline"])
        assert_close(base._pool(data[f"pool/{side}/x"]), data[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [3, 5, 14])
def test_newlines(side: int) -> None:
    data = load_file(PACKING / "packing.safetensors")
    embeds = data[f"newline/{side}/x"][None]
    for mode in ("grid", "frame", "one_token", "no_token"):
        base = stub(2 * side, "bilinear", mode, data["image_newline"])
        expected = data[f"post/{side}/spatial_unpad/{mode}"]
        assert torch.equal(base.arrange_tokens(embeds)[0], expected)
        assert base.num_visual_tokens(embeds.shape[1]) == len(expected)
    # Where the merge type is not "unpad", one_token means none; where it is flat, every mode does.
    for merge, mode in (("spatial", "one_token"), ("flat", "grid")):
        key = f"post/{side}/flat" if merge == "flat" else f"post/{side}/{merge}/{mode}"
        assert _llava_onevision_layouts.newline_for(mode, merge) == "no_token"
        base = stub(2 * side, "bilinear", "no_token", data["image_newline"])
        assert torch.equal(base.arrange_tokens(embeds)[0], data[key])


def stub(side: int, pool: Any, newline_mode: Any, newline: Tensor) -> LlavaOnevision:
    """A base of which only pooling and newlines are used."""
    hf = skeleton(6, 8, {"hidden_size": 6, "num_attention_heads": 1, "image_size": side, "patch_size": 1}, text_heads=1)
    base = LlavaOnevision(hf, None, newline_mode, pool)
    base.hf.model.image_newline.data.copy_(newline)
    return base
