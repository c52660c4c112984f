"""From the host of an address to the addresses to try, asking the DNS (spec/qmail.md §15.3)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList

from qtwist.interfaces import DNSTemporaryError, IResolver
from qtwist.mail.envelope import Report
from qtwist.remote import reports
from qtwist.remote.hosts import (
    MAX_ADDRESSES,
    Host,
    Shuffle,
    is_null_mx,
    order_exchanges,
    parse_address,
    shuffle_addresses,
    without_own,
)
from qtwist.remote.routes import Relay

Hosts = tuple[Host, ...]


async def find_hosts(
    resolver: IResolver, host: bytes, relay: Relay, own: Callable[[], Collection[str]], shuffle: Shuffle
) -> Hosts | Report:
    """The addresses for mail to `host`, best first and at least one, or the report when there is none.

    A relay is used by its addresses alone, and may be this very machine; anything else must be better than we are,
    whose addresses `own` gives.
    """
    name = relay.host or host
    address = parse_address(name)
    if address is not None:
        found: Hosts | Report = (Host(address),)
    elif not name.strip(b".") or name.startswith(b"["):
        return reports.no_such_host(name)
    elif relay.host:
        found = await _addresses(resolver, name, shuffle)
    else:
        found = await _exchangers(resolver, name, shuffle)
    if isinstance(found, Report):
        return found
    if not relay.host:
        found = without_own(found, own())
    return found[:MAX_ADDRESSES] or reports.LOOP


async def _exchangers(resolver: IResolver, host: bytes, shuffle: Shuffle) -> Hosts | Report:
    host = host.removesuffix(b".")
    try:
        answer = await resolver.mx(host)
    except DNSTemporaryError:
        return reports.DNS_TROUBLE
    records = cast("tuple[tuple[int, bytes], ...]", answer.records) if answer.status == "ok" else ()
    if not records:
        return await _addresses(resolver, host, shuffle, answer.authenticated)
    if is_null_mx(records):
        return reports.no_mail_host(host)
    return await _all_addresses(resolver, order_exchanges(records, shuffle), shuffle, answer.authenticated)


async def _addresses(resolver: IResolver, name: bytes, shuffle: Shuffle, secure: bool = True) -> Hosts | Report:
    """The addresses of one name, without mail exchangers. `secure` says whether what led to the name was."""
    try:
        answer = await resolver.addresses(name.removesuffix(b"."))
    except DNSTemporaryError:
        return reports.DNS_TROUBLE
    if answer.status == "nxdomain":
        return reports.no_such_host(name)
    addresses = cast("tuple[str, ...]", answer.records)
    secure = secure and answer.authenticated
    found = tuple(Host(address, name=name, secure=secure) for address in shuffle_addresses(addresses, shuffle))
    return found or reports.NO_EXCHANGER


async def _all_addresses(
    resolver: IResolver, exchanges: list[tuple[int, bytes]], shuffle: Shuffle, secure: bool
) -> Hosts | Report:
    """The addresses of all mail exchangers, in their order, asked for together.

    An exchange without an address is left out. A temporary failure counts only when there is no address at all.
    """
    literal = {exchange: parse_address(exchange) for _, exchange in exchanges}
    asked = [exchange for exchange, address in literal.items() if address is None]
    questions: list[Deferred[Any]] = [resolver.addresses(exchange.removesuffix(b".")) for exchange in asked]
    answers = await DeferredList(questions, consumeErrors=True)
    addresses = {exchange: [address] for exchange, address in literal.items() if address is not None}
    authenticated = set()
    trouble = False
    for exchange, (success, answer) in zip(asked, answers, strict=True):
        if success:
            records = cast("tuple[str, ...]", answer.records)
            addresses[exchange] = shuffle_addresses(records, shuffle)
            if secure and answer.authenticated:
                authenticated.add(exchange)
        elif answer.check(DNSTemporaryError):
            trouble = True
        else:
            answer.raiseException()
    hosts = tuple(
        Host(address, preference, exchange, exchange in authenticated)
        for preference, exchange in exchanges
        for address in addresses.get(exchange, ())
    )
    if hosts:
        return hosts
    return reports.DNS_TROUBLE if trouble else reports.NO_EXCHANGER
