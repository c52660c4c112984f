"""RFC 822 tokens: text to tokens, tokens to folded text or to a bare address (spec/qmail.md §19.7).

A token is a pair of its kind and its text. The kinds of one octet are themselves: ``. , @ < > : ;``. The others are
ATOM, QUOTED, LITERAL and COMMENT, whose text is what stands for itself: without delimiters and backslashes.

The invariant: any octets become tokens or raise :class:`SyntaxTrouble`; nothing else happens.
"""

from __future__ import annotations

from qtwist.mail.domains import is_utf8
from qtwist.mail.quoting import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Token = tuple[str, bytes]
    Tokens = list[Token]

DOT = "."
COMMA = ","
AT = "@"
LEFT = "<"
RIGHT = ">"
COLON = ":"
SEMICOLON = ";"
ATOM = "atom"
QUOTED = '"'
LITERAL = "["
COMMENT = "("

#: A line is folded when it would become longer than this.
WIDTH = 78

_BLANKS = b" \t\r\n"
_SPECIALS = b".,@<>:;"
_ESCAPED = b'"[]()\\\r\n'
_BRACKETS = {QUOTED: (b'"', b'"'), LITERAL: (b"[", b"]"), COMMENT: (b"(", b")")}
_WORDS = frozenset((ATOM, QUOTED, LITERAL, COMMENT))

# The octets at which something happens are 1, all others are 0: bytes.find then skips the others fast.
_END_OF_ATOM = bytes(octet in b' \t\r\n(["<>;:@,.\\' for octet in range(256))
_MARK = b"\1"
# An atom made of these alone is printed as it is; another one goes into quotes.
_HIGH = bytes(range(128, 256))
_ATOMIC = bytes(octet for octet in range(32, 127) if octet not in b")]\\")


class SyntaxTrouble(Exception):
    """Text that is no sequence of tokens, or tokens that are no list of addresses."""


def parse(text: bytes) -> Tokens:
    """The tokens of `text`. SyntaxTrouble for what is not closed, and for a ``)`` or ``]`` where a token begins."""
    tokens: Tokens = []
    marked = text.translate(_END_OF_ATOM)
    at = 0
    while at < len(text):
        octet = text[at]
        if octet in _BLANKS:
            at += 1
        elif octet in _SPECIALS:
            tokens.append((chr(octet), b""))
            at += 1
        elif octet == 34:
            at = _delimited(tokens, QUOTED, text, at + 1)
        elif octet == 40:
            at = _delimited(tokens, COMMENT, text, at + 1)
        elif octet == 91:
            at = _delimited(tokens, LITERAL, text, at + 1)
        elif octet in b")]":
            raise SyntaxTrouble(f"a stray {chr(octet)}")
        else:
            at = _atom(tokens, text, marked, at)
    return tokens


def _delimited(tokens: Tokens, kind: str, text: bytes, at: int) -> int:
    """Take what begins before `at` up to its end; returns the place behind that. Parentheses nest, and are dropped."""
    closing = _BRACKETS[kind][1]
    parts = []
    depth = 1
    end = backslash = deeper = -1
    while True:
        # A place that was found before is looked for again only when we have come past it.
        if end < at:
            end = text.find(closing, at)
            if end < 0:
                raise SyntaxTrouble(f"no {closing.decode()} at the end")
        if backslash < at:
            backslash = _find(text, b"\\", at)
        if kind == COMMENT and deeper < at:
            deeper = _find(text, b"(", at)
        if at <= backslash < end and not at <= deeper < backslash:
            parts.append(text[at:backslash])
            parts.append(text[backslash + 1 : backslash + 2])
            at = backslash + 2
        elif at <= deeper < end:
            parts.append(text[at:deeper])
            at = deeper + 1
            depth += 1
        else:
            parts.append(text[at:end])
            at = end + 1
            depth -= 1
            if not depth:
                tokens.append((kind, b"".join(parts)))
                return at


def _find(text: bytes, octet: bytes, at: int) -> int:
    """As bytes.find, but behind the end of `text` when there is none."""
    found = text.find(octet, at)
    return len(text) if found < 0 else found


def _atom(tokens: Tokens, text: bytes, marked: bytes, at: int) -> int:
    """Take the atom at `at`; returns the place behind it."""
    parts = []
    while at < len(text):
        if text[at] == 92:
            at += 1
            parts.append(text[at : at + 1])
            at += 1
            start = at
        else:
            start = at
        end = marked.find(_MARK, start)
        at = len(text) if end < 0 else end
        parts.append(text[start:at])
        if at < len(text) and text[at] != 92:
            break
    atom = b"".join(parts)
    tokens.append((ATOM if _is_atom(atom) else QUOTED, atom))
    return at


def unquote(tokens: Iterable[Token]) -> bytes:
    """An address as the envelope has it: no comments, no quotes, literals in their brackets."""
    parts = []
    for kind, text in tokens:
        if kind in (ATOM, QUOTED):
            parts.append(text)
        elif kind == LITERAL:
            parts.append(b"[" + text + b"]")
        elif kind != COMMENT:
            parts.append(kind.encode())
    return b"".join(parts)


def _is_atom(text: bytes) -> bool:
    """Whether it can stand without quotes. Unlike in qmail, letters of all the world can, as UTF-8 (RFC 6532 §3.2)."""
    odd = text.translate(None, _ATOMIC)
    return not odd or (not odd.translate(None, _HIGH) and is_utf8(text))


def unparse(tokens: Sequence[Token]) -> bytes:
    """The text of `tokens` with spaces where they belong, folded behind commas, and a LF at its end."""
    lines: list[bytes] = []
    line: bytes | None = None
    piece: list[bytes] = []
    last = ""
    for kind, text in tokens:
        if last and (last in (COLON, COMMA) or kind == LEFT or (last in _WORDS and kind in _WORDS)):
            piece.append(b" ")
        last = kind
        if kind == ATOM:
            piece.append(_escape(text))
        elif kind in _BRACKETS:
            opening, closing = _BRACKETS[kind]
            piece.append(opening + _escape(text) + closing)
        else:
            piece.append(kind.encode())
            if kind == COMMA:
                line = _fold(lines, line, b"".join(piece))
                piece = []
    lines.append(_fold(lines, line, b"".join(piece)))
    return b"\n".join(lines) + b"\n"


def _escape(text: bytes) -> bytes:
    """What stands for `text` within a token.

    A quoted LF is one all the same for those who read the header by lines: a space behind it keeps them in the field.
    """
    escaped = escape(text, _ESCAPED)
    if b"\n" not in escaped:
        return escaped
    first, *rest = escaped.split(b"\n")
    return b"\n".join([first, *(line if line.startswith((b" ", b"\t")) else b" " + line for line in rest)])


def _fold(lines: list[bytes], line: bytes | None, piece: bytes) -> bytes:
    """The line to go on with when `piece` is added to `line`; what is full goes to `lines`."""
    if line is None:
        return piece
    if len(line) + len(piece) <= WIDTH:
        return line + piece
    lines.append(line)
    return b" " + piece
