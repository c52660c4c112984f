"""MTA-STS policies of other domains: found, fetched, kept (RFC 8461 §3.3, §5).

A policy is kept on disk for as long as its domain says, and is believed for that long whatever the DNS says: that is
what makes it worth something against somebody who forges the DNS.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from hashlib import blake2s
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from qtwist.interfaces import DNSTemporaryError, IResolver
from qtwist.wire.mta_sts import STSPolicy, parse_policy, parse_record

MOST_FILES = 10_000
"""Domains whose policies are kept; the oldest go first."""

PAUSE = 300
"""Seconds in which a policy that could not be fetched is not asked for again."""

MOST_FAILURES = 10_000

PATH = b"/.well-known/mta-sts.txt"
_HOST = re.compile(rb"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63}){1,30}")
_log = Logger(namespace="qtwist.remote")

Fetch = Callable[[bytes, bytes], "Deferred[bytes]"]
"""Gets the text at https://HOST/PATH."""


@attrs.frozen
class Kept:
    """A policy, its id, and when it was fetched, in seconds since the epoch."""

    id: bytes
    fetched: int
    policy: STSPolicy


class STSPolicies:
    """The policies of other domains, kept as files in `directory`, which is made when the first one is there.

    `fetch` gets the text at https://HOST/PATH. `now` is in seconds since the epoch.
    """

    def __init__(self, resolver: IResolver, fetch: Fetch, directory: str, now: Callable[[], float] = time.time) -> None:
        self._resolver = resolver
        self._fetch = fetch
        self._directory = directory
        self._now = now
        self._memory: dict[bytes, Kept] = {}
        self._failed: dict[bytes, float] = {}  # when the policy of a domain could not be had
        self._running: dict[bytes, Deferred[None]] = {}  # what is being fetched

    async def policy(self, domain: bytes) -> STSPolicy | None:
        """The policy of `domain` that is in force, None when there is none."""
        domain = domain.lower().removesuffix(b".")
        if not _HOST.fullmatch(domain):
            return None
        kept = self._valid(domain)
        try:
            answer = await self._resolver.txt(b"_mta-sts." + domain)
        except DNSTemporaryError:
            return None if kept is None else kept.policy
        announced = parse_record(cast("tuple[bytes, ...]", answer.records))
        if announced is None or (kept is not None and kept.id == announced and self._is_young(kept)):
            return None if kept is None else kept.policy
        if self._now() - self._failed.get(domain, -PAUSE) >= PAUSE:
            await self._renew(domain, announced)
            kept = self._valid(domain)
        return None if kept is None else kept.policy

    def _is_young(self, kept: Kept) -> bool:
        """Whether a policy need not be fetched again before it expires (RFC 8461 §3.3, its last paragraphs)."""
        return self._now() - kept.fetched < kept.policy.seconds / 2

    async def _renew(self, domain: bytes, announced: bytes) -> None:
        """Fetch a policy; those who want the same one wait together."""
        running = self._running.get(domain)
        if running is not None:
            waiting: Deferred[None] = Deferred()
            running.chainDeferred(waiting)
            await waiting
            return
        done: Deferred[None] = Deferred()
        self._running[domain] = done
        try:
            text = await self._fetch(b"mta-sts." + domain, PATH)
            policy = parse_policy(text)
        except Exception as error:  # whatever the network does, mail goes on by what is known
            if len(self._failed) >= MOST_FAILURES:
                self._failed.clear()
            self._failed[domain] = self._now()
            why = str(error) or type(error).__name__
            _log.warn("the MTA-STS policy of {domain} cannot be had: {why}", domain=domain.decode("ascii"), why=why)
        else:
            self._failed.pop(domain, None)
            kept = Kept(announced, int(self._now()), policy)
            self._remember(domain, kept)
            self._write(domain, kept, text)
            _log.info(
                "the MTA-STS policy of {domain}: {mode}, for {seconds} s",
                domain=domain.decode("ascii"),
                mode=policy.mode,
                seconds=policy.seconds,
            )
        finally:
            del self._running[domain]
            done.callback(None)

    def _valid(self, domain: bytes) -> Kept | None:
        """What is known of a domain and has not expired."""
        kept = self._memory.get(domain)
        if kept is None:
            kept = self._read(domain)
            if kept is not None:
                self._remember(domain, kept)
        if kept is None or self._now() - kept.fetched >= kept.policy.seconds:
            return None
        return kept

    def _remember(self, domain: bytes, kept: Kept) -> None:
        if len(self._memory) >= MOST_FILES:
            self._memory.clear()
        self._memory[domain] = kept

    # Files: domain, id, time, and the text as it was fetched.

    def _path(self, domain: bytes) -> str:
        return os.path.join(self._directory, blake2s(domain, digest_size=16).hexdigest())

    def _read(self, domain: bytes) -> Kept | None:
        try:
            with open(self._path(domain), "rb") as file:
                name, announced, fetched, text = file.read().split(b"\n", 3)
            if name != domain:
                return None
            return Kept(announced, int(fetched), parse_policy(text))
        except (OSError, ValueError):
            return None

    def _write(self, domain: bytes, kept: Kept, text: bytes) -> None:
        path = self._path(domain)
        try:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            with open(path + ".new", "wb") as file:
                file.write(b"%b\n%b\n%d\n%b" % (domain, kept.id, kept.fetched, text))
            os.rename(path + ".new", path)
            self._prune()
        except OSError as error:
            _log.warn("{path}: {error}; the policy is kept in memory", path=path, error=error.strerror)

    def _prune(self) -> None:
        entries: list[Any] = list(os.scandir(self._directory))
        if len(entries) > MOST_FILES:
            entries.sort(key=lambda entry: entry.stat().st_mtime)
            for entry in entries[: MOST_FILES // 10]:
                os.unlink(entry.path)
