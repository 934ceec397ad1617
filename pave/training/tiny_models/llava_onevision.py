"""`pave pretrain base`: the tiny LLaVA-OneVision learns to see, then to answer questions about what it sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pave.data.collate import collate
from pave.models.base import Base
from pave.models.bases import _llava_onevision_layouts
from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.models.patched_model import PatchedModel
from pave.sideworld import scene as world
from pave.tasks import sideworld
from pave.training.tiny_models.conversations import SceneFeatures, blend_captions, make_conversation, random_batches
from pave.training.tiny_models.optimisation import bfloat16_autocast, optimise
from pave.training.tiny_models.scenes import add_noise, first_seed, key_frames, render_captioned
from pave.training.tiny_models.vision_pretraining import train_vision

FRAMES = 16
RESIDUAL_SCALE = 0.05
"""By which the residual stream of the trained base is scaled down."""
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    # The usual 0.02 suits widths of 1,000 and more; at 128 it makes learning several times slower.
    "initializer_range": 0.08,
}
VISION: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 288,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in the style of Qwen2, where newline is id 198, with its three special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()

    chat = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([*texts, *chat], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=4096,
    )


class SceneFrames(Dataset[tuple[world.Scene, Tensor]]):
    """Scenes with their key frames float[2*FRAMES,3,64,64]: plain, then captioned while the sound is near."""

    def __init__(self, base: LlavaOnevision, scenes: int, seed: int) -> None:
        self.base, self.scenes, self.first_seed = base, scenes, first_seed(seed)

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> tuple[world.Scene, Tensor]:
        scene = world.draw_scene(self.first_seed + index)
        plain, captioned = render_captioned(scene, key_frames(FRAMES))
        frames = np.concatenate([plain, captioned.astype(np.uint8)])
        return scene, self.base.preprocess(add_noise(frames, np.random.default_rng(scene.seed)))


class CachedTower(nn.Module):
    """Stand in for a frozen tower whose features were stored: the input is already what the tower would return."""

    dtype = torch.float32

    def forward(self, features: Tensor, output_hidden_states: bool) -> SimpleNamespace:
        """Return float[N,1,16,Q] as the tower's last hidden state float[N,16,Q]."""
        return SimpleNamespace(hidden_states=[features.squeeze(1)])


def pretrain(out: Path, vision_steps: int = 500, scenes: int = 8000, steps: int = 3200, seed: int = 0) -> None:
    """Train the tiny LLaVA-OneVision from nothing, first to see, then to answer; write it in the lmms-lab layout."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(sideworld.vocabulary_texts())
    text = {**TEXT, "vocab_size": len(tokenizer)}
    base = LlavaOnevision(_llava_onevision_layouts.build_model(text, VISION), tokenizer)
    train_vision(base, vision_steps, seed)
    instruction_tune(base, scenes, steps, seed)
    _llava_onevision_layouts.save(base.hf, tokenizer, text, VISION, out)


def instruction_tune(base: LlavaOnevision, scenes: int, steps: int, seed: int) -> None:
    """Train projector and LLM on conversations that ask all kinds of questions in random order; the tower is frozen."""
    tower = base.hf.model.vision_tower.requires_grad_(False)
    scene_features = []
    loader = DataLoader(SceneFrames(base, scenes, seed), None, num_workers=1)
    for scene, pixels in tqdm(loader, desc="encode", unit="scene"):
        with torch.no_grad(), bfloat16_autocast():
            features = tower(pixels, output_hidden_states=True).hidden_states[-1].bfloat16()
        scene_features.append(SceneFeatures(scene, *features.split(FRAMES)))

    base.hf.model.vision_tower = CachedTower()
    model, rng = PatchedModel(base, {}), np.random.default_rng(seed)

    def losses() -> Iterator[Tensor]:
        for fading, chosen in random_batches(scene_features, steps, 32, 0.4, rng):
            samples = []
            for features in chosen:
                order = rng.permutation(len(sideworld.scene_questions(features.scene))).tolist()
                # Features take the place of pixels float[T,3,h,w], hence the dimension of one.
                pixels = blend_captions(features, fading, rng)[:, None]
                samples.append(make_conversation(base, features.scene, order, pixels))
            yield model(**collate(samples, base.tokenizer.pad_token_id))["loss"]

    optimise(base.hf, losses(), steps, rate=2e-3)
    base.hf.model.vision_tower = tower

    scale_residual_stream(base, base.hf.model.multi_modal_projector.linear_2, RESIDUAL_SCALE)
    with torch.no_grad():
        base.hf.model.image_newline *= RESIDUAL_SCALE
        # The head is the embedding, which just shrank.
        base.hf.model.language_model.norm.weight /= RESIDUAL_SCALE


@torch.no_grad()
def scale_residual_stream(base: Base, projector_output: nn.Module, scale: float) -> None:
    """Multiply all that is written to the residual stream: no answer changes, for each norm divides it out again.

    Where the head is tied to the embedding, the final norm has to make up for it. Why: a patch starts at exactly zero
    and grows by about the learning rate a step. Trained from nothing, visual tokens end up near rms 3, which it would
    take long to reach; those of bases made from a trained LLM are far smaller.
    """
    llm = base.hf.get_decoder()
    weights = [llm.embed_tokens.weight, *projector_output.parameters()]
    for layer in llm.layers:
        weights += [layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight]
    for weight in weights:
        weight *= scale
