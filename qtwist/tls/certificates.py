"""A server's certificates: control/servercert.pem, and those for other names, always as they are now on disk.

The files are those of qmail's TLS patches (spec/related.md §14.3): ``servercert.pem`` is what is shown to clients that
ask for no name (SNI, RFC 6066 §3) or for one that has no certificate of its own; ``servercerts/NAME/servercert.pem`` is
for the clients that ask for NAME. Each file has a certificate, its chain and its private key. With ``clientca.pem`` and
``tlsclients``, clients are asked for a certificate, too.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from qtwist.control import ControlError
from qtwist.control_reading import unreadable
from qtwist.tls.contexts import (
    SERVER_CIPHERS,
    Authorities,
    CheckedConnection,
    read_authorities,
    read_identity,
    server_context,
)

if TYPE_CHECKING:
    from qtwist.control import Control

_log = Logger(namespace="qtwist.tls")

#: What a server name may look like that is looked up as a directory.
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63}){0,30}")


#: The files that say by which terms all contexts are made.
_TERMS = ("tlsserverciphers", "clientca.pem", "clientcrl.pem", "tlsclients", "authmechanisms")


@attrs.frozen
class _Terms:
    """What is the same for all certificates. `authorities` is None when clients are not asked for a certificate."""

    ciphers: bytes
    authorities: Authorities | None


@attrs.frozen
class _Loaded:
    """A certificate that was loaded, or None where that failed, and when it must be loaded again."""

    stamp: object
    context: SSL.Context | None


class Certificates:
    """What the servers of one home show to their clients.

    Whatever is asked looks at the files' stamps first. A file that is wrong is logged, once, and what was loaded before
    stays in use; a file that is gone is no longer used. `now` tells the date.
    """

    def __init__(self, control: Control, now: Callable[[], float] = time.time) -> None:
        self._control = control
        self._now = now
        self._loaded: dict[str, _Loaded] = {}
        self._terms: _Terms | None = None
        self._terms_stamp: object = None

    @property
    def usable(self) -> bool:
        """Whether TLS can be offered now."""
        return self._context("") is not None

    def creator(self) -> Creator | None:
        """What startTLS needs for a new connection, or None where there is no certificate."""
        context = self._context("")
        return None if context is None else Creator(context)

    def named(self, name: str) -> SSL.Context | None:
        """The context for clients that ask for `name`, None for the one that they get anyway."""
        name = name.lower().rstrip(".")
        return self._context(name) if _NAME.fullmatch(name) else None

    def _context(self, name: str) -> SSL.Context | None:
        path = self._control.path("servercert.pem")
        if name:
            path = os.path.join(self._control.directory, "servercerts", name, "servercert.pem")
        known = self._loaded.get(name)
        try:
            stamp = file_stamp(path)
        except OSError as error:
            # The number of the error is the stamp, so that it is told once.
            return self._keep(name, known, error.errno, unreadable(path, error))
        if stamp is None:
            if known is not None:
                _log.info("{path}: gone, no longer used", path=path)
                del self._loaded[name]
            return None
        terms = self._current_terms()
        if terms is None:
            return None
        key = (stamp, terms)
        if known is not None and known.stamp == key:
            return known.context
        try:
            context = self._load(path, terms)
        except ControlError as error:
            return self._keep(name, known, key, error)
        self._loaded[name] = _Loaded(key, context)
        return context

    def _keep(self, name: str, known: _Loaded | None, stamp: object, error: ControlError) -> SSL.Context | None:
        """`error` is why nothing new can be loaded for `name`."""
        context = None if known is None else known.context
        if known is None or known.stamp != stamp:
            what = "no TLS with it" if context is None else "the certificate of before stays in use"
            _log.error("{error}; {what}", error=error, what=what)
            self._loaded[name] = _Loaded(stamp, context)
        return context

    def _load(self, path: str, terms: _Terms) -> SSL.Context:
        identity = read_identity(path)
        ciphers_path = self._control.path("tlsserverciphers")
        context = server_context(identity, path, terms.ciphers, ciphers_path, terms.authorities)
        context.set_tlsext_servername_callback(self._choose)
        if os.stat(path).st_mode & 0o004:
            _log.warn(
                "{path}: everybody may read the private key; mode 640 with the server's group would do", path=path
            )
        until = identity.certificate.not_valid_after_utc
        if until.timestamp() < self._now():
            _log.warn(
                "{path}: the certificate expired on {until:%Y-%m-%d}; it is used all the same", path=path, until=until
            )
        else:
            _log.info("{path}: certificate in use, valid until {until:%Y-%m-%d}", path=path, until=until)
        return context

    def _choose(self, connection: SSL.Connection) -> None:
        """A client has said which name it wants."""
        name = connection.get_servername()
        context = None if name is None else self.named(name.decode("ascii", "replace"))
        if context is not None:
            connection.set_context(context)

    def _current_terms(self) -> _Terms | None:
        """The terms as the files have them, those of before when one is wrong now, None when there are none yet."""
        control = self._control
        paths = [control.path(name) for name in _TERMS]
        try:
            stamp: Any = tuple(file_stamp(path) for path in paths)
        except OSError as error:
            stamp = (error.errno, error.filename)
        if stamp == self._terms_stamp:
            return self._terms
        self._terms_stamp = stamp
        try:
            self._terms = self._read_terms()
        except ControlError as error:
            what = "no TLS" if self._terms is None else "what it said before counts"
            _log.error("{error}; {what}", error=error, what=what)
        return self._terms

    def _read_terms(self) -> _Terms:
        control = self._control
        authorities = None
        external = any(line.upper() == b"EXTERNAL" for line in control.list("authmechanisms") or ())
        if (external or control.list("tlsclients")) and os.path.lexists(control.path("clientca.pem")):
            revoked = control.path("clientcrl.pem")
            authorities = read_authorities(control.path("clientca.pem"), revoked if os.path.lexists(revoked) else None)
        return _Terms(control.line("tlsserverciphers") or SERVER_CIPHERS, authorities)


@implementer(IOpenSSLServerConnectionCreator)
class Creator:
    """Makes the OpenSSL side of one connection, with the certificate that was in use when TLS was granted."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        return CheckedConnection(self._context)


def file_stamp(path: str) -> tuple[int, ...] | None:
    """What changes whenever a file, or who may read it, does; None without the file. OSError."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
