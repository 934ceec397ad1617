"""LoRA: several named adapters in one set of layers, of different rank and targets, and plain peft folders."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from helpers.tiny_model import TinySetup
from torch import Tensor, nn

from pave.config import LoraConfig
from pave.models import lora
from pave.models.base import LoadSettings
from pave.models.bases import llava_onevision
from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.types import UserError

ATTENTION = r"model\.language_model\.layers\.\d+\.self_attn\.[qv]_proj"


@pytest.fixture
def base(tiny_setup: TinySetup) -> LlavaOnevision:
    return llava_onevision.Base.load(str(tiny_setup.base)).requires_grad_(False)


def put(hf: nn.Module, targets: str, config: LoraConfig, name: str, seed: int) -> None:
    """An adapter with random numbers in both of its factors."""
    lora.inject(hf, targets, config, name)
    generator = torch.Generator().manual_seed(seed)
    filled = {key: torch.randn(x.shape, generator=generator) for key, x in lora.state(hf, name).items()}
    lora.load_state(hf, filled, Path("made up"), name)
    hf.eval()


def hidden(base: LlavaOnevision) -> Tensor:
    with torch.no_grad():
        return base.llm(input_ids=torch.tensor([[5, 6, 7, 8]])).last_hidden_state


def test_adapters_of_different_rank_and_targets(base: LlavaOnevision, tiny_setup: TinySetup) -> None:
    kinds = {
        "wide": (LlavaOnevision.lora_targets, LoraConfig(r=4, alpha=8), 1),
        "narrow": (ATTENTION, LoraConfig(r=2, alpha=1), 2),
    }
    plain, expected = hidden(base), {}
    for name, (targets, config, seed) in kinds.items():
        alone = llava_onevision.Base.load(str(tiny_setup.base))
        put(alone.hf, targets, config, "default", seed)
        expected[name] = hidden(alone)
        assert not torch.equal(expected[name], plain)
    for name, (targets, config, seed) in kinds.items():
        put(base.hf, targets, config, name, seed)
    assert lora.names(base.hf) == ["wide", "narrow"]
    for name in ("narrow", "wide", "narrow"):
        lora.set_weights(base.hf, {"wide": float(name == "wide"), "narrow": float(name == "narrow")})
        assert torch.equal(hidden(base), expected[name])
    lora.set_weights(base.hf, {"wide": 0.0, "narrow": 0.0})
    assert torch.equal(hidden(base), plain)
    up, q = base.llm.layers[0].mlp.up_proj, base.llm.layers[0].self_attn.q_proj
    lora.set_weights(base.hf, {"wide": 0.5, "narrow": -1.0})
    x = torch.randn(3, 32)
    with torch.no_grad():
        for layer, parts in ((up, {"wide": 0.5 * 2}), (q, {"wide": 0.5 * 2, "narrow": -0.5})):
            update = sum(s * (x @ layer.lora_A[n].weight.T @ layer.lora_B[n].weight.T) for n, s in parts.items())
            torch.testing.assert_close(layer(x), layer.base_layer(x) + update)


def test_injecting_switching_and_removing_leave_what_trains(base: LlavaOnevision) -> None:
    lora.inject(base.hf, LlavaOnevision.lora_targets, LoraConfig(r=2), "first")
    lora.inject(base.hf, LlavaOnevision.lora_targets, LoraConfig(r=2, trainable=False), "second")
    lora.inject(base.hf, LlavaOnevision.lora_targets, LoraConfig(r=2), "third")

    def trained() -> set[str]:
        return {name.split(".")[-2] for name, p in base.hf.named_parameters() if p.requires_grad}

    assert trained() == {"first", "third"}
    lora.set_weights(base.hf, {"first": 0.0, "second": 1.0, "third": 0.0})
    assert trained() == {"first", "third"}
    lora.remove(base.hf, "third")
    assert trained() == {"first"}
    assert lora.names(base.hf) == ["first", "second"]
    # What was off stays off when another goes.
    layer = base.llm.layers[0].mlp.up_proj
    lora.remove(base.hf, "second")
    assert list(layer.active_adapters) == []
    lora.remove(base.hf, "first")
    assert not lora.names(base.hf)
    assert not any("lora" in name for name, _ in base.hf.named_parameters())


@pytest.mark.parametrize("name", ["default", "model", "q_proj", "lora_A"])
def test_states_are_those_of_peft_whatever_the_name(
    base: LlavaOnevision, tiny_setup: TinySetup, tmp_path: Path, name: str
) -> None:
    config = LoraConfig(r=3, alpha=6, dropout=0.2)
    put(base.hf, LlavaOnevision.lora_targets, config, "other", 3)
    put(base.hf, LlavaOnevision.lora_targets, config, name, 4)
    state = lora.state(base.hf, name)
    assert lora.effective_config(base.hf, name, LoraConfig()) == config
    lora.check_fits(base.hf, LlavaOnevision.lora_targets, 3, state, tmp_path)
    # A plain peft model with these tensors computes the same.
    lora.write_settings(LlavaOnevision.lora_targets, config, str(tiny_setup.base), tmp_path)
    alone = llava_onevision.Base.load(str(tiny_setup.base))
    wrapped = peft.get_peft_model(alone.hf, peft.LoraConfig.from_pretrained(tmp_path))
    result = peft.set_peft_model_state_dict(wrapped, state)
    assert not result.unexpected_keys
    lora.set_weights(base.hf, {"other": 0.0, name: 1.0})
    alone.hf.eval()
    assert torch.equal(hidden(base), hidden(alone))


def test_tensors_that_do_not_fit(base: LlavaOnevision, tmp_path: Path) -> None:
    put(base.hf, LlavaOnevision.lora_targets, LoraConfig(r=2), "default", 1)
    state = lora.state(base.hf)
    first = min(state)
    for wrong, message in (
        ({k: x for k, x in state.items() if k != first}, f"'{first}' is missing"),
        ({**state, "extra": torch.zeros(1)}, "'extra' is not known"),
        ({**state, first: torch.zeros(3, 3)}, rf"'{first}' has shape \(3, 3\)"),
    ):
        with pytest.raises(UserError, match=message):
            lora.check_fits(base.hf, LlavaOnevision.lora_targets, 2, wrong, tmp_path)
        with pytest.raises(UserError, match=message):
            lora.load_state(base.hf, wrong, tmp_path)
    assert all(torch.equal(x, state[name]) for name, x in lora.state(base.hf).items())


def test_merged_is_refused(base: LlavaOnevision) -> None:
    put(base.hf, LlavaOnevision.lora_targets, LoraConfig(r=2), "default", 1)
    before = hidden(base)
    lora.merge(base.hf)
    torch.testing.assert_close(hidden(base), before, atol=1e-4, rtol=1e-4)
    for change in (
        lambda: lora.set_weights(base.hf, {"default": 1.0}),
        lambda: lora.remove(base.hf, "default"),
        lambda: lora.inject(base.hf, LlavaOnevision.lora_targets, LoraConfig(r=2), "more"),
    ):
        with pytest.raises(UserError, match="merged"):
            change()


def test_a_half_precision_base_gets_float32_adapters_from_half_precision_files(tiny_setup: TinySetup) -> None:
    base = llava_onevision.Base.load(str(tiny_setup.base), LoadSettings(dtype=torch.bfloat16))
    lora.inject(base.hf, LlavaOnevision.lora_targets, LoraConfig(r=2), weights=False)
    stored = {key: torch.randn(x.shape, dtype=torch.bfloat16) for key, x in lora.state(base.hf).items()}
    lora.load_state(base.hf, stored, Path("made up"))
    for key, x in lora.state(base.hf).items():
        assert x.dtype == torch.float32
        assert torch.equal(x, stored[key].float())
