"""Words of a caption as the Penn Treebank tokenizer of Stanford CoreNLP 3.4.1 cuts them, which needs Java.

At each place the rule that reaches furthest wins, of equal ones the first. A rule is a pattern; if it has a group, only
that is the token, and what must follow it counts for how far it reaches. Learnt by asking the program.
"""

from __future__ import annotations

import re

DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
"""Punctuation that pycocoevalcap takes out. Brackets stay: it knows their names in capitals alone."""
MARKS = (
    "\u00ad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06ed\u0711\u0730-\u074c\u07a6-\u07b0\u0900-\u0903\u093c\u093e-\u094e"
    "\u0951-\u0955\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a03\u0a3c-\u0a4f\u0a81-\u0a83\u0abc-\u0acf\u0b82"
    "\u0bbe-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)
"""Stand in words, beside letters."""
SIGNS = (
    "\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bf\u00d7\u00f7\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6"
    "\u05f3\u05f4\u0606-\u060c\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u0964\u0965\u0e3f\u0e4f\u2016\u2017"
    "\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100\u2101"
    "\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144"
    "\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
"""Are tokens by themselves; characters that no rule knows vanish."""
NUMERALS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f\u2150-\u218f\u2460-\u24ff\u2776-\u2793"
LETTER = rf"(?:(?![{NUMERALS}])[^\W\d_]|[{MARKS}])"
ALNUM = rf"(?:\d|{LETTER})"
APOS = "['\u0092\u2019]"
QUOTE = "['`\u0091\u0092\u2018\u2019\u201b]"
WORD = rf"{LETTER}{ALNUM}*(?:[.!?]{LETTER}{ALNUM}*)*"
NUMBER = r"(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+)"
PART = rf"(?:[dDoOlL]{QUOTE}{ALNUM})?{ALNUM}+"
LINK = r"[-_\u058a\u2010\u2011]"
HALF = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
HOST = '[^ \t\n\f\r"<>|.!?(){},]+'
TITLES = (
    "adj|adm|adv|alex|asst|attys?|ave|brig|capt|cf|cie|cmdr|col|comdr|cpl|det|drs?|elec|ens|ft|gen|govs?|hon|insp|invt|"
    "jos|lieut|lt|maj|messrs|mfg|mlle|mme|mrs?|ms|msgr|mt|mtg|natl|pfc|ph|pres|profs?|pvt|reps?|rev|sens?|sfc|sgt|spc|"
    "ste?|supts?|treas|vs|wm"
)
SHORT = (
    "al|ala|apr|ariz|assn|assoc|aug|bancorp|bhd|bldg|blvd|bros|calif|co|colo|conn|corp|cos|ct|dak|dec|dept|esq|est|etc|"
    "ext|feb|fla|fri|ga|inc|ind|intl|jan|jr|jul|jun|kan|kans|ky|ltd|mar|md|mich|minn|mo|mon|mont|neb|nev|nov|oct|okla|"
    "penn|ph[.]d|plc|pp?tes?|pp?tys?|rd|rt|sept?|seq|sq|sr|sys|tel|tenn|thu|thurs|tues?|univ|va|vt|wed|wisc?|wyo"
)
STATES = "(?=(?-i:[A-Z]))(?:ark|az|del|ill|la|mass|miss|ore|pa|tex|wash)"
NUMBERED = "(?:art|ca|figs?|nos?|op|pp|prop)"
STARTS = (
    "The|A|An|But|He|She|It|They|We|You|In|At|As|If|This|That|These|There|Then|Now|When|While|What|So|After|Some|Many|"
    "Other|Her|Our|Their|Yet|Once|One|Last|However|Since|According|More|Such|Here|Earlier"
)
"""Words that say that the letter before them ended a sentence."""
FILES = (
    "bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|"
    "tar|txt|wav|x|xml|zip"
)
RULES = tuple(
    re.compile(rule)
    for rule in (
        r"(?i:(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na)",
        "(?i:('t)is|('t)was)",
        r"</?[A-Za-z][A-Za-z0-9:.-]*(?:\s+[A-Za-z][A-Za-z0-9:.-]*(?:\s*=\s*(?:'[^'\n]*'|\"[^\"\n]*\"|\w+))?)*\s*/?>",
        r"<[!?][A-Za-z-][^>\n]*>",
        r"&(?i:amp|lt|gt|quot|nbsp|apos|mdash|md|ndash);|&#\d+;",
        rf"([A-Za-z]*?[A-MO-Za-mo-z])[nN]{QUOTE}[tT]",
        rf"({WORD}){APOS}(?i:[msd]|re|ve|ll)",
        WORD,
        rf"(?i:{APOS}n{APOS}?|somethin{APOS}|dunkin{APOS}|ol{APOS}|{APOS}em|c{APOS}mon|{APOS}till?|{APOS}cause|nor{APOS}easter|s{APOS}mores|ev{APOS}ry)",
        rf"(?i:li{APOS}l|nat{APOS}l|o{APOS}o)|{APOS}[2-9]0[sS]|[lLdDjJ]{APOS}",
        rf"{LETTER}{LETTER}+(?<=[aeiouyAEIOUY]){QUOTE}[aeiouA-Z]{LETTER}*|[A-HJ-XZn]{QUOTE}{LETTER}{LETTER}+|[eE]{APOS}[eE][rR]",
        rf"([yY]{APOS}){LETTER}",
        r"(?i:https?)://[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"<>|.!?(){},-]",
        rf"(?:www\.(?:{HOST}\.)+[a-zA-Z]{{2,4}}|(?:[^ \t\n\f\r\"`'<>|.!?(){{}},-_$]+\.)+(?:com|net|org|edu))"
        r"(?:/(?:[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},-]|[^\0-\uffff]))?",
        '<?[a-zA-Z0-9][^ \t\n\f\r"<>|(){}\u00a0]*@(?:[^ \t\n\f\r"<>|(){}.\u00a0]+\\.)*[^ \t\n\f\r"<>|(){}.\u00a0]+>?',
        rf"@[A-Za-z_][A-Za-z_0-9]*|#{LETTER}+",
        rf"({APOS}(?i:[msd]|re|ve|ll))[^A-Za-z]",
        r"\u2019(?i:[msd]|re|ve|ll)",
        rf"([nN]{QUOTE}[tT])[^A-Za-z]",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        rf"[-+]?{NUMBER}",
        r"(?:\d{1,4}[- \u00a0])?\d{1,4}\\?/\d{1,4}",
        "[\u00bc-\u00be\u2153\u2154]",
        r"[cC]\+\+|[cCfF]#",
        rf"{LETTER}{ALNUM}*(?:[.]{LETTER}{ALNUM}*)*(?:{LINK}{PART})+",
        rf"{PART}(?:{LINK}{PART})*(?:{LINK}(?:[A-Za-z]\.)+)?",
        rf"\d+(?:[.,]\d+)*{ALNUM}*(?:-{PART})+|[-+]\d+(?:[.,]\d+)*(?:-{LETTER}{ALNUM}*)+",
        r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+",
        rf"{HALF}(?:\\?/{HALF}){{1,2}}",
        rf"({APOS}\d\d)\s",
        r"[A-Z]*\$|#+",
        r"\(\d{2,3}\)[ \u00a0]?\d{3,4}[- \u00a0]?\d{3,5}",
        r"(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0]\d{3,4}[- \u00a0]?\d{3,5}",
        rf"((?i:{SHORT}|{STATES})\.)[\s\S]{{2}}",
        rf"(?i:{SHORT}|{STATES}|{TITLES})\.",
        rf"(?:[A-Za-z0-9]+\.)+(?:-{PART})+",
        r"([A-Za-z0-9]+\.)[,;:]",
        rf"([A-Za-z])\. +(?:{STARTS}|{STARTS.upper()})\s",
        r"(?:[A-Za-z]\.)+",
        rf"((?i:{NUMBERED})\.)\s?\d",
        rf"((?:[A-Za-z0-9]+\.)+(?i:{FILES}))[\s.?!,]",
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]",
        r"[\^x=~<>'-]_[\^x=~<>'-]|\([\^x=~<>'-][_.]?[\^x=~<>'-]\)",
        r"\.{3,5}|(?:\. ){2}\.|\u2026",
        r"[?!]+|\\?\*+|@+|_+|-{5,}|-{2,4}|<<|>>",
        "[`\u0091-\u0094\u2018\u2019\u201b-\u201d\u00ab\u00bb\u2039\u203a]{1,2}|''|``",
        r"(')[A-Za-z][^ \t\n\f\r\u00a0]",
        rf"[!-/:-@\[-`{{-~{SIGNS}\u0080\u00a2-\u00a4\u0096\u0097\u2013-\u2015\u20a0\u20ac]",
    )
)
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "", "&md;": "--"}
ENTITIES |= {"&mdash;": "--", "&ndash;": "--"}
FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
MONEY = dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$") | {"\u00a2": "cents", "\u00a3": "#"}
DASHES = dict.fromkeys(("--", "---", "----", *"\u0096\u0097\u2013\u2014\u2015"), "--")
DOTS = dict.fromkeys(("\u2026", ". . .", "....", "....."), "...")
BRACKETS = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''"}
REPLACEMENTS = ENTITIES | FRACTIONS | MONEY | DASHES | DOTS | BRACKETS
"""Written in place of a whole token."""
WORD_CHARACTERS = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0", "\u00ad": None})
WORDLESS_CHARACTERS = WORD_CHARACTERS | str.maketrans(
    dict.fromkeys("\u2018\u201b\u2039\u0091", "`")
    | dict.fromkeys("\u2019\u203a\u0092", "'")
    | dict.fromkeys("\u201c\u00ab\u0093", "``")
    | dict.fromkeys("\u201d\u00bb\u0094", "''")
)
"""Replaced inside a token without letters and digits, and in contractions."""
CONTRACTION = re.compile(rf"n{QUOTE}t|{APOS}(?:[msd]|re|ve|ll)")
PLAIN_WORD = re.compile(r"[a-z]{2,}(?=[ \n])")
SPLIT_WORDS = {"cannot", "gonna", "gotta", "lemme", "gimme", "wanna"}


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation. Line breaks of any kind are spaces; a space in a word is a hard one."""
    text = " ".join(text.splitlines()) + "\n\n"
    tokens = []
    position = 0
    while position < len(text):
        token = _token_at(text, position)
        if token:
            tokens.append(_write_token(token.lower()))
        position += max(len(token), 1)
    return [token for token in tokens if token and token not in DROPPED]


def _write_token(token: str) -> str:
    """The token with the program's names of brackets, quotes, money and so on."""
    if CONTRACTION.fullmatch(token):
        return token.translate(WORDLESS_CHARACTERS)
    is_word = any(map(str.isalnum, token))
    return REPLACEMENTS.get(token, token.translate(WORD_CHARACTERS if is_word else WORDLESS_CHARACTERS))


def _token_at(text: str, position: int) -> str:
    """The token that begins at a position, or "" where none does."""
    if text[position].isspace():
        return ""
    # Most words need none of the rules.
    plain = PLAIN_WORD.match(text, position)
    if plain and plain[0] not in SPLIT_WORDS:
        return plain[0]

    furthest, token = position, ""
    for rule in RULES:
        match = rule.match(text, position)
        if match and match.end() > furthest:
            furthest = match.end()
            token = match[match.lastindex or 0]
    return token
