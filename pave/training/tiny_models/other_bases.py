"""`pave pretrain NAME`: the tiny version of another base, around the language model of the shipped one.

The tower learns to give for each quarter of a picture what the shipped base's tower gives, the language model is
copied, and then learns to answer questions about what this tower sees.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pave import config as configs
from pave.models.base import Base
from pave.models.bases import llava_onevision
from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.training.tiny_models.architectures import BASES
from pave.training.tiny_models.instruction_tuning import evaluate_tiny, instruction_tune
from pave.training.tiny_models.llava_onevision import RESIDUAL_SCALE, scale_residual_stream
from pave.training.tiny_models.vision_distillation import distill_vision, train_prompt_relevance

log = logging.getLogger(__name__)
TEACHER_PATH = "asset:sideworld/base"


class TrainingSchedule(NamedTuple):
    """How long a base learns."""

    vision_steps: int
    scenes: int
    """About which it answers questions."""
    steps: int
    """Of instruction tuning."""


SCHEDULES = {
    "qwen2_5_vl": TrainingSchedule(400, 600, 250),
    "video_llava": TrainingSchedule(400, 400, 180),
    "video_panda": TrainingSchedule(300, 300, 200),
    "ppllava": TrainingSchedule(800, 1200, 1500),
}
"""Those of doc/results/bases_sideworld.md."""


def pretrain(name: str, out: Path, schedule: TrainingSchedule | None = None, seed: int = 0) -> dict[str, float]:
    """Train the tiny version of base `name`, write it in the published layout, and its scores to `out`/exam.json."""
    schedule = schedule or SCHEDULES[name]
    torch.manual_seed(seed)
    teacher = load_teacher()
    tiny = BASES[name]()
    copy_language_model(tiny.base, teacher)

    distill_vision(tiny, teacher, schedule.vision_steps, seed)
    if tiny.base.prompt_conditioned:
        train_prompt_relevance(tiny, 100, seed)
    instruction_tune(tiny, schedule.scenes, schedule.steps, seed)

    scores = evaluate_tiny(tiny, 250)
    scale_residual_stream(tiny.base, tiny.projector_output, RESIDUAL_SCALE)
    tiny.save(out)
    (out / "exam.json").write_text(json.dumps(scores, indent=1))
    log.info("%s", scores)
    return scores


def load_teacher() -> LlavaOnevision:
    """Load the shipped base, and undo the scaling of its residual stream."""
    teacher = llava_onevision.Base.load(configs.resolve(TEACHER_PATH)).requires_grad_(False)
    scale_residual_stream(teacher, teacher.hf.model.multi_modal_projector.linear_2, 1 / RESIDUAL_SCALE)
    return teacher


@torch.no_grad()
def copy_language_model(base: Base, teacher: LlavaOnevision) -> None:
    """Copy the teacher's language model into `base`, its embeddings by token, and layers of the tower of like shape.

    Llama has no biases of queries, keys and values, so the teacher's are lost there.
    """
    llm, teacher_llm = base.hf.get_decoder(), teacher.hf.get_decoder()
    teacher_state = teacher_llm.state_dict()
    for name, x in llm.state_dict().items():
        if name != "embed_tokens.weight":
            x.copy_(teacher_state[name])

    embeddings = _token_embeddings(base.tokenizer, teacher)
    base.hf.get_input_embeddings().weight.copy_(embeddings)
    base.hf.get_output_embeddings().weight.copy_(embeddings)
    # The shipped base's head is its embedding, and its final norm makes up for the scaling.
    llm.norm.weight.copy_(teacher_llm.norm.weight * RESIDUAL_SCALE)

    teacher_tower = {_layer_name(name): x for name, x in teacher.hf.model.vision_tower.state_dict().items()}
    for name, x in base.get_submodule("vision_tower").state_dict().items():
        if "encoder.layers." not in name:
            continue
        teacher_x = teacher_tower.get(_layer_name(name))
        if teacher_x is not None and teacher_x.shape == x.shape:
            x.copy_(teacher_x)


def _layer_name(name: str) -> str:
    return name[name.find("encoder.layers.") :]


def _token_embeddings(tokenizer: PreTrainedTokenizerBase, teacher: LlavaOnevision) -> Tensor:
    """An embedding float[V,D] for each token: the teacher's of the same token, or the mean of those that spell it."""
    table, vocabulary = teacher.hf.get_input_embeddings().weight, teacher.tokenizer.get_vocab()
    same_meaning = {"</s>": teacher.tokenizer.eos_token, "<s>": "<|im_start|>"}
    embeddings = torch.randn(len(tokenizer), table.shape[1]) * table.std()

    for token, i in tokenizer.get_vocab().items():
        token = same_meaning.get(token, token)
        teacher_id = vocabulary.get(token, vocabulary.get(token.removeprefix("Ġ")))
        if teacher_id is not None:
            embeddings[i] = table[teacher_id]
        elif i not in tokenizer.all_special_ids:
            spelling = teacher.tokenizer(tokenizer.decode([i]).strip()).input_ids
            if spelling:
                embeddings[i] = table[spelling].mean(0)
    return embeddings
