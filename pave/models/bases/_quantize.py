"""Frozen weights in 8 or 4 bits (bitsandbytes), for training on a small GPU."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from transformers import BitsAndBytesConfig

from pave.types import UserError

Quantize = Literal["none", "int8", "nf4"]


def settings(quantize: Quantize, dtype: torch.dtype, whole: list[str]) -> BitsAndBytesConfig | None:
    """What `from_pretrained` is told; all but the modules `whole` compute in `dtype` from few bits.

    Raises UserError if the package is missing.
    """
    if quantize == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"base.quantize={quantize}: the package bitsandbytes is not installed; "
            "pip install bitsandbytes, or set base.quantize=none"
        )
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )
