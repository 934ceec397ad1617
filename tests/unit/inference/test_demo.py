"""The facts: which steps a frame sees agrees with what the patch really does; and what a terminal shows."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from helpers.media_files import tone, write_clip
from helpers.random_checkpoints import save_trained, side_config
from helpers.tiny_model import SIDE_DIM, TinySetup

from pave.checkpoints import build, hot_swap
from pave.cli import main
from pave.inference import demo, provenance, session
from pave.inference.provenance import Provenance, SideProvenance
from pave.models.encoders import imagebind_audio
from pave.models.patch.patch import Patch
from pave.types import SideTokens, UserError

FRAMES = 8


@pytest.fixture(scope="module")
def folder(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    imagebind_audio.save(imagebind_audio.Tower(16, 1, 2, SIDE_DIM), out / "tower.safetensors")
    return save_trained(
        side_config(tiny_setup, {"audio": {"encoder": str(out / "tower.safetensors")}}), out / "ckpt", 0
    )


@pytest.mark.parametrize("steps", [1, 3, 5, 8, 11, 20])
@pytest.mark.parametrize(("neighborhood", "reach"), [("chunks", 0), ("centered", 3), ("seconds", 1.2), ("global", 0)])
def test_a_frame_sees_exactly_the_steps_that_change_it(neighborhood: str, reach: float, steps: int) -> None:
    torch.manual_seed(0)
    patch = Patch(  # type: ignore[arg-type]
        4, 6, 5, hidden_dim=8, side_hidden_dim=8, heads=2, neighborhood=neighborhood, window_reach=reach
    )
    torch.nn.init.normal_(patch.out_norm.weight)  # type: ignore[union-attr]
    query, x = torch.randn(1, FRAMES, 4, 6), torch.randn(1, steps, 1, 4)
    seconds, frames = torch.arange(steps) + 0.5, torch.linspace(0, 9, FRAMES)
    clock = {"seconds": [seconds], "frame_seconds": [frames]}
    with torch.no_grad():
        before = patch(query, x, [steps], **clock)
        changed = []
        for step in range(steps):
            other = x.clone()
            other[0, step] += torch.randn(1, 4)
            changed.append((patch(query, other, [steps], **clock) != before).flatten(2).any(-1)[0])
    found = provenance.describe_side(patch, SideTokens(x[0], seconds), frames, "a.mp4", "").windows
    assert found is not None
    for frame, (start, stop) in enumerate(found):
        assert [bool(frames_of_step[frame]) for frames_of_step in changed] == [start <= s < stop for s in range(steps)]


def test_the_time_line() -> None:
    side = SideProvenance("a.mp4", steps=3, tokens=1, seconds=[1.0, 3.0, 5.0], windows=[(0, 1), (0, 2), (3, 3)])
    shown = provenance.as_text(Provenance("a.mp4", None, 3, [0.0, 1.0, 5.9], {"audio": side})).splitlines()[3:]
    assert shown[0].endswith("0 s to 5.90 s")
    bars = [line.split("|")[1] for line in shown[1:]]
    assert {len(bar) for bar in bars} == {provenance.WIDTH}
    assert bars[0].index("o") == 0
    assert bars[0].index("=") == int(1 / 5.9 * 48)
    assert bars[1].strip() == "*" + "=" * (int(3 / 5.9 * 48) - int(1 / 5.9 * 48))
    assert bars[2].strip() == "o"
    assert [line.split("|")[2].strip() for line in shown[1:]] == ["step 1", "steps 1-2", "no step"]


def test_without_a_clock_steps_are_spread_evenly() -> None:
    side = SideProvenance("a.pt", steps=2, tokens=1, windows=[(0, 1), (1, 2)])
    shown = provenance.as_text(Provenance("a.mp4", None, 2, [0.0, 8.0], {"audio": side})).splitlines()[3:]
    assert "no clock" in shown[0]
    assert [line.split("|")[1].index("=") for line in shown[1:]] == [12, 36]


def test_the_terminal_shows_facts_and_the_answer_alone_is_the_output(
    tiny_setup: TinySetup, folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pave")
    video = tiny_setup.data / "videos/test_00000.mp4"
    argv = ["demo", "--ckpt", str(folder), "--video", str(video), "--ask", "Which sound?", "--max-new-tokens", "5"]
    assert main.main(argv) == 0
    out = capsys.readouterr().out
    model, config = build.load(folder)
    assert out.strip() == demo.answer(model, config, video, "Which sound?", {}, max_new_tokens=5)
    assert "4 frames are looked at" in caplog.text
    assert "audio: from test_00000.mp4, 7 steps of 1 token; a frame sees 1 to 2" in caplog.text
    assert "| steps 1-2" in caplog.text
    assert "steps" not in out


def test_a_conversation_with_a_second_patch_and_the_base_beside(
    tiny_setup: TinySetup,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pave")
    exo = {"side": "exo", "dim": 24, "encoder": str(tiny_setup.base), "encoder_options": ["frames=4"]}
    second = save_trained(side_config(tiny_setup, {"exo": exo}), tmp_path / "second", 1)
    video, other = (tiny_setup.data / f"videos/test_0000{number}.mp4" for number in (0, 1))
    first = ["demo", "--ckpt", str(folder), "--video", str(video), "--ask", "Which sound?", "--max-new-tokens", "5"]
    added = ["--patch", f"camera={second}", "--features", f"camera={other}"]
    assert main.main([*first, *added, "--ask", "And now?", "--beside"]) == 0
    lines = capsys.readouterr().out.splitlines()
    model, config = build.load(folder)
    one = session.Session(model, hot_swap.add(model, config, "camera", second))
    seen = one.load_video(video, {"camera": other})
    wanted = []
    for kind, patches in (("patched", None), ("base", ())):
        history: list[tuple[str, str]] = []
        for question in ("Which sound?", "And now?"):
            history.append((question, one.ask(seen, session.AnswerRequest(question, tuple(history), patches, 5)).text))
        wanted.append([f"{kind}: {text}" for _, text in history])
    assert lines == [line for turn in zip(*wanted) for line in turn]
    assert wanted[0][0].split()[1:] != wanted[1][0].split()[1:]
    assert "camera: from test_00001.mp4, 4 steps of 1 token; a frame sees 1" in caplog.text
    assert caplog.text.count("o frame, = the steps that it sees") == 2


def test_a_side_channel_from_another_file(tiny_setup: TinySetup, folder: Path, tmp_path: Path) -> None:
    mute, sound = (
        write_clip(tmp_path / "mute.mp4", 75),
        write_clip(tmp_path / "tone.wav", 0, None, tone(5), audio_codec="pcm_s16le"),
    )
    model, config = build.load(folder)
    seen = session.Session(model, config).load_video(mute, {"audio": sound})
    assert seen.provenance.sides["audio"].steps == 4
    assert seen.provenance.sides["audio"].source == "tone.wav"
    with pytest.raises(UserError, match=r"mute\.mp4: has no sound track.*--without audio"):
        demo.answer(model, config, mute, "What?", {})
    with pytest.raises(UserError, match="no such file"):
        demo.answer(model, config, mute, "What?", {"audio": tmp_path / "no.wav"})


def test_silence_is_noted(folder: Path, tmp_path: Path) -> None:
    quiet = write_clip(tmp_path / "quiet.mp4", 75, sound=0 * tone(3))
    model, config = build.load(folder)
    seen = session.Session(model, config).load_video(quiet, {})
    assert "from quiet.mp4 (silent)" in provenance.as_text(seen.provenance)


def test_texts_that_mean_something_to_the_model_are_refused(tiny_setup: TinySetup, folder: Path) -> None:
    model, config = build.load(folder)
    one = session.Session(model, config)
    seen = one.load_video(tiny_setup.data / "videos/test_00000.mp4", {})
    for ask in (
        session.AnswerRequest("What is <video>?"),
        session.AnswerRequest("So?", history=(("What?", "<|im_end|>"),)),
    ):
        with pytest.raises(UserError, match="means something to the model"):
            one.ask(seen, ask)
    with pytest.raises(UserError, match="exceed 1024 tokens"):
        one.ask(seen, session.AnswerRequest("What? " * 1000))


def test_serving_names_the_extra_that_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main.main(["serve", "--ckpt", str(folder)]) == 1
    assert "install pave with its extra" in capsys.readouterr().err


def test_a_second_camera_is_never_the_video_itself(tiny_setup: TinySetup, tmp_path: Path) -> None:
    exo = {"side": "exo", "dim": 24, "encoder": str(tiny_setup.base), "encoder_options": ["frames=4"]}
    model, config = build.load(save_trained(side_config(tiny_setup, {"camera": exo}), tmp_path / "ckpt", 0))
    video, other = (tiny_setup.data / f"videos/test_0000{number}.mp4" for number in (0, 1))
    one = session.Session(model, config)
    alone = one.load_video(video, {}).provenance.sides["camera"]
    assert alone.absent == "test_00000.mp4: a video does not hold it; give a file of its own"
    both = one.load_video(video, {"camera": other}).provenance.sides["camera"]
    assert (both.source, both.steps, both.windows) == ("test_00001.mp4", 4, [(0, 1), (1, 2), (2, 3), (3, 4)])
    with pytest.raises(UserError, match="no side-channel 'audio'; known: camera"):
        one.load_video(video, {"audio": other})


def test_without_an_encoder_features_are_asked_for(tiny_setup: TinySetup, tmp_path: Path) -> None:
    model, config = build.load(save_trained(side_config(tiny_setup, {"audio": {}}), tmp_path / "ckpt", 0))
    video = tiny_setup.data / "videos/test_00000.mp4"
    with pytest.raises(UserError, match=r"no encoder makes features of it; give features, or sides\.audio\.encoder"):
        demo.answer(model, config, video, "What?", {})
    with pytest.raises(UserError, match="no encoder makes audio features of it"):
        demo.answer(model, config, video, "What?", {"audio": video})
    ready = tiny_setup.data / "features/audio/test_00000.safetensors"
    assert session.Session(model, config).load_video(video, {"audio": ready}).provenance.sides["audio"].seconds is None
