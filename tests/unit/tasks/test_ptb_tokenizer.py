"""The Python tokenizer equals the Java one: on stored answers everywhere, on 5,000 captions where Java is."""

from __future__ import annotations

import random
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.paths import GOLDEN, read_json

from pave.tasks.metrics.ptb_tokenizer import tokenize

PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."}
SUBJECTS = """a man|the woman|two dogs|He|She|They|the boy's sister|my neighbours' cat|Mr. Smith|Dr. Jones|people|I|we
no one|John's dad|the U.S. team|Mrs. O'Brien|a 5-year-old girl|3 kids|12 men|the T.V. crew|Prof. Lee|St. Nick"""
VERBS = """is walking|doesn't see|can't find|wouldn't've taken|holds|'s holding|cannot open|gonna eat|wanna play with
gotta leave|picks-up|sneezes & closes|lemme see|isn't in|ain't near|should've moved|they'll take|we're at|I'm by
you'd like|d'ye know|gimme|'tis|'twas|more'n|whaddya see"""
THINGS = """the red cup|a t-shirt|left/right doors|2-3 boxes|the "hello world" sign|a (white) box|a TV|50% of it|$5.50
1,000 books|4.5-inch screen|the 2nd chair|#1 fan|a b&w photo|rock'n'roll|an 8:30am train|the no. 5 bus|a {cup}|a [cup]
a state-of-the-art camera|salt & pepper|his/her bag|an e-mail|a café table|naïve art|3/4 cup|1 1/2 cups|€20|£30
24/7 shop|5'11" man|X-ray|an A+ grade|C++ code|the 1990s|the '90s|90°|a 10x10 grid|5kg|20km/h|9 a.m.|at 10 p.m.
U.K. flag|the USA|e.g. a bag|i.e. this|etc.|vs. him
Ph.D. student|Inc. sign|approx. 5|No. 7|www.example.com|http://example.com/a?b=c
me@example.com|@user|#tag|<b>bold</b>|&amp;|a_b_c|file.txt|:)|;-)|:-(|<3|...wait|*smiles*|~5|^up|a|b|x = y|2 + 2|.5|-5
1,5|10,000.50|555-1234|(555) 123-4567|2020-01-02|01/02/2020|12:30:45|Jan. 5|Dec. 25th
½ cup|¼|™|😀 face|the dog…|yes—no|a–b|“quoted”|‘single’|it’s|don’t|«word»|„low“|日本|привет мир|Ünïcode"""
ENDS = """.|?|!|...|?!|!!|..| .| , maybe .| ?| ; yes|;|,|:| -- done| - done|…|—|–| etc.| a.m.| U.S.| Inc.|'|"|''| ''| )
]| e.g.| no| No."""
JOINS = " | | | , |, | and |; | - | -- |... | / |/|: | ' | `` | (|  |\t| then |. |. then |. Then |? |! | & "
WORDS = """brown|chair|table|door|TV|man|walks|sits|O'Neil|o'clock|ma'am|y'all|jack-in-the-box|mother-in-law|d'oh|l'eau
ne'er|o'er|'em|'cause|'til|'n'|n'|rock-'n'-roll|yes|no|two|dark"""
SIGNS = "abcdefgXYZ0123456789 .,;:!?'\"`-–—…()[]{}<>/\\&%$#@*+=_~^|éü€£½“”‘’  aeiost"


def options(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


def captions(count: int, seed: int) -> list[str]:
    """Made-up captions: sentences, lists of words and things, and signs in any order."""
    rng = random.Random(seed)
    subjects, verbs, things, ends, joins, words = map(options, (SUBJECTS, VERBS, THINGS, ENDS, JOINS, WORDS))

    def caption() -> str:
        kind, end = rng.random(), rng.choice([*ends, "", "", ""])
        if kind < 0.5:
            return f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(things)}{end}"
        if kind < 0.7:
            lists = rng.choice(things) + rng.choice(joins) + rng.choice(things)
            return f"{rng.choice(subjects)} {rng.choice(verbs)} {lists}{end}"
        if kind < 0.85:
            return rng.choice([" ", rng.choice(joins)]).join(rng.choices(words, k=rng.randint(1, 8))) + end
        if kind < 0.93:
            return rng.choice(joins).join(rng.choices(things, k=rng.randint(1, 3)))
        return "".join(rng.choices(SIGNS, k=rng.randint(1, 14)))

    shapes = [str, str, str, str, str, str, str.capitalize, str.upper]
    return [rng.choice(shapes)(caption()) for _ in range(count)]


def test_equals_stored_answers_of_the_java_tokenizer() -> None:
    rows = read_json(GOLDEN / "scoring/ptb.json")
    assert len(rows) > 190
    for text, words in rows:
        assert " ".join(tokenize(text)) == words, text


@pytest.mark.skipif(not (shutil.which("java") and find_spec("pycocoevalcap")), reason="needs java and pycocoevalcap")
def test_equals_the_java_tokenizer_on_5000_captions(tmp_path: Path) -> None:
    (package,) = find_spec("pycocoevalcap").submodule_search_locations
    jar = f"{package}/tokenizer/stanford-corenlp-3.4.1.jar"
    texts = captions(5000, seed=1)
    # A line between two captions: the program looks over the end of a line, to tell what a last full stop is.
    file = tmp_path / "captions.txt"
    file.write_text("\nx\n".join(texts) + "\nx\n", encoding="utf-8")
    program = ["java", "-Dfile.encoding=UTF-8", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer"]
    result = subprocess.run([*program, "-preserveLines", "-lowerCase", file], capture_output=True, check=True)
    lines = result.stdout.decode().split("\n")[:-1:2]
    assert len(lines) == len(texts) == 5000
    cut = [[word for word in line.rstrip().split(" ") if word and word not in PUNCTUATION] for line in lines]
    assert [(text, tokenize(text)) for text in texts] == list(zip(texts, cut))


def test_line_breaks_are_spaces_and_anything_unicode_is_cut() -> None:
    for mark in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        assert tokenize(f"two{mark}dogs") == ["two", "dogs"]
    for code in range(0x110000):
        if code % 97 == 0:
            words = tokenize(f"a {chr(code)} b{chr(code)}c")
            assert words[0] == "a"
            assert not any(set(word) & set("\n\r\x85\u2028\u2029 ") for word in words)
    assert tokenize("") == tokenize(" \n ") == tokenize("...?") == tokenize("\x00\ud800") == []
    assert tokenize("1 1/2 cups") == ["1\u00a01/2", "cups"]


def test_long_repetitions_are_tokenized() -> None:
    """A model that repeats itself until it is cut off must not stall the scores."""
    for part in ("<a ", "<a b=", "<a   ", "a.", "a-", "a.b-", "1.", "1-2 ", "1 ", "'", "n't", "@", "a@", "www.", "("):
        assert tokenize(part * 1000) or part == "'"
    for part in ("a/", "_a", "!", "é", "$"):
        assert tokenize(part * 1000)
