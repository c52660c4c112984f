"""Rules about clients by address and name, as tcprules compiles them (spec/related.md §4.2, §4.3, §4.8).

A rule is a key (an address, a name, an empty key for everybody) with what follows from it: allow or deny, and variables
to set. Beside what tcprules knows, a key may be a network in CIDR form (``10.0.0.0/8``, ``2001:db8::/32``).
Pure: the database is a function that looks up a key, or :class:`Rules` in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network

import attrs

from qtwist.mail.domains import ascii_domain

# An IPv6 address has colons of its own, so a key ends where its verdict starts. Other rules mean the same as ever.
_LINE = re.compile(rb"(?P<key>(?:(?!:allow|:deny).)*):(?P<verdict>allow|deny)(?P<variables>(?:,.*)?)", re.DOTALL)
_VARIABLE = re.compile(rb",([^=]*)=(.)", re.DOTALL)
_RANGE = re.compile(rb"(?P<head>(?:[^-]*\.)?)(?P<low>[0-9]*)-(?P<high>[0-9]*)(?P<tail>(?:\..*)?)", re.DOTALL)
_LITERAL = re.compile(rb"\[(.*)\]")
_IPV6_START = re.compile(rb"(?:[0-9A-Fa-f]{1,4}:){1,7}:?")
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
    """The addresses that ``1.2.3-9.`` and the like stand for; None for a hyphen that stands for nothing, for a network
    that is none, and for colons that are in no IPv6 address."""
    user, at, host = address.rpartition(b"@")
    if b"=" in address:
        return [_spelled(address)]
    if b"/" in host:
        network = None if at else _canonical_network(address.replace(b"[", b"").replace(b"]", b""))
        return None if network is None else [network]
    if b":" in host or _LITERAL.fullmatch(host):
        known = _canonical_ip(host)
        return None if known is None else [user + at + known]
    if at:
        return [address]
    if b"-" not in address:
        return [address]
    match = _RANGE.fullmatch(address)  # by the first hyphen; others stay
    if match is None:
        return None
    low, high = _number(match["low"]), min(_number(match["high"]), _HIGHEST)
    return [b"%b%d%b" % (match["head"], number, match["tail"]) for number in range(low, high + 1)]


def _spelled(address: bytes) -> bytes:
    """A rule about names, as the DNS has them (RFC 5890 §2.3.2.1); in ASCII it stays as it is."""
    head, equals, name = address.rpartition(b"=")
    return address if address.isascii() else head + equals + ascii_domain(name)


def _canonical_network(address: bytes) -> bytes | None:
    """A network as :func:`lookup_keys` writes it; None when it is none."""
    try:
        return str(ip_network(address.decode("ascii"), strict=False)).encode("ascii")
    except ValueError:
        return None


def _canonical_ip(address: bytes) -> bytes | None:
    """An address with colons or in brackets, or the start of one (it ends in a colon), as systems print a client's;
    None when it is none."""
    if _IPV6_START.fullmatch(address):
        return b":".join(group and b"%x" % int(group, 16) for group in address.split(b":"))
    try:
        known = ip_address(_LITERAL.sub(rb"\1", address).decode("ascii"))
    except ValueError:
        return None
    mapped = known.ipv4_mapped if known.version == 6 else None
    return str(mapped or known).encode("ascii")


def _number(digits: bytes) -> int:
    significant = digits.lstrip(b"0")
    return int(significant or b"0") if len(significant) < 10 else 10**10


class Rules:
    """Rules in memory, from the records of a database or of :func:`compile_rules`; of several records for one key the
    first counts.

    `asks_name` and `asks_ident` say whether some rule is about names of clients, or about what IDENT says of them.
    """

    def __init__(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        self._records: dict[bytes, bytes] = {}
        lengths: set[int] = set()
        self.asks_name = self.asks_ident = False
        for key, data in records:
            if b"@" in key:
                self.asks_ident = True
                self.asks_name = self.asks_name or b"@=" in key
            elif key.startswith(b"="):
                self.asks_name = True
            elif b"/" in key:
                network = _canonical_network(key)
                if network is None:
                    continue  # made by a tcprules that does not know networks; it means nothing
                lengths.add(int(network.rpartition(b"/")[2]))
                self._records.setdefault(network, data)
                continue
            self._records.setdefault(key, data)
        self._lengths = tuple(sorted(lengths))

    def __len__(self) -> int:
        return len(self._records)

    def find(self, ip: bytes, name: bytes | None = None, ident: bytes | None = None) -> Verdict:
        """What they say of a client, as :func:`find_rule` has it."""
        return find_rule(self._records.get, ip, name, ident, self._lengths)


def find_rule(
    get: Callable[[bytes], bytes | None],
    ip: bytes,
    name: bytes | None = None,
    ident: bytes | None = None,
    lengths: Sequence[int] = (),
) -> Verdict:
    """What the rules say of a client with this address, name and IDENT answer (None: not known), by the first key that
    `get` finds data for (§4.2). `lengths` are those of the networks that there are rules for."""
    for key in lookup_keys(ip, name, ident, lengths):
        data = get(key)
        if data is not None:
            return _verdict(key, data)
    return Verdict(None, True)


def lookup_keys(
    ip: bytes, name: bytes | None = None, ident: bytes | None = None, lengths: Sequence[int] = ()
) -> Iterator[bytes]:
    """The keys under which a client's rule is looked for, in order. Prefixes of an address end in a dot or a colon.

    Networks of these `lengths` (bits) stand among the prefixes, the longer first; ``1.2.3.`` is before ``1.2.3.0/24``.
    """
    if ident is not None:
        yield ident + b"@" + ip
        if name is not None:
            yield ident + b"@=" + name
    yield ip
    if name is not None:
        yield b"=" + name
    prefixes = (ip[:end] for end in range(len(ip) - 1, 0, -1) if ip[end - 1] in b".:")
    yield from _by_length(ip, prefixes, lengths) if lengths else prefixes
    if name is not None:
        for start in range(1, len(name)):
            if name[start] == ord("."):
                yield b"=" + name[start:]
        yield b"="
    yield b""


def _by_length(ip: bytes, prefixes: Iterable[bytes], lengths: Sequence[int]) -> Iterator[bytes]:
    """Prefixes and networks of an address, the longest first."""
    try:
        address = ip_address(ip.decode("ascii"))
    except ValueError:
        yield from prefixes
        return
    separator, bits = (b":", 16) if address.version == 6 else (b".", 8)
    keys = [(prefix.count(separator) * bits, 1, prefix) for prefix in prefixes]
    for length in lengths:
        if length <= address.max_prefixlen:
            network = ip_network((address.packed, length), False)
            keys.append((length, 0, str(network).encode("ascii")))
    for _, _, key in sorted(keys, reverse=True):
        yield key


def _verdict(key: bytes, data: bytes) -> Verdict:
    allow = True
    variables = []
    for item in data.split(b"\0")[:-1]:
        if item.startswith(b"D"):
            allow = False
        elif item.startswith(b"+"):
            variables.append(item[1:])
    return Verdict(key, allow, tuple(variables))
