"""A folder of a tiny PPLLaVA with random weights, as published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from other_bases import TEXT, llama_tokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pave.encoders import ppllava as encoder
from pave.encoders.ppllava import Sizes

SIZES = Sizes(24, 32, 4, 2, 14, 6, 2, 8, 40, 64, 48, 2, 1, 16, 32)
TOLD = {
    "pooling": "ppllava",
    "extend_clip": True,
    "btadapter": True,
    "btadapter_depth": SIZES.depth,
    "max_T": SIZES.moments,
    "pooling_kernel": [2, 3, 3],
    "pooling_stride": [2, 3, 3],
    "vision_config": {
        **{"hidden_size": SIZES.width, "intermediate_size": SIZES.inner, "num_hidden_layers": SIZES.layers},
        **{"num_attention_heads": SIZES.heads, "patch_size": 14, "image_size": 84, "projection_dim": SIZES.shared},
    },
}


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Words, with an end that has the largest id, as CLIP's."""
    words = ["<unk>", "what", "is", "heard", "?", "a", "dog", "barks", "human", "and", "the"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    ids = {word: i for i, word in enumerate(words)}
    bare = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, ids[word]) for word in words[-2:]]
    bare.post_processor = processors.TemplateProcessing("<|startoftext|> $A <|endoftext|>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>", pad_token="<|endoftext|>")


def make_ppllava(folder: Path) -> Path:
    """With the last layer and step, which hold NaN; CLIP's tokenizer inside."""
    tokenizer = llama_tokenizer(video=True)
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=len(tokenizer) + 6))
    state = {f"language_model.{name}": x for name, x in llm.state_dict().items()}
    for prefix, part in zip((encoder.VISION, encoder.PROJECTOR), encoder.build(SIZES)):
        for name, parameter in part.named_parameters():
            if parameter.ndim:
                nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
            state[prefix + name] = parameter.detach()
    last = {"encoder.layers.2.": "encoder.layers.3."}
    last |= {f"btadapter_{x}_layers.0.": f"btadapter_{x}_layers.1." for x in "ST"}
    for old, new in last.items():
        state |= {n.replace(old, new): x * torch.nan for n, x in state.items() if encoder.VISION + old in n}
    state["image_newline"] = torch.zeros(32)
    save_file({n: x.contiguous().clone() for n, x in state.items()}, folder / "model.safetensors", {"format": "pt"})
    text = {name: getattr(llm.config, name) for name in (*TEXT, "vocab_size")}
    (folder / "config.json").write_text(json.dumps({**TOLD, "model_type": "llava_next", "text_config": text}))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder / "clip")
    return folder
