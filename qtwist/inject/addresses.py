"""Lists of addresses in header fields, and how an address is completed (spec/qmail.md §19.7)."""

from __future__ import annotations

from qtwist.inject.tokens import (
    AT,
    ATOM,
    COLON,
    COMMA,
    COMMENT,
    DOT,
    LEFT,
    LITERAL,
    QUOTED,
    RIGHT,
    SEMICOLON,
    SyntaxTrouble,
    parse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qtwist.inject.tokens import Tokens

_WORDS = frozenset((ATOM, QUOTED, LITERAL))
_PHRASE = frozenset((COMMENT, ATOM, QUOTED, AT, DOT))
_COMMA = (COMMA, b"")


class Completion:
    """What is added to addresses: the hosts of control/defaulthost, defaultdomain and plusdomain.

    They are read as tokens, as they stand in the files; SyntaxTrouble when that is not possible.
    """

    def __init__(self, defaulthost: bytes, defaultdomain: bytes, plusdomain: bytes) -> None:
        self._host = parse(b"@" + defaulthost)
        self._domain = parse(b"." + defaultdomain)
        self._plus = parse(b"." + plusdomain)

    def __call__(self, address: Tokens) -> Tokens:
        """`address` (one address, no list) with all that it lacks. It may come out empty, and the empty one does."""
        if not address or address[-2:] == [(AT, b""), (LITERAL, b"")]:
            return address
        if address[0][0] == AT:  # a source route
            kinds = [kind for kind, _ in address]
            address = address[kinds.index(COLON) + 1 :] if COLON in kinds else []
        for odd in (DOT, AT):
            if address and address[-1][0] == odd:
                address = address[:-1]
        if not address:
            return address
        if all(kind != AT for kind, _ in address):
            address = address + self._host
        kind, text = address[-1]
        if kind == ATOM and text.endswith(b"+"):
            address = [*address[:-1], (ATOM, text[:-1]), *self._plus]
        for kind, _ in reversed(address):
            if kind in (DOT, LITERAL):
                return address
            if kind == AT:
                break
        return address + self._domain


def rewrite_field(field: Tokens, rewrite: Callable[[Tokens], Tokens]) -> Tokens:
    """The tokens of a header field with every address in it replaced by what `rewrite` makes of it.

    The field begins with its name and the colon. `rewrite` gets the addresses from right to left, and is responsible
    for remembering them: when SyntaxTrouble ends the work, it has had those right of the trouble.
    """
    output: Tokens = []  # from right to left
    address: Tokens = []  # from right to left, too

    def flush() -> None:
        if address:
            take()

    def flush_with_comma() -> None:
        if address:
            take()
            output.append(_COMMA)

    def take() -> None:
        output.extend(reversed(rewrite(address[::-1])))
        address.clear()

    in_group = False
    may_join = True  # an address may go on with a word here
    at = len(field) - 1
    while at >= 2:
        token = field[at]
        kind = token[0]
        if kind in _WORDS:
            if not may_join:
                flush_with_comma()
            may_join = False
            address.append(token)
        elif kind == COMMENT:
            output.append(token)
        elif kind == COMMA:
            flush()
            may_join = True
            output.append(token)
        elif kind == SEMICOLON:
            flush_with_comma()
            if in_group:
                raise SyntaxTrouble("a group in a group")
            in_group = may_join = True
            output.append(token)
        elif kind == COLON:
            flush()
            if not in_group:
                raise SyntaxTrouble("a group without an end")
            in_group = False
            may_join = True
            while at >= 2:  # the name of the group, and the comma before it
                output.append(field[at])
                if field[at][0] == COMMA:
                    break
                at -= 1
        elif kind == RIGHT:
            flush_with_comma()
            output.append(token)
            at -= 1
            while at >= 2 and field[at][0] != LEFT:
                address.append(field[at])
                at -= 1
            take()  # an empty address counts here
            if at < 2:
                raise SyntaxTrouble("no < for a >")
            output.append(field[at])
            while at > 2 and field[at - 1][0] in _PHRASE:
                at -= 1
                output.append(field[at])
            may_join = False
        else:
            may_join = True
            address.append(token)
        at -= 1
    flush()
    output.extend(reversed(field[:2]))
    output.reverse()
    return output
