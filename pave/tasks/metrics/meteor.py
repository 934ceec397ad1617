"""METEOR 1.5, by the Java program that pycocoevalcap brings along."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pave.types import UserError


def meteor(items: Sequence[tuple[Sequence[Sequence[str]], Sequence[str]]]) -> float:
    """METEOR of a corpus of (references, prediction), as tokens. Raises UserError without Java or pycocoevalcap."""
    package = find_spec("pycocoevalcap")
    if not shutil.which("java") or package is None or not package.submodule_search_locations:
        raise UserError("it needs java and pycocoevalcap; install Java and pip install -e '.[captions]'")
    jar = Path(package.submodule_search_locations[0]) / "meteor/meteor-1.5.jar"
    # The program writes and reads numbers with the comma of the locale.
    command = ["java", "-Duser.language=en", "-Duser.country=US", "-Xmx2G", "-jar", str(jar)]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]

    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
    ) as program:
        try:
            statistics = [
                _request(program, "SCORE", *map(" ".join, references), " ".join(prediction))
                for references, prediction in items
            ]
            # It answers with the score of each item, then with that of the corpus.
            answers = [_request(program, "EVAL", *statistics), *(_read_line(program) for _ in items)]
            return float(answers[-1])
        except (BrokenPipeError, ValueError) as error:
            raise UserError(f"{jar}: ended without a score ({error!r}); run it by hand to see why") from error


def _request(program: subprocess.Popen[str], *words: str) -> str:
    assert program.stdin
    program.stdin.write(" ||| ".join(words) + "\n")
    program.stdin.flush()
    return _read_line(program)


def _read_line(program: subprocess.Popen[str]) -> str:
    assert program.stdout
    return program.stdout.readline().strip()
