"""`pave explain`: attention equals the patch's own, finds the sound in the small world; worth, pictures, page."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN
from helpers.random_checkpoints import save_trained, side_config
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file
from torch import nn

from pave import config
from pave.analysis import explain, plots
from pave.analysis.explain import Attention, Explanation, View
from pave.checkpoints import build
from pave.cli import main
from pave.data.collate import collate
from pave.inference.session import Session
from pave.media import feature_files
from pave.media.audio import HOP, SAMPLE_RATE, WINDOW, mel_windows
from pave.media.frame_sampling import uniform
from pave.models.encoders import imagebind_audio
from pave.models.patch.patch import ConvShape, Patch
from pave.sideworld import scene as sideworld
from pave.types import Clip, SideTokens, UserError
from pave.utils import plotting

ASK = "Which sound is heard? Answer with one word."
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 3},
    "separate values": {"value_projection": "separate"},
    "rope": {"rope": True, "hidden_dim": 512},
    "centered": {"neighborhood": "centered", "window_reach": 5},
    "seconds": {"neighborhood": "seconds", "window_reach": 1.2},
    "global": {"neighborhood": "global"},
    "learnable": {"queries": (8, 4)},
    "conv": {"conv": ConvShape((1, 1), (1, 1), (1, 1))},
    "bare": {"out_mlp": False, "out_norm": False, "hidden_dim": 40},
}


def busy_patch(**kind: Any) -> Patch:
    """A patch without a zero in it."""
    torch.manual_seed(0)
    patch = Patch(10, 6, 40, **{"hidden_dim": 32, "side_hidden_dim": 24, **kind}).eval()
    for parameter in patch.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return patch


@pytest.mark.parametrize("shape", [(5, 4), (8, 16), (21, 4), (3, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_attention_reproduces_the_patch(kind: str, shape: tuple[int, int]) -> None:
    patch = busy_patch(**KINDS[kind])
    query, side = torch.randn(8, 4, 6), SideTokens(torch.randn(*shape, 10), torch.linspace(0, 8, shape[0]))
    at, chosen = torch.linspace(0, 8, 8), torch.arange(8) % 4
    with torch.no_grad():
        expected = patch(query[None], side.x[None], seconds=[side.seconds], frame_seconds=[at])[0]
    actual = explain.recompute_attention(patch, query, side, at, chosen)
    assert actual.update.sub(expected).abs().max() < 1e-5
    sees = actual.in_window.any(1)
    assert sees.all() or kind == "seconds"
    assert torch.allclose(actual.frames.sum(-1), sees.float().expand(actual.frames.shape[:3]), atol=1e-5)
    assert torch.allclose(actual.tokens.sum((-1, -2)), actual.frames.sum(-1), atol=1e-5)
    assert not actual.frames[..., ~actual.in_window].any()


def test_a_base_in_16_bits_asks_a_patch_in_32() -> None:
    patch, query, x = busy_patch(), torch.randn(8, 4, 6).bfloat16(), torch.randn(9, 4, 10).half()
    actual = explain.recompute_attention(patch, query, SideTokens(x), torch.zeros(8), torch.zeros(8, dtype=torch.long))
    with torch.no_grad():
        assert actual.update.sub(patch(query[None], x[None])[0]).abs().max() < 1e-5


def test_a_patch_that_asks_nothing_attends_evenly() -> None:
    patch = busy_patch()
    for layer in patch.layers:
        nn.init.zeros_(layer.q.weight)
        nn.init.zeros_(layer.q.bias)
    side = SideTokens(torch.randn(5, 2, 10))
    query, zeros = torch.randn(2, 4, 6), torch.zeros(2, dtype=torch.long)
    actual = explain.recompute_attention(patch, query, side, torch.zeros(2), zeros)
    third, half = 1 / 3, 1 / 2
    expected = torch.tensor([[third, third, third, 0, 0], [0, 0, 0, half, half]])
    assert torch.allclose(actual.frames, expected.expand_as(actual.frames))
    assert torch.allclose(actual.tokens, expected[..., None].expand_as(actual.tokens) / 2)


def test_stretching_and_shifting() -> None:
    assert torch.equal(explain.interpolation_weights(2, 3), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    assert torch.equal(explain.interpolation_weights(4, 4), torch.eye(4))
    x = torch.arange(6.0)[:, None, None]
    assert explain.shift_half_clip(SideTokens(x)).x.flatten().tolist() == [3, 4, 5, 0, 1, 2]
    two_cameras = SideTokens(x, torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0]))
    assert explain.shift_half_clip(two_cameras).x.flatten().tolist() == [4, 5, 0, 1, 2, 3]


def test_a_trained_patch_attends_to_the_sound() -> None:
    """Trained on the small world with windows of three steps (doc/guides/explain.md)."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"neighborhood": "seconds", "window_reach": 1.5}
    trained, fresh = (Patch(64, 96, 128, hidden_dim=128, side_hidden_dim=128, **settings).eval() for _ in range(2))
    trained.load_state_dict({k: x.float() for k, x in load_file(GOLDEN / "explain/patch.safetensors").items()})
    base = build.load_base(dataclasses.replace(config.Config().base, path="asset:sideworld/base", dtype="float32"))
    tower = imagebind_audio.load(Path(config.resolve("asset:sideworld/audio.safetensors")))
    shares, evens, untrained = [], [], []
    for i in range(50):
        scene = sideworld.draw_scene(sideworld.clip_seed("test", 5, i))
        numbers = uniform(sideworld.FRAMES, 16)
        at = torch.from_numpy(np.asarray(numbers) / sideworld.FPS).float()
        with torch.no_grad():
            query = base.encode(base.preprocess(sideworld.render(scene, numbers))[None]).query[0]
            x = tower(mel_windows(torch.from_numpy(sideworld.synthesize_sound(scene))[None]))[:, None]
        side = SideTokens(x, (WINDOW / 2 + HOP * torch.arange(len(x))) / SAMPLE_RATE)
        begins = side.seconds - WINDOW / SAMPLE_RATE / 2
        heard = (begins <= scene.heard_at) & (scene.heard_at + sideworld.SOUND_SECONDS <= begins + WINDOW / SAMPLE_RATE)
        frame = int((at - scene.heard_at).abs().argmin())
        for patch, row in ((trained, shares), (fresh, untrained)):
            view = explain.recompute_attention(patch, query, side, at, torch.zeros(16, dtype=torch.long))
            row.append(view.frames[:, :, frame, heard].sum(-1).mean().item())
        evens.append((view.in_window[frame] & heard).sum().item() / view.in_window[frame].sum().item())
    assert 0.35 < np.mean(evens) < 0.55
    assert np.mean(untrained) == pytest.approx(np.mean(evens), abs=0.1)
    assert np.mean(shares) > 0.8
    assert min(shares) > 0.5


