"""The page as people use it, in headless Chromium; pictures of it are left in runs/screenshots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.media_files import BUNNY, copy_picture, cut
from helpers.paths import FIXTURES, ROOT
from helpers.server_client import QUESTION, TIMEOUT, serve_process

from pave.sideworld import files
from pave.sideworld.scene import clip_seed, draw_scene

CHECKPOINT = FIXTURES / "sideworld_audio"
PICTURES = ROOT / "runs/screenshots"
SCENE = draw_scene(clip_seed("test", 0, 0))
FOLLOWING = "Which shape jumped when the sound was heard? Answer with one word."

pytestmark = pytest.mark.slow


class Site(NamedTuple):
    """A server and a browser."""

    address: str
    browser: Any
    clip: Path
    urls: list[str]
    """All that pages requested."""

    def open(self) -> Any:
        """A new page of the browser."""
        page = self.browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(TIMEOUT * 1000)
        page.on("request", lambda request: self.urls.append(request.url))
        page.goto(self.address)
        page.get_by_text("What was used").wait_for()
        return page

    def answers(self, video: Path, question: str, **fields: str) -> tuple[str, str]:
        """Answers of the endpoint: with the patches, and of the base."""
        import httpx

        with video.open("rb") as file:
            form = {"question": question, "base": "true", **fields}
            body = httpx.post(f"{self.address}/v1/answer", files={"video": file}, data=form, timeout=TIMEOUT).json()
        return body["answer"]["text"], body["base"]["text"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("gradio", reason="needs the extra demo")
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra browser)")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("site")
    clip, urls = folder / "sideworld.mp4", list[str]()
    files.write_clip(SCENE, clip)
    PICTURES.mkdir(parents=True, exist_ok=True)
    driver.expect.set_options(timeout=TIMEOUT * 1000)
    # Root has no sandbox.
    arguments = [] if os.geteuid() else ["--no-sandbox"]
    with serve_process(folder, "--ckpt", str(CHECKPOINT)) as process, driver.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=arguments)
        yield Site(process.address, browser, clip, urls)
        browser.close()
    assert not [url for url in urls if not url.startswith((process.address, "data:", "blob:"))]


def drop(page: Any, video: Path) -> None:
    page.set_input_files("input[type=file] >> nth=0", str(video))


def ask(page: Any, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")


def chat_answers(page: Any, column: int) -> Any:
    """The answers in one of the two conversations."""
    return page.locator(".bubble-wrap").nth(column).locator("[data-testid=bot]")


def provenance_text(page: Any) -> Any:
    return page.locator(".cm-content")


def shoot(page: Any, name: str) -> None:
    page.wait_for_timeout(500)  # fading in
    page.screenshot(path=PICTURES / f"serve_{name}.png")


def test_the_audio_patch_is_heard_and_switched(site: Site) -> None:
    from playwright.sync_api import expect

    patched, bare = site.answers(site.clip, QUESTION)
    assert patched == SCENE.sound
    assert bare != SCENE.sound
    page = site.open()
    drop(page, site.clip)
    expect(provenance_text(page)).to_contain_text("audio: from sideworld.mp4, 7 steps of 1 token; a frame sees 1 to 2")
    ask(page, QUESTION)
    expect(chat_answers(page, 0)).to_have_text([patched])
    expect(chat_answers(page, 1)).to_have_text([bare])
    shoot(page, "answers")
    history = f'[["{QUESTION}", "{patched}"]]'
    follow, _ = site.answers(site.clip, FOLLOWING, history=history)
    ask(page, FOLLOWING)
    expect(chat_answers(page, 0)).to_have_text([patched, follow])
    expect(chat_answers(page, 1)).to_have_count(2)
    shoot(page, "follow_up")
    page.get_by_role("button", name="New conversation").click()
    expect(chat_answers(page, 0)).to_have_count(0)
    page.get_by_label("audio", exact=True).uncheck()
    ask(page, QUESTION)
    expect(chat_answers(page, 0)).to_have_text([bare])
    expect(provenance_text(page)).to_contain_text("audio: switched off")
    shoot(page, "patch_off")
    page.get_by_label("audio", exact=True).check()
    ask(page, QUESTION)
    expect(chat_answers(page, 0)).to_have_count(2)
    page.close()


def test_a_real_video(site: Site) -> None:
    from playwright.sync_api import expect

    answers = site.answers(BUNNY, QUESTION)
    page = site.open()
    drop(page, BUNNY)
    expect(provenance_text(page)).to_contain_text("bigbuckbunny.mp4, 5.28 s, 132 frames of 1280x720, a sound track")
    ask(page, QUESTION)
    for column, text in enumerate(answers):
        expect(chat_answers(page, column)).to_have_text([text])
    shoot(page, "real_video")
    page.close()


def test_a_broken_file_and_one_without_sound(site: Site, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page = site.open()
    drop(page, Path(shutil.move(cut(site.clip), tmp_path / "broken.mp4")))
    expect(page.locator(".toast-wrap")).to_contain_text("broken.mp4: damaged, cut off, or no video or sound")
    shoot(page, "broken_file")
    page.close()
    page = site.open()
    drop(page, copy_picture(site.clip, tmp_path / "mute.mp4", silence=False))
    expect(provenance_text(page)).to_contain_text("audio: not used: mute.mp4: has no sound track; give a file with one")
    ask(page, QUESTION)
    expect(chat_answers(page, 0)).to_have_count(1)
    shoot(page, "without_sound")
    page.close()
