"""Writes doc/reference/settings.md from the dataclasses of pave/config.py: python scripts/write_settings_page.py."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "doc/reference/settings.md"
SECTIONS = {
    "Config": "",
    "BaseConfig": "base.",
    "PatchConfig": "sides.NAME.",
    "LoraConfig": "lora.",
    "DataConfig": "data.",
    "TaskConfig": "data.mixture.NAME.",
}
"""Classes of pave/config.py, and where their settings stand in a config."""
HEAD = """# Settings

Every setting of a config, written by `python scripts/write_settings_page.py` from
[pave/config.py](../../pave/config.py). A config is YAML, as those in [configs/](../../configs/); `key=value` on the
command line goes before it, and it goes before the defaults below. `train` holds the arguments of
`transformers.TrainingArguments` under their own names; the published recipe in `pave/training/recipe.py` is their
default.
"""


def rows(section: ast.ClassDef, prefix: str) -> list[str]:
    """The fields of one dataclass as rows of a table: name, type, default, docstring."""
    table = []
    for field, following in zip(section.body, [*section.body[1:], None]):
        if not isinstance(field, ast.AnnAssign):
            continue
        default = ast.unparse(field.value) if field.value else ""
        if default.startswith("field("):
            default = {"list": "[]", "dict": "{}"}.get(default.split("=")[1].rstrip(")"), "see below")
        text = ast.literal_eval(following.value) if isinstance(following, ast.Expr) else ""
        kind = re.sub(r"Literal\[([^]]*)\]", r"\1", ast.unparse(field.annotation)).replace("|", "or")
        table.append(f"| `{prefix}{ast.unparse(field.target)}` | {kind} | `{default}` | {' '.join(text.split())} |")
    return table


def page() -> str:
    """The whole page."""
    tree = ast.parse((ROOT / "pave/config.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    parts = [HEAD]
    for name, prefix in SECTIONS.items():
        title = f"## `{prefix.rstrip('.')}`" if prefix else "## Top level"
        about = ast.get_docstring(classes[name]) or ""
        table = ["| setting | type | default | what it does |", "|---|---|---|---|", *rows(classes[name], prefix)]
        parts.append("\n".join([title, "", about, "", *table, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
