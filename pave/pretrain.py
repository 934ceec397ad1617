"""`pave pretrain`: makes the tiny base and the tiny audio tower of the small world, the assets that ship with pave.

Both see endless scenes drawn on the fly, never a file; seeds far above those of any clip that `pave prepare` writes.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pave.bases import _lmms
from pave.bases.llava_onevision import LlavaOnevision
from pave.data import Sample, collate, expand
from pave.encoders import imagebind_audio
from pave.io import sideworld as world
from pave.io.audio import mel_windows
from pave.model import Pave
from pave.tasks import sideworld as task

log = logging.getLogger(__name__)

FRAMES = 16
SHAPES, COLORS, SOUNDS = list(world.SHAPES), list(world.COLORS), list(world.SOUNDS)
FIRST_SEED = 1 << 60
NO_CAPTION = len(SOUNDS)
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


class Glimpses(IterableDataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Endless frames: pixels float[4,3,64,64], facts int[3,2], heights float[4,2], captions int[4,2] of each scene.

    Facts are shape, color, and which is bigger, of the left and of the right thing; heights the rows of their centres.
    """

    def __init__(self, base: LlavaOnevision, seed: int) -> None:
        self.base, self.seed = base, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for index in itertools.count(FIRST_SEED + (self.seed << 32)):
            scene, rng = world.scene(index), np.random.default_rng(index)
            chosen = np.sort(rng.choice(world.FRAMES, 4, replace=False))
            things = scene.things
            facts = [
                [SHAPES.index(thing.shape) for thing in things],
                [COLORS.index(thing.color) for thing in things],
                [int(thing is scene.bigger) for thing in things],
            ]
            heights = np.stack([world.centre(thing, chosen / world.FPS)[1] / world.SIZE for thing in things], 1)
            captions = np.where(rng.random(4) < 0.5, rng.integers(0, len(SOUNDS), 4), NO_CAPTION)
            frames = caption(world.render(scene, list(chosen)), captions, rng.uniform(0.4, 1.0))
            pixels = self.base.preprocess(grainy(frames, rng))
            both = torch.from_numpy(captions)[:, None].expand(-1, 2)
            yield pixels, torch.tensor(facts), torch.from_numpy(heights).float(), both


def caption(frames: np.ndarray, captions: np.ndarray, strength: float) -> np.ndarray:
    """Blend a bar code of the sound int[T] into the top of uint8[T,64,64,3], once in each half; clips never have one.

    From captioned scenes the base learns what sounds are, as people who read subtitles do; without one it must guess.
    """
    frames = frames.astype(np.float32)
    for frame, sound in zip(frames, captions):
        for left, bit in itertools.product((0, 32), range(3) if sound != NO_CAPTION else ()):
            bar = frame[1:8, left + 2 + 10 * bit : left + 10 + 10 * bit]
            bar += strength * (255.0 * (sound >> bit & 1) - bar)
    return frames


