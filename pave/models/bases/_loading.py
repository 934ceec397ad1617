"""What loading a base needs: strict reading, projectors, frozen weights in few bits, and refused settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from pave.models.base import Base, LoadSettings, Quantize
from pave.models.encoders import _state_dict
from pave.types import UserError

Model = TypeVar("Model", bound=PreTrainedModel)
Shapes = Mapping[str, float]
"""Sizes of a model by the names that transformers has for them; flags are 0 and 1."""


def refuse_settings(base: type[Base], path: str, settings: LoadSettings) -> None:
    """Raise UserError where a config sets what a base without newlines and pooling does not have."""
    name = base.plugin_name()
    if settings.newline not in ("no_token", None):
        raise UserError(
            f"{path}: base.newline={settings.newline}, but {name} has no newline vectors; set base.newline=no_token"
        )
    for field, value in {"pool": settings.pool, "vision_heads": settings.vision_heads}.items():
        if value is not None:
            raise UserError(f"{path}: base.{field}={value}, but {name} has no such setting; leave base.{field} out")


def load_pretrained(model_class: type[Model], folder: Path, expected: str, **arguments: object) -> Model:
    """Load a model of transformers in eval mode; `arguments` are those of `from_pretrained`.

    Raises UserError for tensors that are missing, unexpected or of the wrong shape.
    """
    hf, problems = model_class.from_pretrained(
        folder,
        ignore_mismatched_sizes=True,  # they come back among the problems and end in our own error
        output_loading_info=True,
        **arguments,
    )
    tensors = {problem: sorted(map(str, names))[:3] for problem, names in problems.items() if names}
    if tensors:
        raise UserError(f"{folder}: not {expected}: {tensors}; give the checkpoint as published")
    return hf.eval()


def pretrained_arguments(settings: LoadSettings, unquantized: Sequence[str]) -> dict[str, object]:
    """Arguments of `from_pretrained`; the modules `unquantized` keep all their bits."""
    return {
        "dtype": settings.dtype,
        "attn_implementation": settings.attention,
        "quantization_config": quantization_config(settings.quantize, settings.dtype, unquantized),
    }


def quantization_config(
    quantize: Quantize, dtype: torch.dtype, unquantized: Sequence[str]
) -> BitsAndBytesConfig | None:
    """Settings of bitsandbytes for frozen weights of 8 or 4 bits, which compute in `dtype`.

    Raises UserError where that package is missing.
    """
    if quantize == "none":
        return None

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"base.quantize={quantize}: the package bitsandbytes is not installed; "
            "pip install bitsandbytes, or set base.quantize=none"
        )
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(unquantized))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(unquantized),
    )


def load_tokenizer(
    folder: Path, required: Sequence[str] = (), advice: str = "copy all tokenizer files"
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, padding with <unk> where it names nothing else.

    Raises UserError, which ends with `advice`, where it lacks one of the tokens `required`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    missing = sorted({*required} - tokenizer.get_vocab().keys())
    if missing:
        raise UserError(f"{folder}: its tokenizer has no {' '.join(missing)}; {advice}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def llm_shapes(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> Shapes:
    """Shapes of a published LLM by the names of transformers."""
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }


VICUNA = {
    **llm_shapes(4096, 11008, 32, 32, 32, 32000, False),
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}
"""Vicuna-7B, the LLM of three bases."""
LLAMA_KEYS = (*VICUNA, "rope_theta", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id")
"""What the config.json of a published checkpoint may say of its LLM."""


def vicuna_config(config_json: Mapping[str, Any]) -> LlamaConfig:
    """Config of the LLM in a published checkpoint, whose config.json says more than Llama's."""
    return LlamaConfig(**{key: config_json[key] for key in LLAMA_KEYS if key in config_json})


def build_projector(in_dim: int, out_dim: int) -> nn.Sequential:
    """Build LLaVA's projector of two layers: float[...,in_dim] -> float[...,out_dim]."""
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))


def load_projector(folder: Path, expected: str, prefixes: Sequence[str], in_dim: int, out_dim: int) -> nn.Sequential:
    """Load that projector from the tensors of a checkpoint whose names begin with one of `prefixes`, in float32.

    Raises UserError for tensors that are missing, unexpected or of the wrong shape.
    """

    def projector_name(name: str) -> str | None:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        return None if prefix is None else name.removeprefix(prefix)

    projector = build_projector(in_dim, out_dim)
    state = _state_dict.select(folder, projector_name)
    _state_dict.check(folder, expected, state, projector.state_dict())
    projector.load_state_dict(state, assign=True)
    return projector


def check_room(tokens: int, hf: PreTrainedModel, advice: str) -> None:
    """Raise UserError, which ends with `advice`, where an LLM has fewer positions than visual tokens."""
    room = hf.config.get_text_config().max_position_embeddings
    if tokens > room:
        raise UserError(f"{tokens} visual tokens, the LLM has {room} positions; {advice}")
