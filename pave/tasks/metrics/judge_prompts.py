"""Prompts for a judge: the structure of Video-ChatGPT's evaluation in words of our own, or its words from its scripts.

The structure: instructions in the system's turn; question, correct answer, predicted answer and the form of the reply,
a Python dictionary, in the user's.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pave.types import UserError

QA = "qa"
"""The kind of judgement that says yes or no, besides a score."""


class JudgePrompt(NamedTuple):
    """Two turns, with placeholders such as {question}."""

    system: str
    user: str


def _build_prompt(task: str, rules: Sequence[str], pair: bool = False, yes_or_no: bool = False) -> JudgePrompt:
    """Put one kind of judgement into the structure that all share."""
    if pair:
        material = "two questions that mean the same, their one correct answer and a predicted answer to each"
        fields = (
            "Question 1: {question1}\nQuestion 2: {question2}\nCorrect Answer: {answer}\n"
            "Predicted Answer to Question 1: {pred1}\nPredicted Answer to Question 2: {pred2}\n\n"
        )
    else:
        material = "a question, its correct answer and a predicted answer"
        fields = "Question: {question}\nCorrect Answer: {answer}\nPredicted Answer: {pred}\n\n"
    system = f"You judge what a model says about videos. You are given {material}. Your task: find {task}.\n------\n"
    system += "##INSTRUCTIONS:" + "".join(f"\n- {rule}" for rule in rules)

    form = "the key 'score' holding a whole number from 0 to 5, where 5 is best"
    example = "{'score': 4}"
    if yes_or_no:
        form = f"the key 'pred' holding the string 'yes' or 'no', and {form}"
        example = "{'pred': 'yes', 'score': 4}"
    user = f"Judge this about a video:\n\n{fields}Reply with a Python dictionary, {form}. "
    return JudgePrompt(system, f"{user}Write nothing but the dictionary, without an explanation, as in {example}")


SYNONYMS = "Synonyms and other ways to say the same are as good."
JUDGE_PROMPTS = {
    QA: _build_prompt(
        "whether the prediction means the same as the correct answer",
        ("Compare what the answers mean, not their form.", SYNONYMS, "Measure the prediction by the correct answer."),
        yes_or_no=True,
    ),
    "correctness": _build_prompt(
        "how far the facts of the prediction are those of the correct answer",
        (
            "Nothing in the prediction may be false or misleading.",
            "What it says must fit what the video shows.",
            SYNONYMS,
            "Measure the facts of the prediction by the correct answer.",
        ),
    ),
    "detail": _build_prompt(
        "how detailed the prediction is: whether it is complete, and whether it is specific",
        (
            "No important point may be missing.",
            "What belongs to this video counts for more than what could be said of any.",
            SYNONYMS,
            "Give one score for both, completeness and specificity.",
        ),
    ),
    "context": _build_prompt(
        "how well the prediction fits what the video is about as a whole",
        (
            "Nothing in the prediction may lie outside of that.",
            "It must have the main theme of the video and its mood.",
            SYNONYMS,
            "Measure the understanding that the prediction shows by the correct answer.",
        ),
    ),
    "temporal": _build_prompt(
        "whether the prediction has the order of events right",
        (
            "Events and details must come in the order in which the video shows them.",
            f"{SYNONYMS} That does not hold where they change the order.",
            "Measure the order in the prediction by the correct answer.",
        ),
    ),
    "consistency": _build_prompt(
        "how consistent the two predictions are",
        (
            "Each must agree with the correct answer and with the other, without contradiction or a large difference.",
            "Both must give the same information about the video.",
            f"{SYNONYMS} That does not hold where they change what is said.",
            "Measure both predictions by the correct answer.",
        ),
        pair=True,
    ),
}
"""By kind: yes or no with a score for question answering, and the five scores of VCGBench."""
SCRIPTS = {
    QA: "eval*_qa.py",
    "correctness": "eval*_1_correctness.py",
    "detail": "eval*_2_detailed_orientation.py",
    "context": "eval*_3_context.py",
    "temporal": "eval*_4_temporal.py",
    "consistency": "eval*_5_consistency.py",
}
"""Scripts of Video-ChatGPT's evaluation, and of its copies, that hold the published prompts."""
PUBLISHED_VERSIONS = {
    QA: "17289ce4f0ddec02",
    "correctness": "8c3645d8f5280ef4",
    "detail": "fabd77756c419aca",
    "context": "38dcfdbdef81f094",
    "temporal": "ce8c8d5255425b6f",
    "consistency": "da8c4aad1168396a",
}
"""Versions of the published prompts, by which they are recognised when they come from the scripts."""


def version(prompt: JudgePrompt) -> str:
    """Hash of a prompt, 16 digits."""
    return hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:16]


def prompt_source(prompts: Mapping[str, JudgePrompt]) -> str:
    """`our own`, `the published` or, for any others, `given`."""
    if all(JUDGE_PROMPTS[kind] == prompt for kind, prompt in prompts.items()):
        return "our own"
    published = all(PUBLISHED_VERSIONS[kind] == version(prompt) for kind, prompt in prompts.items())
    return "the published" if published else "given"


def placeholder_names(prompt: JudgePrompt) -> set[str]:
    """Names of the placeholders of a prompt."""
    return set(re.findall(r"\{(\w+)\}", prompt.system + prompt.user))


def read_scripts(folder: Path, kinds: Iterable[str]) -> dict[str, JudgePrompt]:
    """Read the prompts out of the published scripts, which are not run. Raises UserError for what is not there."""
    prompts = {}
    for kind in kinds:
        files = sorted(folder.glob(SCRIPTS[kind]))
        if len(files) != 1:
            raise UserError(f"{folder}: {len(files)} files are named {SCRIPTS[kind]}, expected one")
        try:
            turns = _find_messages(ast.parse(files[0].read_text(encoding="utf-8")))
        except (ValueError, SyntaxError) as error:
            raise UserError(f"{files[0]}: not a script ({error}); download it again") from error

        expected = placeholder_names(JUDGE_PROMPTS[kind])
        if set(turns) != {"system", "user"} or placeholder_names(JudgePrompt(**turns)) != expected:
            names = ", ".join(sorted(expected))
            raise UserError(f"{files[0]}: expected one message of the system and one of the user, about {names}")
        prompts[kind] = JudgePrompt(**turns)
    return prompts


def _find_messages(tree: ast.AST) -> dict[str, str]:
    """Content of each role, where a script writes down messages; f-strings keep their placeholders."""
    contents = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            members = {_literal_text(key): value for key, value in zip(node.keys, node.values) if key is not None}
            if members.keys() >= {"role", "content"}:
                contents[_literal_text(members["role"])] = _literal_text(members["content"])
    return contents


def _literal_text(node: ast.AST) -> str:
    """A string, or an f-string of plain names; empty for any other code."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_literal_text, node.values))
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        return f"{{{node.value.id}}}"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
