"""Foreign text on its way out: names, messages and tracebacks that others wrote, as text for each target and no more.

Each target has one function here, which everything that prints there uses: `shown` and `one_line` for a terminal,
`markdown` and `markdown_note`, `latex` and `latex_comment`, `csv_cell`, `as_json`, `file_name`. HTML is escaped by the
page's template engine after `shown`, and an argument of a shell by `shlex.quote`.
"""

import ast
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

# What a terminal obeys rather than shows (C0, DEL, C1), what reorders a line (bidirectional controls), what ends one
# elsewhere (U+2028, U+2029), and halves of surrogate pairs, which no encoding can write: Python's stand-ins for bytes
# of file names that are not UTF-8.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHOWN = re.compile(rf"{_OBEYED.pattern}|[\n\t]")
_BREAKS = {"\n": r"\n", "\t": r"\t"}


def shown(text: str) -> str:
    """The text with what a terminal would obey written as escapes (`\\x1b`); line breaks and tabs stay."""
    return _OBEYED.sub(_escape, text) if _OBEYED.search(text) else text


def number_of(count: int, word: str, plural: str = "") -> str:
    """`1 run`, `2 runs`; `plural`: of a word that does not just take an s."""
    return f"{count} {word if count == 1 else plural or word + 's'}"


def one_line(text: str) -> str:
    """As `shown`, with line breaks and tabs as escapes too."""
    if not _SHOWN.search(text):
        return text
    return re.sub("[\n\t]", lambda match: _BREAKS[match[0]], shown(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # of the byte that it stands for
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# What CommonMark and GitHub's tables take for more than text. `_` within a word, `[5/6]` and `<0.001` are plain.
_MARKDOWN = re.compile(
    r"[\\`*~|#$]|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|_(?![^\W_])|(?<![^\W_])_|"
    r"\[(?![-+\d., /%]+\](?![(\[:]))"
)
# At the start of a line: a quotation, a list, a heading's underline or a rule, a numbered list.
_BLOCK = re.compile(r"(?=>|[-+](?:\s|$)|[-=:\s]*[-=:][-=:\s]*$)|\d{1,9}(?=[.)](?:\s|$))")
_ORDINARY = re.compile(r"[A-Za-z][A-Za-z0-9 .,]*|[0-9]+\.[0-9]+( ± [0-9]+\.[0-9]+)?|[0-9]+")  # most cells
_OWN = re.compile(r"`[\w.]+`|\[k/n\](?=: only )")  # in notes of this package


def markdown(text: str) -> str:
    """A name, a title or a cell of a table in Markdown: what is rendered is `one_line(text)`, less spaces around it."""
    if _ORDINARY.fullmatch(text):
        return text.strip()
    return _line_start(_inline(one_line(text).strip()))


def markdown_note(text: str) -> str:
    """A sentence of this package, in which a word between backticks is code; whatever names are in it are text."""
    text = one_line(text).strip()
    places = [0, *(place for match in _OWN.finditer(text) for place in match.span()), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(places)]
    return _line_start("".join(part if i % 2 else _inline(part) for i, part in enumerate(parts)))


def _inline(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", text)


def _line_start(text: str) -> str:
    start = _BLOCK.match(text)
    return f"{start[0]}\\{text[start.end() :]}" if start else text


_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "_{}$&%#"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": "$<$",
        ">": "$>$",
        "†": r"\dag ",
        "⚠": r"$\triangle$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "≈": r"$\approx$",
        "▲": r"$\uparrow$",
        "▼": r"$\downarrow$",
        "Δ": r"$\Delta$",
    }
)


def latex(text: str) -> str:
    """A cell of a table in LaTeX: no sign in it does anything."""
    escaped = one_line(text).translate(_LATEX)
    # At the start of a row these would be an argument of the line break before it.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def latex_comment(text: str) -> str:
    """A line of LaTeX that is read by people only."""
    return f"% {one_line(text)}"


_FORMULA = tuple("=+-@＝＋－＠")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?")


def csv_cell(value: Any) -> Any:
    """A field of a CSV. Spreadsheets compute what begins like a formula, so such a text gets an apostrophe in front;
    numbers, as text too, stay as they are.
    """
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def typed(text: str) -> Any:
    """A setting's text as the value that JSON shall have: a number, true, false, null or a list; else as it is."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, (bool, int, float, list)) or value is None else text


def as_json(document: Any, **options: Any) -> str:
    """Strict JSON (RFC 8259): numbers that are none become null, and what a terminal would obey or no encoding can
    write is an escape, which reads back as what it was.
    """
    options |= {"ensure_ascii": False, "allow_nan": False}
    try:
        text = json.dumps(document, **options)
    except ValueError:
        text = json.dumps(_finite(document), **options)
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_name(text: str) -> str:
    """A name for a file that stays in its folder: as it is where it is ordinary, else with a hash that tells it from
    others.
    """
    name = re.sub(r"[^\w.@ -]", "_", one_line(text))
    if name == text and len(name.encode()) <= 100 and not name.startswith((".", "-")):
        return name
    return f"{name.lstrip('.-')[:40]}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"
