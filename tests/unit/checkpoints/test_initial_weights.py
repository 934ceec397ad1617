"""Where the training of PPLLaVA and Video-Panda starts: folders made of LLaVA-NeXT and CLIP, and of EVE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_bases import TEXT, clip_tokenizer, llama_tokenizer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

from pave.cli import main
from pave.models.bases import ppllava, video_panda
from pave.models.encoders import ppllava_projector as encoder
from pave.models.encoders import video_panda_tower as panda
from pave.models.encoders.ppllava_clip import POSITION_STRETCH, stretch_positions

WIDTH = 128
"""Two heads of CLIP."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP of random weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 2}
    tokenizer = clip_tokenizer()
    config = CLIPConfig(
        vision_config={**sizes, "num_hidden_layers": 5, "patch_size": 14, "image_size": 84},
        text_config={**sizes, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "eos_token_id": 12},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-NeXT as it is on the hub, with that CLIP as its tower, in two parts."""
    folder, tokenizer = tmp_path_factory.mktemp("llava"), llama_tokenizer(video=True)
    llm = LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=len(tokenizer) + 6))
    language = {f"language_model.{n}": x.clone() for n, x in llm.state_dict().items()}
    tower = {n: x for n, x in load_file(clip / "model.safetensors").items() if n.startswith("vision_model.")}
    rest = {f"vision_tower.{n}": x for n, x in tower.items() if "position_ids" not in n}
    for name, shape in {"linear_1": (32, WIDTH), "linear_2": (32, 32)}.items():
        rest[f"multi_modal_projector.{name}.weight"] = torch.randn(shape)
        rest[f"multi_modal_projector.{name}.bias"] = torch.randn(32)
    rest["image_newline"] = torch.randn(32)
    file_of = {}
    for number, part in enumerate((language, rest), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        file_of |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    vision = json.loads((clip / "config.json").read_text())["vision_config"]
    text = {name: getattr(llm.config, name) for name in (*TEXT, "vocab_size")}
    settings = {"model_type": "llava_next", "vision_config": vision, "text_config": text}
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_ppllava_starts_as_llava_next_with_clips_own_relevance(llava: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "start"
    assert main.main(["init", "ppllava", str(llava), str(out), "--clip", str(clip)]) == 0
    base = ppllava.Base.load(str(out))
    original = CLIPModel.from_pretrained(clip).eval()
    prompt_ids = torch.tensor([base.chat("what is heard?").prompt_ids])
    pixels = base.preprocess_images([np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)])
    hidden = original.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    visual = F.normalize(original.visual_projection(original.vision_model.post_layernorm(hidden)), dim=-1)
    text = original.get_text_features(prompt_ids)
    text = F.normalize(text if isinstance(text, torch.Tensor) else text.pooler_output, dim=-1)
    actual = base.multi_modal_projector.similarity(hidden[None], base.multi_modal_projector.encode_prompt(prompt_ids))
    assert_close(actual[0], visual @ text[0], atol=1e-5, rtol=1e-5)
    # The branch repeats CLIP's layers of the same depth and adds nothing over time.
    tower = base.vision_tower
    assert len(tower.btadapter_S_layers) == 3
    for i, layer in enumerate(tower.btadapter_S_layers):
        expected = original.vision_model.encoder.layers[1 + i].state_dict()
        assert all(torch.equal(expected[name], x) for name, x in layer.state_dict().items())
        assert not any(x.any() for x in tower.btadapter_T_layers[i].temporal_fc.parameters())
    table = original.text_model.embeddings.position_embedding.weight
    assert torch.equal(
        base.multi_modal_projector.clip_text_model.embeddings.position_embedding_res, stretch_positions(table)
    )
    assert POSITION_STRETCH == 4
    assert encoder.load(out)[0].max_frames == 64


def test_what_is_missing_in_clip_is_named(llava: Path, clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "clip"
    broken.mkdir()
    state = load_file(clip / "model.safetensors")
    del state["text_model.encoder.layers.1.mlp.fc2.bias"]
    save_file(state, broken / "model.safetensors")
    (broken / "config.json").write_text((clip / "config.json").read_text())
    words = ["init", "ppllava", str(llava), str(tmp_path / "out"), "--clip", str(broken)]
    assert main.main(words) == 1
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_video_panda_starts_from_eve(tmp_path: Path) -> None:
    eve, out, tokenizer = tmp_path / "eve", tmp_path / "out", llama_tokenizer(video=False)
    eve.mkdir()
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=len(tokenizer)))
    shared = {"class_embedding": torch.randn(64), "patch_embedding.weight": torch.randn(64, 3, 14, 14)}
    state = llm.state_dict() | {f"model.vision_tower.{name}": x for name, x in shared.items()}
    state |= {"model.vision_tower.other": torch.randn(3), "model.image_teacher.x": torch.randn(3)}
    sizes = {"0": (32, 64), "2": (32, 32)}
    state |= {f"model.mm_projector.{i}.weight": torch.randn(shape) for i, shape in sizes.items()}
    state |= {f"model.mm_projector.{i}.bias": torch.randn(32) for i in sizes}
    torch.save({name: x.half() for name, x in state.items()}, eve / "pytorch_model.bin")
    (eve / "config.json").write_text(json.dumps({**llm.config.to_dict(), "image_size": 112}))
    tokenizer.save_pretrained(eve)
    assert main.main(["init", "video_panda", str(eve), str(out)]) == 0
    base = video_panda.Base.load(str(out))
    for name, tensor in shared.items():
        assert torch.equal(base.vision_tower.state_dict()[name], tensor.half().float())
    fresh = panda.Tower(64).state_dict()
    assert not base.vision_tower.lmhra1.pos_embed[-1].weight.any()
    assert base.vision_tower.state_dict().keys() == fresh.keys()
    assert torch.equal(base.multi_modal_projector[0].weight, state["model.mm_projector.0.weight"].half().float())
    assert torch.equal(base.hf.lm_head.weight, state["lm_head.weight"].half().float())
