"""Plain text as LaTeX, and about how wide LaTeX prints it."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from greg_cert.report.wording import one_line

# Capitals that look like a Latin letter are that letter, as is omicron.
_LATIN = {0x3BF: "o"} | dict(
    zip(
        (0x391, 0x392, 0x395, 0x396, 0x397, 0x399, 0x39A, 0x39C, 0x39D, 0x39F, 0x3A1, 0x3A4, 0x3A7),
        "ABEZHIKMNOPTX",
        strict=True,
    )
)
_VARIANTS = {"Lamda": "Lambda", "lamda": "lambda", "epsilon": "varepsilon", "phi": "varphi"}


def _greek(code: int) -> str:
    """A Greek letter in TeX, which calls it as Unicode does, but for a few."""
    if code in _LATIN:
        return _LATIN[code]
    name = unicodedata.name(chr(code)).rpartition(" ")[2].capitalize()
    name = name.lower() if chr(code).islower() else name
    return rf"$\{_VARIANTS.get(name, name)}$"


_TEX = {
    **{
        chr(c): _greek(c)
        for c in (*range(0x391, 0x3A2), *range(0x3A3, 0x3AA), *range(0x3B1, 0x3CA))
    },
    "\\": r"\textbackslash{}",
    **{c: "\\" + c for c in "{}$&#%_"},
    "[": "{[}",  # after a line break, a bare bracket would be its argument
    "]": "{]}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2013": "--",
    "\u2212": "$-$",
    "…": r"\dots{}",
    "≤": r"$\le$",
    "∞": r"$\infty$",
    "∇": r"$\nabla$",
    "\u201c": "``",
    "\u201d": "''",
    "\u2019": "'",
    "\u2014": "---",
    "≥": r"$\ge$",
    "\u00d7": r"$\times$",
    "\u2016": r"$\Vert$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "≈": r"$\approx$",
    "\u2032": r"$'$",
}
_UNBROKEN = 20  # characters of a word that fit any line of text
_JOINT = re.compile(r"(?<=[-_/.+=:])(?=.)")
_BREAK = "\1"  # cannot be in a line of printable text
_SYMBOLS = {
    **{f"\u2113{norm}": rf"$\ell_{norm}$" for norm in "12"},
    "\u2113∞": r"$\ell_\infty$",
    "λ_S": r"$\lambda_S$",
    "λ_∇": r"$\lambda_\nabla$",
    "λ_L": r"$\lambda_L$",
    "m_in": r"$m_{\mathrm{in}}$",
    "m_out": r"$m_{\mathrm{out}}$",
}
_SYMBOL = re.compile("(\u2113[12∞]|(?<!\\w)(?:λ_[S∇L]|m_(?:in|out))(?!\\w))")


def escape_tex(text: str, unbroken: int = _UNBROKEN) -> str:
    r"""Text with every character that LaTeX treats specially written so that it prints itself.

    A word of more than `unbroken` characters may break at its joints, and wherever a part of it is
    as long as that.
    """
    words = one_line(text).split(" ")
    text = " ".join(word if len(word) <= unbroken else _breakable(word, unbroken) for word in words)
    parts = _SYMBOL.split(text)
    return "".join(
        _SYMBOLS[part] if k % 2 else "".join(_TEX.get(c, c) for c in part)
        for k, part in enumerate(parts)
    ).replace(_BREAK, r"\hspace{0pt}")


def _breakable(word: str, unbroken: int) -> str:
    parts = _JOINT.split(word)
    return _BREAK.join(p[k : k + unbroken] for p in parts for k in range(0, len(p), unbroken))


# Widths in em of Computer Modern, in which text is wider than in Times.
_EM = {
    **dict.fromkeys("ijl.,:;'|!", 0.28),
    **dict.fromkeys("frst()[]I-/ ", 0.395),
    **dict.fromkeys("ABCDEFGHJKLNOPQRSTUVXYZ", 0.75),
    **dict.fromkeys("mwMW%&@≤≥±\u00d7∞…\u2212", 0.9),
}
_LETTER = 0.53
_OPTICAL = {8: 1.065, 9: 1.03}  # Computer Modern widens as it becomes small


@lru_cache(4096)
def printed_width(text: str, size: float) -> float:
    """About the width of a text in points, at a size in points; rather too large than too small."""
    text = re.sub(r"e[+-]", " \u00d7 10", text)  # powers of ten are written so
    ems = sum(_EM.get(c, _LETTER if c.isascii() and not c.isdigit() else 0.5) for c in text)
    return ems * size * _OPTICAL.get(int(size), 1.0)
