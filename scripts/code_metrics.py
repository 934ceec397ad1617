"""Counts what makes code readable: python scripts/code_metrics.py [pave]. The table is in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PARTICIPLES = frozenset(
    [
        "found",
        "told",
        "said",
        "given",
        "wanted",
        "known",
        "mine",
        "strange",
        "seen",
        "made",
        "asked",
        "left",
        "own",
        "lost",
        "spoilt",
        "good",
        "odd",
        "kept",
        "alike",
        "apart",
        "together",
        "beside",
        "again",
        "more",
        "most",
        "others",
        "whole",
        "rest",
        "inside",
        "many",
        "few",
        "alone",
        "how",
        "who",
        "what",
        "where",
        "whose",
    ]
)
"""Names that say nothing of the thing they hold."""
OWN_OBJECTS = ("hasattr", "getattr")
LONG_FUNCTION = 15
"""Lines from which a function is expected to have a blank line or a comment between its steps."""


class Function(NamedTuple):
    """One function or method."""

    place: str
    lines: int
    has_break: bool
    """Whether a blank line or a comment stands between its statements."""


class File(NamedTuple):
    """What is counted in one file."""

    path: Path
    lines: int
    blank: int
    comments: int
    functions: list[Function]
    counts: Counter[str]
    """Any, ModuleType, hasattr and getattr, and names that are bare participles."""


def measure(path: Path) -> File:
    """Read and count one file."""
    text = path.read_text()
    tree = ast.parse(text)
    lines = text.splitlines()

    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    functions = [
        _function(node, path, lines, comments)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    blank = sum(not line.strip() for line in lines)
    return File(path, len(lines), blank, len(comments), functions, Counter(_counted(tree)))


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, path: Path, lines: list[str], comments: set[int]
) -> Function:
    # The docstring is no step of the function.
    body = node.body[1:] if ast.get_docstring(node) else node.body
    first, last = (body[0].lineno if body else node.lineno), node.end_lineno or node.lineno
    has_break = any(number in comments or not lines[number - 1].strip() for number in range(first, last + 1))
    return Function(f"{path}:{node.lineno} {node.name}", last - node.lineno + 1, has_break)


def _counted(tree: ast.AST) -> Iterator[str]:
    """What of interest stands in a file, once for each time."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id="Any") | ast.Name(id="ModuleType"):
                yield node.id
            case ast.Call(func=ast.Name(id=name)) if name in OWN_OBJECTS:
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) if name in PARTICIPLES:
                yield "participle"


def table(files: list[File]) -> str:
    """The figures of all files, as lines of a Markdown table."""
    functions = [function for file in files for function in file.functions]
    long = [function for function in functions if function.lines >= LONG_FUNCTION]
    total = sum(file.lines for file in files)
    counts = sum((file.counts for file in files), Counter())

    def per_thousand(number: int) -> str:
        return f"{1000 * number / total:.1f}"

    longest_file = max(files, key=lambda file: file.lines)
    longest_function = max(functions, key=lambda function: function.lines)
    without_break = sum(not function.has_break for function in long)
    rows = {
        "lines": f"{total:,}",
        "files": f"{len(files)}",
        "longest file": f"{longest_file.lines} ({longest_file.path})",
        "longest function": f"{longest_function.lines} ({longest_function.place})",
        "`Any` and `ModuleType` per 1,000 lines": per_thousand(counts["Any"] + counts["ModuleType"]),
        "`hasattr` and `getattr`": f"{counts['hasattr'] + counts['getattr']}",
        "bare participles and pronouns per 1,000 lines": per_thousand(counts["participle"]),
        "comment lines": f"{100 * sum(file.comments for file in files) / total:.1f} %",
        "blank lines": f"{100 * sum(file.blank for file in files) / total:.1f} %",
        f"functions of {LONG_FUNCTION} lines or more without blank line or comment": (
            f"{100 * without_break / max(1, len(long)):.0f} % of {len(long)}"
        ),
    }
    folders = Counter(str(file.path.parent) for file in files if file.path.name != "__init__.py")
    modules = [f"| modules in `{folder}` | {count} |" for folder, count in sorted(folders.items())]
    return "\n".join(
        ["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), *modules]
    )


def main() -> None:
    """Print the table of a folder."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "pave")
    sys.stdout.write(table([measure(path) for path in sorted(root.rglob("*.py"))]) + "\n")


if __name__ == "__main__":
    main()