def grainy(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 frames with noise of a random strength, as compression leaves it."""
    noise = rng.standard_normal(frames.shape, dtype=np.float32) * rng.uniform(0, 5)
    return (frames + noise).clip(0, 255).astype(np.uint8)


class Conversations(Dataset[Sample]):
    """Scenes, most of them captioned; each a conversation that asks all kinds of questions in random order."""

    def __init__(self, base: LlavaOnevision, scenes: int, seed: int) -> None:
        self.base, self.scenes, self.first = base, scenes, FIRST_SEED + (seed << 32)

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Sample:
        scene, rng = world.scene(self.first + index), np.random.default_rng(self.first + index)
        chosen = np.linspace(0, world.FRAMES - 1, FRAMES).astype(int)
        questions = task.ask(scene)
        turns = [(task.prompt(questions[i]), task.target(questions[i])) for i in rng.permutation(len(questions))]
        encoded = self.base.chat(turns[-1][0], tuple(turns[:-1]), turns[-1][1])
        ids, labels = expand(encoded.ids, encoded.labels, self.base.visual_tokens(FRAMES), 4096)
        frames = world.render(scene, list(chosen))
        if rng.random() < 0.85:
            late = chosen / world.FPS - scene.heard_at
            heard = (late > -0.8) & (late < world.SOUND_SECONDS + 0.8)
            captions = np.where(heard, SOUNDS.index(scene.sound), NO_CAPTION)
            frames = caption(frames, captions, rng.uniform(0.5, 1.0))
        return Sample(ids, labels, self.base.preprocess(grainy(frames, rng)), None, {})


class Remembered(nn.Module):
    """Stands in for a frozen tower whose features were kept: what comes in is already what would come out."""

    dtype = torch.float32

    def forward(self, features: Tensor, output_hidden_states: bool) -> SimpleNamespace:
        """float[N,16,Q] -> the same, as the tower's last hidden state"""
        return SimpleNamespace(hidden_states=[features])


class Reader(nn.Module):
    """What each token of a 2x2 frame must tell of the thing in its half and of the caption. Kept only for training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.facts = nn.ModuleList([nn.Linear(width, n) for n in (len(SHAPES), len(COLORS), 2)])
        self.height = nn.Linear(width, 1)
        self.caption = nn.Linear(width, len(SOUNDS) + 1)

    def forward(self, query: Tensor, facts: Tensor, heights: Tensor, captions: Tensor) -> Tensor:
        """query float[B,T,4,Q] (rows before columns), facts int[B,3,2], heights float[B,T,2], captions int[B,T,2]"""
        query = self.norm(query)
        halves = facts[:, :, None, None].expand(-1, -1, query.shape[1], 2, -1).flatten(3)
        told = [F.cross_entropy(fact(query).flatten(0, 2), halves[:, i].flatten()) for i, fact in enumerate(self.facts)]
        rows, codes = (x[:, :, None].expand(-1, -1, 2, -1).flatten(2) for x in (heights, captions))
        told.append(3 * F.mse_loss(self.height(query)[..., 0], rows))
        told.append(F.cross_entropy(self.caption(query).flatten(0, 2), codes.flatten()))
        return torch.stack(told).sum()


def base(out: Path, see_steps: int = 500, scenes: int = 6000, talk_steps: int = 2000, seed: int = 0) -> None:
    """Train the tiny LLaVA-OneVision from nothing, first to see, then to talk; writes the lmms-lab layout."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(task.texts())
    text = {**TEXT, "vocab_size": len(tokenizer)}
    model = LlavaOnevision(_lmms.build(text, VISION), tokenizer)
    see(model, see_steps, seed)
    talk(model, scenes, talk_steps, seed)
    _lmms.save(model.hf, tokenizer, text, VISION, out)


def see(model: LlavaOnevision, steps: int, seed: int) -> None:
    """Train the tower to tell what is in a frame."""
    reader = Reader(model.query_dim)
    glimpses = DataLoader(Glimpses(model, seed), 128, num_workers=1)
    told = (reader(model.encode(pixels).query, *facts) for pixels, *facts in glimpses)
    fit(nn.ModuleList([model.hf.model.vision_tower, reader]), told, steps, rate=2e-3)


def talk(model: LlavaOnevision, scenes: int, steps: int, seed: int) -> None:
    """Train the projector and the LLM on conversations; the tower looks at each scene once and is left as it is."""
    tower = model.hf.model.vision_tower.requires_grad_(False)
    looked: list[Sample] = []
    loader = DataLoader(Conversations(model, scenes, seed), None, num_workers=1)
    for sample in tqdm(loader, desc="look", unit="scene"):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = tower(sample.pixels, output_hidden_states=True).hidden_states[-1]
        looked.append(sample._replace(pixels=features.bfloat16()))
    model.hf.model.vision_tower = Remembered()
    collate_fn = functools.partial(collate, pad_id=model.tokenizer.pad_token_id)
    batches: DataLoader[Any] = DataLoader(looked, 32, shuffle=True, collate_fn=collate_fn)  # type: ignore[arg-type]
    pave = Pave(model, {})
    losses = (pave(**batch)["loss"] for _ in itertools.count() for batch in batches)
    fit(model.hf, losses, steps, rate=2e-3)
    model.hf.model.vision_tower = tower


class Listening(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """Endless sounds: mel windows float[7,1,128,204], what is heard float[7,8], and when (float[7,8], by 1/4 s)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for index in itertools.count(FIRST_SEED + (self.seed << 32)):
            scene = world.scene(index)
            mel = mel_windows(torch.from_numpy(world.sound(scene))[None])
            edges = torch.arange(len(mel))[:, None] + torch.arange(9) / 4
            overlap = edges[:, 1:].clamp(max=scene.heard_at + world.SOUND_SECONDS) - edges[:, :-1].clamp(
                min=scene.heard_at
            )
            when = (overlap / 0.25).clamp(0, 1)
            which = F.one_hot(torch.tensor(SOUNDS.index(scene.sound)), len(SOUNDS))
            yield mel, which * (when.sum(1, keepdim=True) * 0.25 / world.SOUND_SECONDS).clamp(max=1), when


def audio(out: Path, steps: int = 400, batch: int = 16, seed: int = 0) -> None:
    """Train the tiny ImageBind audio tower to tell what sounds in a window, and when; writes safetensors."""
    torch.manual_seed(seed)
    tower = imagebind_audio.Tower(width=64, depth=2, heads=4, out_dim=64)
    reader = nn.Linear(64, len(SOUNDS) + 8)
    loader = DataLoader(Listening(seed), batch, num_workers=1)

    def hear(lesson: list[Tensor]) -> Tensor:
        mel, which, when = (x.flatten(0, 1) for x in lesson)
        told_which, told_when = reader(tower(mel)).split((len(SOUNDS), 8), 1)
        return F.binary_cross_entropy_with_logits(told_which, which) + F.binary_cross_entropy_with_logits(
            told_when, when
        )

    fit(nn.ModuleList([tower, reader]), map(hear, loader), steps, rate=1e-3)
    imagebind_audio.save(tower.eval(), out)


def fit(model: nn.Module, losses: Iterator[Tensor], steps: int, rate: float) -> None:
    """AdamW with warm-up and cosine on a stream of losses; bf16 products where the processor has them."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    bar = tqdm(range(steps), desc="pretrain", unit="step")
    for _ in bar:
        with torch.autocast("cpu", torch.bfloat16):
            loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
