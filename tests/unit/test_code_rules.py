"""Rules about the code itself: who may import whom, docstrings, no prints, no machine paths, instant help."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

FILES = sorted((ROOT / "pave").rglob("*.py"))
ORDER = (
    {"types"},
    {"utils"},
    {"config", "media"},
    {"models", "sideworld"},
    {"sides", "tasks", "checkpoints"},
    {"data"},
    {"training", "inference"},
    {"evaluation", "analysis"},
    {"cli", "api"},
)
"""Folders and modules of pave; each imports from its own row or from rows above."""
SEPARATE = {"sides", "tasks"}
"""Plugins, which never import each other's folder."""


def row(part: str) -> int:
    """Index of a folder or module in the order."""
    return next(i for i, names in enumerate(ORDER) if part in names)


def part_of(file: Path) -> str:
    """The folder or module of pave that a file belongs to."""
    return file.relative_to(ROOT / "pave").parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> set[str]:
    """Dotted names that a file imports, anywhere in it; `from pave import x` counts as pave.x."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"pave.{alias.name}" for alias in node.names} if node.module == "pave" else {node.module}
    return names


def test_every_folder_is_in_the_order() -> None:
    assert {part_of(file) for file in FILES} - {"__init__", "__main__"} == set().union(*ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_of_the_package(file: Path) -> None:
    text, part = file.read_text(), part_of(file)
    tree = ast.parse(text)
    assert text.startswith('"""'), "the first line says what the file is for"
    assert len(text.splitlines()) <= 300

    names = imports(tree)
    for name in names - {"pave", "pave.__version__"}:
        target = name.removeprefix("pave.").split(".")[0]
        if name.startswith("pave.") and not part.startswith("__"):
            assert row(target) <= row(part), f"imports {name}, which is above it"
            assert target == part or not {target, part} <= SEPARATE, f"imports {name}"

    packages = {name.split(".")[0] for name in names}
    if part in ("types", "config") or file.parent == ROOT / "pave/tasks":
        assert not re.search(r"^(import|from) torch", text, re.M)
    if file.parent == ROOT / "pave/models/patch":
        assert not packages & {"transformers", "peft", "omegaconf"}
    assert "peft" not in packages or file == ROOT / "pave/models/lora.py"

    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function, options = ast.unparse(call.func), {keyword.arg: keyword.value for keyword in call.keywords}
        assert function != "print" or file == ROOT / "pave/cli/main.py"
        if function == "torch.load":
            assert ast.unparse(options["weights_only"]) == "True"
        assert "strict" not in options or ast.unparse(options["strict"]) == "True"


def test_no_machine_paths() -> None:
    patterns = ("pave/**/*.py", "scripts/**/*.*", "configs/**/*.*", "*.md", "doc/**/*.md")
    for file in (file for pattern in patterns for file in ROOT.glob(pattern)):
        if file.is_file() and file.suffix != ".pyc":
            assert not re.search(r"/(home|root|work|tmp|mnt|depot)/\w", file.read_text()), file


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_and_tasks_import_nothing_heavy() -> None:
    code = "import sys; from pave.cli import main\ntry: main.main(['--help'])\nexcept SystemExit: pass\n"
    done = run(f"{code}assert not {{'torch', 'transformers', 'numpy', 'av'}} & {{*sys.modules}}, sys.modules.keys()")
    assert done.returncode == 0, done.stderr
    assert "extract" in done.stdout
    code = "import sys; from pave.tasks.base import get_task; from pave.utils import registry\n"
    code += "for name in registry.names('tasks'): get_task(name)\n"
    done = run(f"{code}assert not {{'torch', 'transformers'}} & {{*sys.modules}}")
    assert done.returncode == 0, done.stderr


def test_model_and_train_import_without_the_optional_packages() -> None:
    code = "import sys; sys.modules['av'] = None; sys.modules['omegaconf'] = None; sys.modules['matplotlib'] = None\n"
    done = run(f"{code}import pave.models.patched_model, pave.training.train, pave.evaluation.evaluate")
    assert done.returncode == 0, done.stderr
