"""Rules about clients by address and name, as tcprules compiles them (spec/related.md §4.2, §4.3, §4.8).

A rule is a key (an address, a name, an empty key for everybody) with what follows from it: allow or deny, and variables
to set. Pure: the database is a function that looks up a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import attrs

# An IPv6 address has colons of its own, so a key ends where its verdict starts. Other rules mean the same as ever.
_LINE = re.compile(rb"(?P<key>(?:(?!:allow|:deny).)*):(?P<verdict>allow|deny)(?P<variables>(?:,.*)?)", re.DOTALL)
_VARIABLE = re.compile(rb",([^=]*)=(.)", re.DOTALL)
_RANGE = re.compile(rb"(?P<head>(?:[^-]*\.)?)(?P<low>[0-9]*)-(?P<high>[0-9]*)(?P<tail>(?:\..*)?)", re.DOTALL)
_HIGHEST = 255


class RuleError(Exception):
    """A line that is no rule. `number` counts from 1."""

    def __init__(self, number: int, line: bytes) -> None:
        super().__init__(number, line)
        self.number = number
        self.line = line


@attrs.frozen
class Verdict:
    """What the rules say of a client: by which `rule` (None: no rule is about it), whether it is let in, and the
    variables (``NAME=VALUE``) that are set for it."""

    rule: bytes | None
    allow: bool
    variables: tuple[bytes, ...] = ()


def compile_rules(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The cdb records of a text of rules, in its order. RuleError for a line that is none.

    Lines without a colon, empty lines and those that start with ``#`` say nothing (§4.2).
    """
    for number, raw in enumerate(text.split(b"\n"), 1):
        line = raw.rstrip(b" \t")
        if line.startswith(b"#") or b":" not in line:
            continue
        match = _LINE.fullmatch(line)
        data = None if match is None else _data(match["verdict"], match["variables"])
        keys = None if match is None else _keys(match["key"])
        if data is None or keys is None:
            raise RuleError(number, line)
        for key in keys:
            yield key, data


def _data(verdict: bytes, variables: bytes) -> bytes | None:
    """The data of a record; None if the variables are malformed."""
    parts = [b"D\0"] if verdict == b"deny" else []
    at = 0
    while at < len(variables):
        head = _VARIABLE.match(variables, at)
        end = -1 if head is None else variables.find(head[2], head.end())
        if head is None or end < 0:
            return None
        parts.append(b"+%b=%b\0" % (head[1], variables[head.end() : end]))
        at = end + 1
    return b"".join(parts)


def _keys(address: bytes) -> list[bytes] | None:
    """The addresses that ``1.2.3-9.`` and the like stand for; None for a hyphen that stands for nothing."""
    if b"-" not in address or b"=" in address or b"@" in address:
        return [address]
    match = _RANGE.fullmatch(address)  # by the first hyphen; others stay
    if match is None:
        return None
    low, high = _number(match["low"]), min(_number(match["high"]), _HIGHEST)
    return [b"%b%d%b" % (match["head"], number, match["tail"]) for number in range(low, high + 1)]


def _number(digits: bytes) -> int:
    significant = digits.lstrip(b"0")
    return int(significant or b"0") if len(significant) < 10 else 10**10


def find_rule(
    get: Callable[[bytes], bytes | None], ip: bytes, name: bytes | None = None, ident: bytes | None = None
) -> Verdict:
    """What the rules say of a client with this address, name and IDENT answer (None: not known), by the first key that
    `get` finds data for (§4.2)."""
    for key in lookup_keys(ip, name, ident):
        data = get(key)
        if data is not None:
            return _verdict(key, data)
    return Verdict(None, True)


def lookup_keys(ip: bytes, name: bytes | None = None, ident: bytes | None = None) -> Iterator[bytes]:
    """The keys under which a client's rule is looked for, in order. Prefixes of an address end in a dot or a colon."""
    if ident is not None:
        yield ident + b"@" + ip
        if name is not None:
            yield ident + b"@=" + name
    yield ip
    if name is not None:
        yield b"=" + name
    for end in range(len(ip) - 1, 0, -1):
        if ip[end - 1] in b".:":
            yield ip[:end]
    if name is not None:
        for start in range(1, len(name)):
            if name[start] == ord("."):
                yield b"=" + name[start:]
        yield b"="
    yield b""


def _verdict(key: bytes, data: bytes) -> Verdict:
    allow = True
    variables = []
    for item in data.split(b"\0")[:-1]:
        if item.startswith(b"D"):
            allow = False
        elif item.startswith(b"+"):
            variables.append(item[1:])
    return Verdict(key, allow, tuple(variables))
