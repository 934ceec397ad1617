"""Provenance agrees with what a patch attends to; sessions and `pave demo` say what was used and what is missing."""

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
from pave.inference import demo, provenance
from pave.inference.provenance import Provenance, SideProvenance
from pave.inference.session import AnswerRequest, Session
from pave.models.encoders import imagebind_audio
from pave.models.patch.patch import Patch
from pave.types import SideTokens, UserError

FRAMES = 8


@pytest.fixture(scope="module")
def folder(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained folder with an audio patch and its encoder."""
    out = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    imagebind_audio.save(imagebind_audio.Tower(16, 1, 2, SIDE_DIM), out / "tower.safetensors")
    config = side_config(tiny_setup, {"audio": {"encoder": str(out / "tower.safetensors")}})
    return save_trained(config, out / "ckpt", 0)


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return Session(*build.load(folder))


@pytest.fixture(scope="module")
def camera_folder(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained folder with a patch for a second camera."""
    exo = {"side": "exo", "side_dim": 24, "encoder": str(tiny_setup.base), "encoder_options": ["frames=4"]}
    return save_trained(side_config(tiny_setup, {"camera": exo}), tmp_path_factory.mktemp("camera") / "ckpt", 1)


@pytest.fixture
def videos(tiny_setup: TinySetup) -> tuple[Path, Path]:
    return tiny_setup.data / "videos/test_00000.mp4", tiny_setup.data / "videos/test_00001.mp4"


@pytest.mark.parametrize("steps", [1, 3, 5, 8, 11, 20])
@pytest.mark.parametrize(("neighborhood", "reach"), [("chunks", 0), ("centered", 3), ("seconds", 1.2), ("global", 0)])
def test_a_window_holds_exactly_the_steps_that_change_a_frame(neighborhood: str, reach: float, steps: int) -> None:
    torch.manual_seed(0)
    patch = Patch(  # type: ignore[arg-type]
        4, 6, 5, hidden_dim=8, side_hidden_dim=8, heads=2, neighborhood=neighborhood, window_reach=reach
    )
    torch.nn.init.normal_(patch.out_norm.weight)  # type: ignore[union-attr]
    query, x = torch.randn(1, FRAMES, 4, 6), torch.randn(1, steps, 1, 4)
    seconds, frame_seconds = torch.arange(steps) + 0.5, torch.linspace(0, 9, FRAMES)
    clock = {"seconds": [seconds], "frame_seconds": [frame_seconds]}

    with torch.no_grad():
        before = patch(query, x, [steps], **clock)
        changed_frames = []
        for step in range(steps):
            other = x.clone()
            other[0, step] += torch.randn(1, 4)
            changed_frames.append((patch(query, other, [steps], **clock) != before).flatten(2).any(-1)[0])

    windows = provenance.describe_side(patch, SideTokens(x[0], seconds), frame_seconds, "a.mp4", "").windows
    assert windows is not None
    for frame, (start, stop) in enumerate(windows):
        assert [bool(frames[frame]) for frames in changed_frames] == [start <= step < stop for step in range(steps)]


def test_the_time_line() -> None:
    side = SideProvenance("a.mp4", steps=3, tokens=1, seconds=[1.0, 3.0, 5.0], windows=[(0, 1), (0, 2), (3, 3)])
    text = provenance.as_text(Provenance("a.mp4", None, 3, [0.0, 1.0, 5.9], {"audio": side}))
    head, *lines = text.splitlines()[3:]
    assert head.endswith("0 s to 5.90 s")
    bars = [line.split("|")[1] for line in lines]
    assert {len(bar) for bar in bars} == {provenance.WIDTH}
    assert (bars[0].index("o"), bars[0].index("=")) == (0, int(1 / 5.9 * 48))
    assert bars[1].strip() == "*" + "=" * (int(3 / 5.9 * 48) - int(1 / 5.9 * 48))
    assert bars[2].strip() == "o"
    assert [line.split("|")[2].strip() for line in lines] == ["step 1", "steps 1-2", "no step"]


def test_without_a_clock_steps_are_spread_evenly() -> None:
    side = SideProvenance("a.pt", steps=2, tokens=1, windows=[(0, 1), (1, 2)])
    text = provenance.as_text(Provenance("a.mp4", None, 2, [0.0, 8.0], {"audio": side}))
    head, *lines = text.splitlines()[3:]
    assert "no clock" in head
    assert [line.split("|")[1].index("=") for line in lines] == [12, 36]


def test_the_answer_is_the_output_and_the_provenance_is_logged(
    folder: Path, videos: tuple[Path, Path], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pave")
    argv = ["demo", "--ckpt", str(folder), "--video", str(videos[0]), "--ask", "Which sound?", "--max-new-tokens", "5"]
    assert main.main(argv) == 0
    out = capsys.readouterr().out
    assert out.strip() == demo.answer(*build.load(folder), videos[0], "Which sound?", {}, max_new_tokens=5)
    assert "4 frames are looked at" in caplog.text
    assert "audio: from test_00000.mp4, 7 steps of 1 token; a frame sees 1 to 2" in caplog.text
    assert "| steps 1-2" in caplog.text
    assert "steps" not in out


def test_a_conversation_with_a_second_patch_and_with_the_base(
    folder: Path,
    camera_folder: Path,
    videos: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pave")
    argv = ["demo", "--ckpt", str(folder), "--video", str(videos[0]), "--max-new-tokens", "5", "--beside"]
    argv += ["--patch", f"camera={camera_folder}", "--features", f"camera={videos[1]}"]
    assert main.main([*argv, "--ask", "Which sound?", "--ask", "And now?"]) == 0
    lines = capsys.readouterr().out.splitlines()

    model, config = build.load(folder)
    session = Session(model, hot_swap.add(model, config, "camera", camera_folder))
    loaded = session.load_video(videos[0], {"camera": videos[1]})
    expected = []
    for label, patches in (("patched", None), ("base", ())):
        history: list[tuple[str, str]] = []
        for question in ("Which sound?", "And now?"):
            request = AnswerRequest(question, tuple(history), patches, 5)
            history.append((question, session.ask(loaded, request).text))
        expected.append([f"{label}: {text}" for _, text in history])
    assert lines == [line for turn in zip(*expected) for line in turn]
    assert expected[0][0].split()[1:] != expected[1][0].split()[1:]
    assert "camera: from test_00001.mp4, 4 steps of 1 token; a frame sees 1" in caplog.text
    assert caplog.text.count("o frame, = the steps that it sees") == 2


def test_a_side_channel_from_another_file(session: Session, tmp_path: Path) -> None:
    mute = write_clip(tmp_path / "mute.mp4", 75)
    sound = write_clip(tmp_path / "tone.wav", 0, None, tone(5), audio_codec="pcm_s16le")
    side = session.load_video(mute, {"audio": sound}).provenance.sides["audio"]
    assert (side.steps, side.source) == (4, "tone.wav")
    with pytest.raises(UserError, match=r"mute\.mp4: has no sound track.*--without audio"):
        demo.answer(session.model, session.config, mute, "What?", {})
    with pytest.raises(UserError, match="no such file"):
        demo.answer(session.model, session.config, mute, "What?", {"audio": tmp_path / "no.wav"})


def test_silence_is_noted(session: Session, tmp_path: Path) -> None:
    silent = write_clip(tmp_path / "silent.mp4", 75, sound=0 * tone(3))
    assert "from silent.mp4 (silent)" in provenance.as_text(session.load_video(silent, {}).provenance)


def test_special_tokens_and_long_conversations_are_refused(session: Session, videos: tuple[Path, Path]) -> None:
    loaded = session.load_video(videos[0], {})
    for request in (AnswerRequest("What is <video>?"), AnswerRequest("So?", history=(("What?", "<|im_end|>"),))):
        with pytest.raises(UserError, match="means something to the model"):
            session.ask(loaded, request)
    with pytest.raises(UserError, match="exceed 1024 tokens"):
        session.ask(loaded, AnswerRequest("What? " * 1000))


def test_serving_names_the_extra_that_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main.main(["serve", "--ckpt", str(folder)]) == 1
    assert "install pave with its extra" in capsys.readouterr().err


def test_a_second_camera_is_never_the_video_itself(camera_folder: Path, videos: tuple[Path, Path]) -> None:
    session = Session(*build.load(camera_folder))
    without_file = session.load_video(videos[0], {}).provenance.sides["camera"]
    assert without_file.absent == "test_00000.mp4: a video does not hold it; give a file of its own"
    side = session.load_video(videos[0], {"camera": videos[1]}).provenance.sides["camera"]
    assert (side.source, side.steps, side.windows) == ("test_00001.mp4", 4, [(0, 1), (1, 2), (2, 3), (3, 4)])
    with pytest.raises(UserError, match="no side-channel 'audio'; known: camera"):
        session.load_video(videos[0], {"audio": videos[1]})


def test_without_an_encoder_features_are_required(
    tiny_setup: TinySetup, videos: tuple[Path, Path], tmp_path: Path
) -> None:
    model, config = build.load(save_trained(side_config(tiny_setup, {"audio": {}}), tmp_path / "ckpt", 0))
    with pytest.raises(UserError, match=r"no encoder makes features of it; give features, or sides\.audio\.encoder"):
        demo.answer(model, config, videos[0], "What?", {})
    with pytest.raises(UserError, match="no encoder makes audio features of it"):
        demo.answer(model, config, videos[0], "What?", {"audio": videos[0]})
    features = tiny_setup.data / "features/audio/test_00000.safetensors"
    loaded = Session(model, config).load_video(videos[0], {"audio": features})
    assert loaded.provenance.sides["audio"].seconds is None
