"""The pages hold: anchors, scripts and launchers exist, tables equal the code, and quoted lines are printed by it."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from helpers import official_layouts
from helpers.pages import PAGES, commands
from helpers.paths import ROOT
from helpers.recipes import RECIPES

from pave import config
from pave.checkpoints import model_zoo
from pave.cli import main
from pave.data import extraction
from pave.evaluation import model_card
from pave.media.feature_files import feature_file
from pave.tasks import mvbench
from pave.tasks.base import get_task
from pave.types import Question

DOC = ROOT / "doc"
ids = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """Fenced blocks, long lines put together."""
    return [block.replace("\\\n", " ") for block in re.findall(rf"```{language}\n(.*?)```", text, re.S)]


def lines(text: str) -> list[str]:
    return [line.strip() for block in blocks(text) for line in block.splitlines()]


def inline(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


def anchors(page: Path) -> set[str]:
    """Of its headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_anchors_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
        target = page.parent / file if file else page
        assert target.is_file(), file
        assert anchor in anchors(target), f"{file}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_scripts_exist_and_launchers_parse(page: Path) -> None:
    text = page.read_text()
    for line in [*lines(text), *inline(text)]:
        for script in re.findall(r"(?:bash|sbatch) (?:--\S+ )*(scripts/\S+\.\w+)", line):
            assert (ROOT / script).is_file(), line
        launched = re.search(r"-m (?:pave\.cli|pave) (.+)", line)
        if launched and "..." not in line:
            words = shlex.split(launched[1], comments=True)
            assert callable(main.parse_arguments([word for word in words if not word.startswith("$")]).run), line


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_inline_commands_name_what_there_is(page: Path) -> None:
    """`pave eval --limit N` in a sentence may be a part, but its words must be known."""
    (choices,) = [
        action.choices for action in main.make_parser()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    for text in inline(page.read_text()):
        words = text.split()
        if words[0] != "pave" or len(words) == 1 or not re.fullmatch(r"[a-z]+", words[1]):
            continue
        assert words[1] in choices, text
        parser = choices[words[1]]
        nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if nested and len(words) > 2 and words[2] in nested[0].choices:
            parser = nested[0].choices[words[2]]
        known = {option for action in parser._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= known, text


def test_the_table_of_results_is_that_of_the_zoo_and_the_configs() -> None:
    text = (DOC / "results/reproduce.md").read_text()
    table = [row for row in text.splitlines() if row.count("|") == 9 and "`" in row]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
    runs = {file.read_text(): config.load(file) for file in (ROOT / f"configs/{name}.yaml" for name in RECIPES)}
    headers = {(run.data.task, tuple(run.sides)): header for header, run in runs.items()}
    wanted = [(release, task) for release in model_zoo.CHECKPOINTS for task in release.published]
    assert len(rows) == len(wanted)
    for (title, size, base, alone, published, _, here, name), (release, task) in zip(rows, wanted):
        assert name == f"`{release.name}`"
        assert size.lower() == release.size
        assert tuple(map(float, published.split(", "))) == release.published[task]
        assert re.sub(r"\W", "", title.split(" (")[0].lower()) in {task.replace("_", ""), f"{task}4d"}
        assert here == "not run"
        # The headers of the configs have the rest.
        known = headers[release.recipe.task, release.recipe.sides]
        assert all(re.search(rf"(?<![\d.]){re.escape(number)}\b", known) for number in (base, alone) if number)
    for task, metrics in model_zoo.METRICS.items():
        assert ", ".join(metrics) in text.replace("**", ""), task


def test_every_recipe_is_on_the_page() -> None:
    words = [line.split() for line in lines((DOC / "results/reproduce.md").read_text())]
    calls = [(word, line) for line in words for word in line if re.fullmatch(r"scripts/\w+_(train|eval)\.sh", word)]
    expected = {f"scripts/{name}_{step}.sh" for name in RECIPES for step in ("train", "eval")}
    assert {script for script, _ in calls} == expected
    for script, line in calls:
        name = re.sub(r"_(train|eval)$", "", Path(script).stem)
        overrides = [word for word in line[line.index(script) + 3 :] if "=" in word and not word.startswith("#")]
        config.load(ROOT / f"configs/{name}.yaml", overrides)


FOLDERS = {
    **{name: f"data/{name}" for name in ("avsd", "avqa", "music_avqa")},
    **{"egoexo4d_dp_data": "data/egoexo", "enhanced_video": "data/llava_video", "multiple_side_channels": "data/avsd"},
}


def extracted(root: Path, folder: str) -> None:
    """Empty feature files where the page's `pave extract` lines for a folder would write them."""
    for words in commands("\n".join(lines((DOC / "results/reproduce.md").read_text()))):
        if words[0] != "extract":
            continue
        given = main.parse_arguments(words)
        if not str(given.out).startswith(f"{folder}/"):
            continue
        assert given.videos
        sources = [given.videos]
        if str(given.videos) == "$folder":
            sources = [Path(folder, "video", f.name) for f in sorted((root / "video").iterdir())]
        for source in sources:
            found = extraction.list_items(extraction.side_to_extract(given.side), root / source.relative_to(folder))
            for item in found:
                file = extraction.feature_path(root / given.out.relative_to(folder), item)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()


@pytest.mark.parametrize("name", FOLDERS)
def test_features_lie_where_the_recipe_looks(name: str, tmp_path: Path) -> None:
    """What the page extracts is what the config reads, for every question to learn and to answer."""
    root = official_layouts.make(name, tmp_path / "data")
    for file in root.rglob("*.pt"):
        file.unlink()
    for ego in root.rglob("aria01_214-1.mp4"):
        ego.with_name("cam01.mp4").touch()
    extracted(root, FOLDERS[name])
    run = config.load(ROOT / f"configs/{name}.yaml")
    task = get_task(run.data.task)
    splits = [run.data.train_split, *([run.data.eval_split] if run.data.eval_split in task.splits else [])]
    assert len(splits) == 1 + (name != "enhanced_video")
    for question in [q for split in splits for q in task.load(split, root)]:
        for side in run.sides.values():
            assert feature_file(root / side.features, question).exists(), (question.video, side.features)


def test_features_of_the_benchmarks_lie_where_enhanced_video_looks(tmp_path: Path) -> None:
    features = config.load(ROOT / "configs/enhanced_video.yaml").sides["dense"].features
    star = mvbench.VIDEO_FOLDERS["action_sequence"]
    for name, video, stored in (
        ("videomme", "data/abc.mp4", ""),
        ("mvbench", f"{star}/ZZ12A_0.mp4", f"{star}/ZZ12A_0"),
        ("mlvu", "video/1_plotQA/movie_1.mp4", ""),
    ):
        file = tmp_path / name / video
        file.parent.mkdir(parents=True)
        file.touch()
        extracted(tmp_path / name, f"bench/{name}")
        question = Question("1", video, "", (), features=stored)
        assert feature_file(tmp_path / name / features, question).exists(), name


@cache
def printed() -> list[re.Pattern[str]]:
    """A pattern for each text in the code and scripts that says enough to be known again."""
    found = []
    for file in (ROOT / "pave").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [".+".join(map(re.escape, re.split(r"%%|%[\d.]*[dsfg]", node.value)))]
            else:
                continue
            if len(re.sub(r"\\(.)", r"\1", re.sub(r"\.[*+]", "", "".join(parts)))) >= 20:
                found.append(re.compile("".join(parts)))
    for text in re.findall(r'echo "(setup: [^"]+)"', (ROOT / "scripts/setup.sh").read_text()):
        found.append(re.compile(re.sub(r"\\\$(\\\()?\w+\)?", ".+", re.escape(text))))
    return found


FOREIGN = {
    "pave: [Errno 28] No space left on device": "the operating system's",
    "pave: [Errno 98] Address already in use (while attempting to bind on address ('127.0.0.1', 7861))": "Python's",
    "pave: train: No package metadata was found for The 'deepspeed>=0.9.3' distribution was not found and is required "
    "by this application.": "transformers'",
}
"""Lines that pave hands on as they are."""


def quoted() -> list[str]:
    text = (DOC / "start/troubleshooting.md").read_text()
    return [line for block in blocks(text, "text") for line in block.splitlines()]


def test_quoted_errors_are_what_the_code_says() -> None:
    said = quoted()
    assert len(said) > 30
    for line in said:
        if line not in FOREIGN:
            text = line.removeprefix("pave: ")
            assert any(pattern.fullmatch(text) for pattern in printed()), line
    assert FOREIGN.keys() <= set(said)
    assert not any(pattern.fullmatch("a line that nobody prints, of some length") for pattern in printed())


def test_the_page_about_the_card_names_its_fields() -> None:
    page = (DOC / "guides/publish.md").read_text()
    for todo in (*model_card.TODO.values(), "TODO: name the licence of your own."):
        assert f"`{todo}`" in page, todo
    assert set(re.findall(r"TODO: [^`]*", page)) == {*model_card.TODO.values(), "TODO: name the licence of your own."}
    for heading in re.findall(r"^## (.+)$", model_card.CARD, re.M):
        assert f"| {heading}" in page, heading


def test_the_walks_through_the_code_are_true() -> None:
    """Every file and every name of the three walks exists."""
    text = (DOC / "reference/architecture.md").read_text()
    steps = re.findall(r"^\d\. `([\w/]+\.py)`(.*)$", text, re.M)
    assert len(steps) == 24
    for file, rest in steps:
        source = (ROOT / "pave" / file.replace("NAME", "audio" if file.startswith("sides") else "avqa")).read_text()
        for name in re.findall(r"`([\w.]+)`", rest.split(":")[0]):
            for part in name.split("."):
                assert re.search(rf"\b(def|class) {part}\b", source), (file, name)
