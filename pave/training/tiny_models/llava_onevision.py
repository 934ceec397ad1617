"""`pave pretrain base`: the tiny LLaVA-OneVision learns to see, then to talk about what it sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pave.data.collate import Sample, collate, expand
from pave.models.bases import _llava_onevision_layouts
from pave.models.bases.llava_onevision import LlavaOnevision
from pave.models.patched_model import Pave
from pave.sideworld import scene as world
from pave.tasks import sideworld as task
from pave.training.tiny_models.optimisation import FIRST_SEED, SOUNDS, fast, fit
from pave.training.tiny_models.vision_pretraining import NO_CAPTION, caption, grainy, see

FRAMES = 16
FAINTEST = 0.03
"""Strength of the weakest captions among tower features."""
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
    """A byte-level BPE in the style of Qwen2, where newline is id 198, with its three special tokens."""
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


class Looks(Dataset[tuple[world.Scene, Tensor]]):
    """Scenes with their key frames float[2*FRAMES,3,64,64]: as they are, then captioned while the sound is near."""

    def __init__(self, base: LlavaOnevision, scenes: int, seed: int) -> None:
        self.base, self.scenes, self.first = base, scenes, FIRST_SEED + (seed << 32)

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> tuple[world.Scene, Tensor]:
        scene, rng = world.scene(self.first + index), np.random.default_rng(self.first + index)
        chosen = np.linspace(0, world.FRAMES - 1, FRAMES).astype(int)
        late = chosen / world.FPS - scene.heard_at
        heard = (late > -0.8) & (late < world.SOUND_SECONDS + 0.8)
        frames = world.render(scene, list(chosen))
        captioned = caption(frames, np.where(heard, SOUNDS.index(scene.sound), NO_CAPTION), 1.0)
        return scene, self.base.preprocess(grainy(np.concatenate([frames, captioned.astype(np.uint8)]), rng))


class Looked(NamedTuple):
    """A scene as the tower sees it, bfloat16[FRAMES,16,Q] each."""

    scene: world.Scene
    plain: Tensor
    captioned: Tensor


def lessons(model: LlavaOnevision, looked: Sequence[Looked], steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Batches of conversations that ask all kinds of questions in random order about scenes, most of them captioned.

    Captions are clear at first, then of all strengths down to faint: a model that reads only clear ones is blind to
    the small changes that a patch begins with.
    """
    rng = np.random.default_rng(seed)
    for step in range(steps):
        fading = float(np.clip(2 * step / steps - 0.4, 0, 1))
        chosen = rng.choice(len(looked), min(32, len(looked)), replace=False)
        yield collate([_lesson(model, looked[i], fading, rng) for i in chosen], model.tokenizer.pad_token_id)


def _lesson(model: LlavaOnevision, looked: Looked, fading: float, rng: np.random.Generator) -> Sample:
    questions = task.ask(looked.scene)
    turns = [(task.prompt(questions[i]), task.target(questions[i])) for i in rng.permutation(len(questions))]
    encoded = model.chat(turns[-1][0], tuple(turns[:-1]), turns[-1][1])
    ids, labels = expand(encoded.ids, encoded.labels, model.visual_tokens(FRAMES), 4096)
    strength = 0.0 if rng.random() < 0.15 * fading else FAINTEST ** rng.uniform(0, fading)
    plain = looked.plain.float()
    features = plain + strength * (looked.captioned.float() - plain)
    return Sample(ids, labels, features + 0.2 * torch.randn_like(features), None, {})


class Remembered(nn.Module):
    """Stands in for a frozen tower whose features were kept: what comes in is already what would come out."""

    dtype = torch.float32

    def forward(self, features: Tensor, output_hidden_states: bool) -> SimpleNamespace:
        """float[N,16,Q] -> the same, as the tower's last hidden state"""
        return SimpleNamespace(hidden_states=[features])


def learn(out: Path, see_steps: int = 500, scenes: int = 8000, talk_steps: int = 3200, seed: int = 0) -> None:
    """Train the tiny LLaVA-OneVision from nothing, first to see, then to talk; writes the lmms-lab layout."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(task.texts())
    text = {**TEXT, "vocab_size": len(tokenizer)}
    model = LlavaOnevision(_llava_onevision_layouts.build(text, VISION), tokenizer)
    see(model, see_steps, seed)
    talk(model, scenes, talk_steps, seed)
    _llava_onevision_layouts.save(model.hf, tokenizer, text, VISION, out)


def talk(model: LlavaOnevision, scenes: int, steps: int, seed: int) -> None:
    """Train the projector and the LLM on conversations; the tower looks at each scene once and is left as it is."""
    tower = model.hf.model.vision_tower.requires_grad_(False)
    looked: list[Looked] = []
    for scene, pixels in tqdm(DataLoader(Looks(model, scenes, seed), None, num_workers=1), desc="look", unit="scene"):
        with torch.no_grad(), fast():
            features = tower(pixels, output_hidden_states=True).hidden_states[-1].bfloat16()
        looked.append(Looked(scene, *features.split(FRAMES)))
    model.hf.model.vision_tower = Remembered()
    pave = Pave(model, {})
    fit(model.hf, (pave(**batch)["loss"] for batch in lessons(model, looked, steps, seed)), steps, rate=2e-3)
    model.hf.model.vision_tower = tower
    soften(model, 0.05)


@torch.no_grad()
def soften(model: LlavaOnevision, scale: float) -> None:
    """Multiply everything on the residual stream by `scale`; answers stay, for each norm divides it out again.

    A patch starts at exactly zero and grows by about the learning rate a step. Trained from nothing, visual tokens end
    up near rms 3, which it would take long to reach; those of bases made from a trained LLM are far smaller.
    """
    hf = model.hf
    scaled = [
        hf.get_input_embeddings().weight,
        hf.model.image_newline,
        *hf.model.multi_modal_projector.linear_2.parameters(),
    ]
    for layer in hf.model.language_model.layers:
        scaled += [layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight]
    for weight in scaled:
        weight *= scale
    # The head is the embedding, which just shrank.
    hf.model.language_model.norm.weight /= scale
