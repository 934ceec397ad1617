"""`pave profile`: counts equal hand formulas, torch's counter and what the paper published; files, refusals."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from helpers.tiny_model import TinySetup, make_config
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from pave import config
from pave.analysis import bench_patch, op_counter, plots, profile
from pave.analysis.op_counter import Shape, count_ops
from pave.checkpoints import build
from pave.cli import main
from pave.config import Config
from pave.models.patch import patch as patch_module
from pave.models.patch.patch import Patch
from pave.types import UserError
from pave.utils import plotting

SEVEN_B = "base.path=lmms-lab/llava-onevision-qwen2-7b-ov"


@pytest.fixture(scope="module")
def tiny(tiny_setup: TinySetup) -> Config:
    return make_config(*tiny_setup)


@pytest.fixture(scope="module")
def seven() -> profile.Profile:
    return profile.profile(config.load(ROOT / "configs/avqa.yaml", [SEVEN_B]), {})


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_chain_by_hand(device: str) -> None:
    chain = nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 5, bias=False)).to(device)
    x = torch.zeros(100, 10, device=device)
    with torch.no_grad(), count_ops(chain) as counts:
        chain(x)
    # 100 rows of 20 before and after the ReLU are alive together, each number of 4 bytes.
    assert (counts.flops, counts.peak_bytes, counts.saved_bytes) == (2 * 100 * (10 * 20 + 20 * 5), 2 * 100 * 20 * 4, 0)
    with count_ops(chain) as counts:
        chain(x)
    # The input, for the first weight; what the ReLU gave, for itself and the second weight.
    assert counts.saved_bytes == 4 * 100 * (10 + 20)


def test_attention_by_hand() -> None:
    query, key = torch.zeros(2, 3, 7, 4, requires_grad=True), torch.zeros(2, 3, 9, 4)
    with count_ops(nn.Identity()) as counts:
        nn.functional.scaled_dot_product_attention(query, key, key)
    assert counts.flops == 2 * (2 * 2 * 3 * 7 * 9 * 4)
    # Key and value are one tensor; the sums are one number a query. No scores.
    assert counts.saved_bytes == 4 * 2 * 3 * (7 * 4 + 9 * 4 + 7 * 4 + 7)


@pytest.mark.parametrize("shape", [Shape(4, 2), Shape(40, 4)], ids=["folded", "plain"])
def test_a_patch_on_meta_costs_what_it_costs(shape: Shape) -> None:
    """Work by torch's own counter; what is kept by looking at the graph of a real run."""
    patch = Patch(12, 6, 8, hidden_dim=32, side_hidden_dim=16)
    query, side = torch.randn(1, 4, 64, 6), torch.randn(1, *shape, 12)
    weights, saved = {p.untyped_storage().data_ptr() for p in patch.parameters()}, {}
    hooks = saved_tensors_hooks(lambda x: saved.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x)
    with hooks, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = patch(query, side)
    real = sum(x.untyped_storage().nbytes() for pointer, x in saved.items() if pointer not in weights)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        patch(query, side)
    patch.to("meta")
    with count_ops(patch) as counts:
        assert patch(query.to("meta"), side.to("meta")).shape == out.shape
    assert counts.flops == counter.get_total_flops()
    assert counts.saved_bytes == real


def test_a_tiny_model_costs_what_it_costs(tiny: Config) -> None:
    result = profile.profile(tiny, {"audio": Shape(7, 1)}, text=10)
    model = build.create(tiny).eval()
    pixels, side = torch.zeros(1, 4, 3, 32, 32), torch.zeros(1, 7, 1, 12)

    def count(run: object) -> float:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()  # type: ignore[operator]
        return counter.get_total_flops() / 1e9

    rows = result.rows
    assert rows["vision tower"].gflop + rows["projector"].gflop == pytest.approx(
        count(lambda: model.base.encode(pixels))
    )
    query, embeds = model.base.encode(pixels)
    assert rows["patch audio"].gflop == pytest.approx(count(lambda: model.patches["audio"](query, side)))
    length = model.base.arrange_tokens(embeds).shape[1] + 10
    assert (result.visual_tokens, result.text_tokens) == (length - 10, 10)
    cache = DynamicCache()

    def read(tokens: int) -> None:
        hidden = model.base.llm(inputs_embeds=torch.zeros(1, tokens, 32), past_key_values=cache).last_hidden_state
        model.base.lm_head(hidden[:, -1:])

    # The tokenizer is shorter than the padded vocabulary, which a skeleton does not know.
    padding = (
        2 * 32 * (build.load_base(tiny.base, weights=False).lm_head.out_features - model.base.lm_head.out_features)
    )
    together = rows["LLM"].gflop + rows["LoRA"].gflop - padding / 1e9
    assert together == pytest.approx(count(lambda: read(length)))
    lora = sum(p.numel() for name, p in model.named_parameters() if "lora" in name)
    assert rows["LoRA"].gflop == pytest.approx(2 * lora * length / 1e9)
    token = result.token_gflop + (2 * lora - padding) / 1e9
    assert token == pytest.approx(count(lambda: read(1)))
    assert result.cache_mb == pytest.approx(2 * length * 16 * 4 / 1e6)  # one key-value head of 16 channels


