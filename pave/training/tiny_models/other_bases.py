"""`pave pretrain NAME`: the tiny version of another base, around the shipped one's language model.

The tower learns to say of each quarter of a picture what the shipped base's says, the language model goes over, and
then learns to talk about what this tower sees.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pave import config as configs
from pave.models.bases import llava_onevision
from pave.models.bases.llava_onevision import LlavaOnevision
from pave.training.tiny_models.architectures import BASES
from pave.training.tiny_models.instruction_tuning import exam, talk
from pave.training.tiny_models.vision_distillation import heed, see

log = logging.getLogger(__name__)
SHIPPED = "asset:sideworld/base"
SOFT = 0.05
"""By which the residual stream of the shipped base was scaled down, and that of the others is (`base.soften`)."""


class Lessons(NamedTuple):
    """How long a base learns."""

    see: int
    """Steps."""
    scenes: int
    """That it talks about."""
    talk: int
    """Steps."""


LESSONS = {
    "qwen2_5_vl": Lessons(400, 600, 250),
    "video_llava": Lessons(400, 400, 180),
    "video_panda": Lessons(300, 300, 200),
    "ppllava": Lessons(800, 1200, 1500),
}
"""Those of doc/results/bases_sideworld.md."""


def learn(name: str, out: Path, lessons: Lessons | None = None, seed: int = 0) -> dict[str, float]:
    """Train the tiny version of base `name` and write it as published; what it knows then, also in OUT/exam.json."""
    lessons = lessons or LESSONS[name]
    torch.manual_seed(seed)
    teacher = shipped()
    small = BASES[name]()
    graft(small.base, teacher)
    see(small, teacher, lessons.see, seed)
    if getattr(small.base, "by_question", False):
        heed(small, 100, seed)
    talk(small, lessons.scenes, lessons.talk, seed)
    found = exam(small, 250)
    soften(small.base.lm, small.last, SOFT)
    small.save(out)
    (out / "exam.json").write_text(json.dumps(found, indent=1))
    log.info("%s", found)
    return found


def shipped() -> LlavaOnevision:
    """The shipped base as large on its residual stream as it was before `base.soften`."""
    teacher = llava_onevision.load(configs.resolve(SHIPPED)).requires_grad_(False)
    soften(teacher.hf.model.language_model, teacher.hf.model.multi_modal_projector.linear_2, 1 / SOFT)
    return teacher


@torch.no_grad()
def graft(base: Any, teacher: LlavaOnevision) -> None:
    """The teacher's language model into `base`, whose words mean what they mean there; the tower's layers where alike.

    Llama has no biases of queries, keys and values, so the teacher's are lost there.
    """
    llm: Any = teacher.lm
    old, new = llm.state_dict(), base.lm.state_dict()
    for name, x in new.items():
        if name != "embed_tokens.weight":
            x.copy_(old[name])
    words = _words(base.tokenizer, teacher)
    base.hf.get_input_embeddings().weight.copy_(words)
    # The shipped base's head is its embedding, of which `soften` left the final norm to make up.
    base.head.weight.copy_(words)
    base.lm.norm.weight.copy_(llm.norm.weight * SOFT)
    eyes = {_bare(name): x for name, x in teacher.hf.model.vision_tower.state_dict().items()}
    for name, x in base.vision_tower.state_dict().items():
        alike = eyes.get(_bare(name)) if "encoder.layers." in name else None
        if alike is not None and alike.shape == x.shape:
            x.copy_(alike)


def _bare(name: str) -> str:
    return name[name.find("encoder.layers.") :]


def _words(tokenizer: Any, teacher: LlavaOnevision) -> Tensor:
    """An embedding float[V,D] for each token: the teacher's of the same token, or the mean of those that spell it."""
    table, known = teacher.hf.get_input_embeddings().weight, teacher.tokenizer.get_vocab()
    ends = {"</s>": teacher.tokenizer.eos_token, "<s>": "<|im_start|>"}
    rows = torch.randn(len(tokenizer), table.shape[1]) * table.std()
    for token, i in tokenizer.get_vocab().items():
        token = ends.get(token, token)
        same = known.get(token, known.get(token.removeprefix("Ġ")))
        spelt = [] if i in tokenizer.all_special_ids else teacher.tokenizer(tokenizer.decode([i]).strip()).input_ids
        if same is not None:
            rows[i] = table[same]
        elif spelt:
            rows[i] = table[spelt].mean(0)
    return rows


@torch.no_grad()
def soften(lm: Any, last: nn.Module, scale: float) -> None:
    """Multiply everything on the residual stream by `scale`, with visual tokens out of `last`: no answer changes.

    For an untied head; where it is the embedding, the final norm has to make up for it.
    """
    scaled = [lm.embed_tokens.weight, *last.parameters()]
    for layer in lm.layers:
        scaled += [layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight]
    for weight in scaled:
        weight *= scale
