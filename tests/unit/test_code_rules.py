"""Rules about the code itself: who may import whom, no prints, no machine paths, instant help."""

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
    """Where in the order a folder or module stands."""
    return next(i for i, names in enumerate(ORDER) if part in names)


def part_of(file: Path) -> str:
    """The folder or module of pave that a file belongs to."""
    return file.relative_to(ROOT / "pave").parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Dotted names a file imports, anywhere in it; `from pave import x` counts as pave.x."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "pave"
            found |= {f"pave.{a.name}" for a in node.names} if inside else {node.module}
    return found


@pytest.mark.parametrize(
    "file", [f for f in FILES if not part_of(f).startswith("__")], ids=lambda f: str(f.relative_to(ROOT))
)
def test_imports_go_down(file: Path) -> None:
    part = part_of(file)
    for name in imports(file):
        pieces = name.split(".")
        if pieces[0] != "pave" or len(pieces) == 1 or pieces[1] == "__version__":
            continue
        other = pieces[1]
        assert row(other) <= row(part), f"{file.name} imports {name}"
        if part in SEPARATE and other in SEPARATE:
            assert other == part, f"{file.name} imports {name}"


def test_every_folder_is_in_the_order() -> None:
    parts = {part_of(f) for f in FILES} - {"__init__", "__main__"}
    assert parts == set().union(*ORDER)


def test_tasks_never_import_torch_and_patches_never_transformers() -> None:
    for file in FILES:
        roots = {name.split(".")[0] for name in imports(file)}
        if part_of(file) in ("tasks", "types", "utils/registry", "config"):
            at_run_time = {line for line in file.read_text().splitlines() if re.match(r"^(import|from) torch", line)}
            assert not at_run_time, file
        if "models/patch" in file.as_posix():
            assert not roots & {"transformers", "peft", "omegaconf"}, file
        assert "peft" not in roots or file.name == "lora.py", file


def test_no_prints_no_unsafe_loading_no_machine_paths() -> None:
    for file in FILES:
        tree = ast.parse(file.read_text())
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        names = {c.func.id for c in calls if isinstance(c.func, ast.Name)}
        assert "print" not in names or file == ROOT / "pave/cli/main.py", file
        for call in calls:
            options = {k.arg: k.value for k in call.keywords}
            if isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "torch.load":
                assert ast.unparse(options["weights_only"]) == "True", file
            if "strict" in options:
                assert ast.unparse(options["strict"]) == "True", file
    tracked = [*FILES, *ROOT.glob("scripts/*"), *ROOT.glob("configs/*"), *ROOT.glob("*.md"), *ROOT.glob("doc/**/*.md")]
    for file in tracked:
        if file.is_file():
            assert not re.search(r"/(home|root|work|tmp|mnt|depot)/\w", file.read_text()), file


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from pave.cli import main\ntry: main.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'numpy', 'av'} & set(sys.modules), sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "extract" in done.stdout


def test_model_and_train_import_without_the_optional_packages() -> None:
    code = "import sys; sys.modules['av'] = None; sys.modules['omegaconf'] = None; sys.modules['matplotlib'] = None\n"
    code += "import pave.model, pave.train, pave.evaluate"
    subprocess.run([sys.executable, "-c", code], check=True)