def test_seven_billion_by_hand(seven: profile.Profile) -> None:
    rows, width, layers, length = seven.rows, 3584, 28, 32 * 14 * 15 + profile.TEXT_TOKENS
    linear = layers * (2 * width**2 + 2 * width * 512 + 3 * width * 18944)
    attention = layers * 2 * length * width
    head = width * 152064
    assert rows["LLM"].gflop == pytest.approx(2 * (length * (linear + attention) + head) / 1e9, rel=1e-9)
    assert seven.token_gflop == pytest.approx(2 * (linear + layers * 2 * (length + 1) * width + head) / 1e9, rel=1e-9)
    patches = 27 * 27
    tower = 26 * (patches * (4 * 1152**2 + 2 * 1152 * 4304) + 2 * patches**2 * 1152) + patches * 1152 * 3 * 14**2
    assert rows["vision tower"].gflop == pytest.approx(2 * 32 * tower / 1e9, rel=1e-9)
    assert rows["projector"].gflop == pytest.approx(2 * 32 * patches * (1152 * width + width**2) / 1e9, rel=1e-9)
    assert rows["LoRA"].gflop == pytest.approx(2 * rows["LoRA"].parameters * length / 1e9, rel=1e-9)
    assert seven.cache_mb == pytest.approx(layers * 2 * length * 512 * 2 / 1e6)
    # Checkpointing keeps each layer's input; the last norm's stay.
    layer = length * width * 2 / 1e6
    assert layers * layer < rows["LLM"].kept_mb < (layers + 4) * layer


def test_seven_billion_as_published(seven: profile.Profile) -> None:
    assert (seven.rows["patch audio"].parameters, seven.rows["LoRA"].parameters) == (8_996_352, 161_480_704)
    # "16 GB" and "20 MB", the patch in 16 bits
    assert round(sum(seven.rows[part].file_mb for part in ("vision tower", "projector", "LLM")) / 1e3) == 16
    assert round(seven.rows["patch audio"].file_mb / 2, -1) == 20
    # "98.5 TFLOP" and "0.1 TFLOP"
    assert round(seven.paper_llm_tflop, 1) == 98.5
    assert round(seven.rows["patch audio"].gflop / 1e3, 1) == 0.1


def test_a_patch_without_folding_costs_what_bench_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_module, "folding_pays", lambda tokens, key: False)
    for name, side in bench_patch.SIDES.items():
        patch = Patch(side.dim, 1152, 896).to("meta")
        query, x = (torch.empty(1, *size, device="meta") for size in ((32, 196, 1152), tuple(side)))
        with torch.no_grad(), count_ops(patch) as counts:
            patch(query, x)
        expected = bench_patch.gflop(bench_patch.Spec(name, "0.5b", 1, "forward"))
        # Windows of 3 and 4 steps are padded to 4, and attention over that is work.
        assert counts.flops / 1e9 == pytest.approx(expected, rel=2e-3), name


def test_curves_grow_with_the_tokens(tiny: Config, tmp_path: Path) -> None:
    result = profile.profile(tiny, {"audio": Shape(8, 3)}, curves=True)
    points = result.curves["audio"]
    assert [point.tokens for point in points] == [6, 12, 24, 48, 96, 192, 384]
    assert points[2].patch_tflop * 1e3 == pytest.approx(result.rows["patch audio"].gflop)
    grown = [(b.patch_tflop > a.patch_tflop, b.llm_tflop > a.llm_tflop) for a, b in pairwise(points)]
    assert all(all(pair) for pair in grown)
    plotting.require_matplotlib(tmp_path)
    plots.plot_costs(result, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_and_its_files(
    tiny: Config, tiny_setup: TinySetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(config.dump(tiny))
    line = ["profile", f"{tmp_path}/run.yaml", "--side-shape", "audio=7x1", "--out"]
    assert main.main([*line, f"{tmp_path}/p.csv"]) == 0
    text = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    model = build.create(tiny, weights=False)
    assert sum(int(row["parameters"]) for row in rows) == sum(p.numel() for p in model.parameters())
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lora = trains - sum(p.numel() for p in model.patches.parameters() if p.requires_grad)
    assert sum(int(row["trainable"]) for row in rows) == trains
    total = next(line for line in text.splitlines() if line.startswith("all "))
    assert total.split()[1] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert total.split()[2] == f"{trains:,}"
    assert "audio 7 x 1" in text
    assert "a multiply-add is two" in text
    assert main.main(["profile", f"{tmp_path}/run.yaml", "sides={}", "--out", f"{tmp_path}/p.json"]) == 0
    alone = json.loads((tmp_path / "p.json").read_text())
    assert alone["rows"]["LoRA"]["trainable"] == lora
    assert "patch audio" not in alone["rows"]
    assert main.main([*line, f"{tmp_path}/p.csv", "sides={}"]) == 1
    assert "no side-channel 'audio' in this config; it has none" in capsys.readouterr().err


def test_what_is_refused(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no side-channel 'adio' in this config; did you mean 'audio'"):
        profile.profile(tiny, {"adio": Shape(1, 1)})
    with pytest.raises(UserError, match="--text -1: expected a number"):
        profile.profile(tiny, {}, text=-1)
    model = build.create(tiny, weights=False)
    monkeypatch.setattr(type(model.base), "encode", lambda base, pixels, prompt_ids: pixels.sum().item())
    with pytest.raises(UserError, match=r"llava_onevision: this tower cannot run on shapes alone \(.*meta"):
        op_counter.count_vision(model, 4)
    for text in ("7", "7x", "0x1", "x1", "7x1x1", "-1x2"):
        with pytest.raises(UserError, match="expected NAME=STEPSxTOKENS"):
            profile.parse_shape(text)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"written as \.json or \.csv, not '\.txt'"):
        profile.save(profile.profile(tiny, {"audio": Shape(7, 1)}), tmp_path / "p.txt")
