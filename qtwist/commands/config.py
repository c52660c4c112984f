"""config: set up the control files from what the DNS says of this host (spec/qmail.md §24)."""

from __future__ import annotations

import os
import socket
import sys

from qtwist.commands.base import TEMPORARY, answer_help, die, home
from qtwist.commands.config_fast import reminder, replace, write_names
from qtwist.commands.streams import put, shown
from qtwist.remote.own import own_addresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE = """\
NAME
    config - set up the control files from what the DNS says of this host

SYNOPSIS
    config

DESCRIPTION
    Asks for the full name of this host and writes control/me, defaultdomain and
    plusdomain as config-fast does. Asks for the names of all its IP addresses,
    writes them to control/locals, in place of what was there, and copies that
    to control/rcpthosts. Where the DNS does not know this host, nothing is
    written: use config-fast then.

ENVIRONMENT
    QTWISTHOME  the home of the mail system [/var/qmail]

EXIT CODES
    0    done
    111  this host has no name in the DNS, or a file cannot be written
"""

_PROG = "config"


class Lookup:
    """What the system says of this host and of names. Tests put another in its place."""

    def hostname(self) -> str:
        return socket.gethostname()

    def canonical(self, name: str) -> str | None:
        """The full name in the DNS, None without one."""
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
        except OSError:
            return None
        return found[0][3] or None

    def addresses(self, name: str) -> set[str]:
        """The IP addresses of a name and those of this host's interfaces, but for the unspecified ones."""
        try:
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
        except OSError:
            found = set()
        return (found | own_addresses()) - {"0.0.0.0", "::"}

    def name_of(self, address: str) -> str | None:
        """The name of an address, None without one."""
        try:
            name = socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0]
        except OSError:
            return None
        return name


def main(argv: Sequence[str] | None = None, lookup: Lookup | None = None) -> int:
    """Run the command; returns the exit code."""
    answer_help(sys.argv[1:] if argv is None else argv, USAGE)
    lookup = lookup or Lookup()
    host = lookup.hostname().lower()
    name = (lookup.canonical(host) or "").lower().rstrip(".") if host else ""
    if "." not in name:
        known = f"called {host}" if host else "which has no name of its own"
        die(_PROG, TEMPORARY, f"fatal: the DNS has no full name of this host, {known}; use config-fast")
    control = os.path.join(home(), "control")
    try:
        for line in configure(control, name, lookup):
            put(_PROG, line + b"\n")
    except OSError as error:
        die(_PROG, TEMPORARY, f"fatal: unable to write {error.filename or control}: {error.strerror}")
    return 0


def configure(control: str, name: str, lookup: Lookup) -> Iterator[bytes]:
    """Write the files; what is done, in lines. OSError when one cannot be written."""
    yield b"This host's full name in the DNS: " + shown(name)
    yield from write_names(control, os.fsencode(name))
    names: list[str] = []
    for address in sorted(lookup.addresses(name)):
        found = lookup.name_of(address)
        if found is None:
            yield shown(address) + b": it has no name in the DNS."
            continue
        yield b"%b: adding %b to control/locals." % (shown(address), shown(found))
        if found.lower() not in names:
            names.append(found.lower())
    text = b"".join(os.fsencode(one) + b"\n" for one in names)
    replace(os.path.join(control, "locals"), text)
    yield b"Other domain names of this host have to be added to control/locals by hand."
    yield b"Copying control/locals to control/rcpthosts."
    replace(os.path.join(control, "rcpthosts"), text)
    yield from reminder()
