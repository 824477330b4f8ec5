"""Makes docstrings of what is read in a terminal into what is read on a page.

Griffe knows "Examples:" for our "Example:". Formulas, which a terminal shows as plain text, are
typeset: indented blocks in which every line has an operator, and ``.. math::`` with TeX.
"""

import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

BLOCK = re.compile(r"(?<=[^:]\n\n)((?:    \S.*\n)+)(?=\n)|(?<=::\n\n)((?:    \S.*\n)+)(?=\n)")
TEX = re.compile(r"^\.\. math:: (.+)$", re.MULTILINE)
OPERATOR = re.compile(r" = |\b(?:exp|log|cos)\b| \* ")
SYMBOLS = {"sum": r"\sum", "mean": r"\mathrm{mean}", "sigma": r"\sigma"}
TOKEN = re.compile(
    r"(?P<sub>[A-Za-z]+_[A-Za-z]'?(?![A-Za-z_]))"  # s_p, sum_p'
    r"|(?P<name>\b(?:exp|log|cos|pi)\b)"
    r"|(?P<words>[A-Za-z][\w@-]*[A-Za-z](?: [A-Za-z][\w'-]*[A-Za-z](?![\w(]))*)"
    r"|(?P<gap> {3,})|(?P<times>\*)"
)


class Docstrings(Extension):
    """Rewrites the docstring before its sections are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            value = TEX.sub(lambda found: formula([found[1]]), value)
            value = BLOCK.sub(typeset, value)
            obj.docstring.value = re.sub(r"(?m)::$", ":", value)  # what precedes a block


def typeset(block: re.Match[str]) -> str:
    lines = [line.strip() for line in block[0].splitlines()]
    if ">>>" in block[0] or not all(map(OPERATOR.search, lines)):
        return block[0]
    return formula([TOKEN.sub(tex, line) for line in lines]) + "\n"


def formula(lines: list[str]) -> str:
    return "\n".join(
        f'<div class="formula">{convert(line, display="block")}</div>' for line in lines
    )


def tex(token: re.Match[str]) -> str:
    match token.lastgroup:
        case "sub":
            base, _, index = token[0].partition("_")
            return f"{SYMBOLS.get(base, base)}_{{{index}}} "
        case "name":
            return rf"\{token[0]} "
        case "gap":
            return r" \qquad "
        case "times":
            return r" \cdot "
        case _:
            before, after = token.string[: token.start()], token.string[token.end() :]
            left = r"\ " if re.search(r"\w $", before) else ""
            right = r"\ " if re.match(r" \w", after) else ""
            return rf"{left}\text{{{token[0]}}}{right}"