@pytest.fixture(scope="module")
def session(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Two patches on the tiny base, one for a side-channel of 2x2 tokens."""
    sides = {"audio": {"neighborhood": "global"}, "dense": {"side": "dense", "features": "features/dense"}}
    folder = save_trained(side_config(tiny_setup, sides), tmp_path_factory.mktemp("explain") / "ckpt", 0)
    return Session(*build.load(folder))


@pytest.fixture(scope="module")
def files(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    dense = tmp_path_factory.mktemp("dense") / "clip.safetensors"
    feature_files.write(
        dense,
        SideTokens(torch.randn(10, 4, 12), torch.linspace(0, 7, 10)),
        feature_files.Meta("dense", "siglip_frames", "x"),
    )
    return {"audio": tiny_setup.data / "features/audio/test_00000.safetensors", "dense": dense}


@pytest.fixture(scope="module")
def explained(tiny_setup: TinySetup, session: Session, files: dict[str, Path]) -> Explanation:
    other = {"audio": tiny_setup.data / "features/audio/test_00001.safetensors"}
    return explain.explain(session, tiny_setup.data / "videos/test_00000.mp4", ASK, files, other, answer="hum")


def test_log_probabilities_are_the_models_own(
    tiny_setup: TinySetup, session: Session, files: dict[str, Path], explained: Explanation
) -> None:
    scene = session.load_video(tiny_setup.data / "videos/test_00000.mp4", files)
    base = session.model.base
    answer_ids = base.tokenizer("hum<|im_end|>\n", add_special_tokens=False).input_ids

    def by_hand(sides: dict[str, SideTokens], patches: list[str]) -> float:
        """Token after token, each from the LLM's last state."""
        session.model.set_patches(dict.fromkeys(patches, 1.0))
        prompt = base.chat(ASK).ids
        place = prompt.index(-200)
        batch = collate([scene.sample._replace(sides=sides)], 0)
        visual = session.model.fuse(batch["pixels"], batch["sides"], batch["frame_seconds"])[0]
        words = base.hf.get_input_embeddings()
        total = 0.0
        for i, token in enumerate(answer_ids):
            after = words(torch.tensor([*prompt[place + 1 :], *answer_ids[:i]]))
            embeds = torch.cat([words(torch.tensor(prompt[:place])), visual, after])
            hidden = base.llm(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0, -1]
            total += base.lm_head(hidden).log_softmax(-1)[token].item()
        session.model.set_patches(dict.fromkeys(session.model.patches, 1.0))
        return total

    sides, both = dict(scene.sample.sides), ["audio", "dense"]
    other = feature_files.read(tiny_setup.data / "features/audio/test_00001.safetensors", ("imagebind_audio",))
    late = sides["audio"]._replace(x=sides["audio"].x.roll(len(sides["audio"].x) // 2, 0))
    with torch.no_grad():
        expected = {
            "as it is": by_hand(sides, both),
            "audio off": by_hand({"dense": sides["dense"]}, both),
            "audio shifted": by_hand({**sides, "audio": late}, both),
            "audio of another clip": by_hand({**sides, "audio": other}, both),
            "dense off": by_hand({"audio": sides["audio"]}, both),
            "base: no patch, no LoRA": by_hand(sides, []),
        }
    for what, value in expected.items():
        assert explained.logprobs[what] == pytest.approx(value, abs=1e-4), what
    # With all steps in every window, their order means nothing.
    assert explained.logprobs["audio shifted"] == pytest.approx(explained.logprobs["as it is"], abs=1e-4)
    assert len({round(explained.logprobs[what], 3) for what in expected} - {round(expected["audio shifted"], 3)}) >= 4
    assert session.model.patch_weights == {"audio": 1.0, "dense": 1.0}


def test_change_is_relative_to_the_visual_tokens(
    tiny_setup: TinySetup, session: Session, files: dict[str, Path], explained: Explanation
) -> None:
    sample = session.load_video(tiny_setup.data / "videos/test_00000.mp4", files).sample
    with torch.no_grad():
        query, embeds = session.model.base.encode(sample.pixels[None])
        update = session.model.patches["dense"](query, sample.sides["dense"].x[None])
    view = explained.views["dense"]
    expected = update[0].square().sum(-1).sqrt() / embeds[0].square().sum(-1).sqrt()
    assert torch.allclose(view.change, expected, rtol=1e-5)
    assert torch.equal(view.shown_tokens, expected.argmax(1))
    video = tiny_setup.data / "videos/test_00000.mp4"
    of_token_0 = explain.explain(session, video, ASK, files, {}, "hum", token=0)
    assert of_token_0.views["dense"].shown_tokens.tolist() == [0] * 4


def test_pictures_page_and_numbers(explained: Explanation, tmp_path: Path) -> None:
    hostile = dataclasses.replace(explained, question="<script>alert(1)</script>")
    page = plots.write_explanation(hostile, tmp_path / "out").read_text()
    files_written = {file.name for file in (tmp_path / "out").iterdir()}
    assert files_written == {
        "index.html",
        "explain.json",
        "overview.png",
        "attention_audio.png",
        "attention_dense.png",
        "space_dense.png",
    }
    assert page.count("data:image/png;base64,iVBOR") == 4
    assert "<script" not in page
    assert "http" not in page
    numbers = json.loads((tmp_path / "out/explain.json").read_text())
    assert numbers["log_probability"]["audio off"] == pytest.approx(explained.logprobs["audio off"], abs=1e-4)
    assert np.allclose(numbers["sides"]["dense"]["attention"], explained.views["dense"].attention.frames, atol=1e-5)
    assert numbers["sides"]["dense"]["seen"] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


def test_a_picture_shows_the_attention_it_is_of() -> None:
    frames = torch.zeros(1, 1, 4, 6)
    frames[..., [0, 1, 2, 3], [1, 2, 3, 4]] = 1.0
    in_window = torch.ones(4, 6, dtype=torch.bool)
    in_window[0, 5] = False
    attention = Attention(frames, frames[..., None], in_window, torch.zeros(4, 4, 8))
    view = View(attention, torch.zeros(4, dtype=torch.long), torch.ones(4, 4), torch.arange(6.0))
    clip = Clip(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4.0))
    plotting.require_matplotlib(Path("x"))
    figure = plots.draw_overview(Explanation("q", "a", clip, {"audio": view}, {"as it is": -0.5, "base": -1.0}))
    shown = figure.axes[1].images[0].get_array()
    assert shown.shape == (6, 4)
    assert shown[1, 0] == shown[4, 3] == 1.0
    assert shown.mask[5, 0]
    assert not shown.mask[5, 1]
    assert [bar.get_width() for bar in figure.axes[3].patches] == [-0.5, -1.0]


def test_what_is_refused(
    tiny_setup: TinySetup, session: Session, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tiny_setup.data / "videos/test_00000.mp4"
    with pytest.raises(UserError, match="no side-channel 'adio'; did you mean 'audio'"):
        explain.explain(session, video, ASK, files, {"adio": files["audio"]})
    with pytest.raises(UserError, match="token 99: a frame has 1 tokens"):
        explain.explain(session, video, ASK, files, {}, "hum", token=99)
    with pytest.raises(UserError, match=r"nothing to explain \(audio: .*no encoder"):
        explain.explain(session, video, ASK, {}, {}, "hum")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[plot\]'"):
        plotting.require_matplotlib(tmp_path)


def test_the_command(
    tiny_setup: TinySetup, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_trained(side_config(tiny_setup, {"audio": {}}), tmp_path / "ckpt", 1)
    video = tiny_setup.data / "videos/test_00001.mp4"
    line = ["explain", "--ckpt", folder, "--video", video, "--ask", ASK, "--out", tmp_path / "out"]
    assert main.main([*map(str, line), "--features", f"audio={files['audio']}"]) == 0
    answer, page = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    assert json.loads((tmp_path / "out/explain.json").read_text())["answer"] == answer
    assert Path(page).is_file()
