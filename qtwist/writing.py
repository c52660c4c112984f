"""Writing to a connection without the detour through the reactor."""

from __future__ import annotations

from typing import Any


def write(transport: Any, data: bytes) -> None:
    """``transport.write(data)``, but what the socket takes is sent at once.

    Twisted waits until the reactor says that a socket can be written to: two calls of epoll_ctl and a turn of the
    reactor for every answer, where the socket can nearly always be written to. A transport that has something unsent,
    or is no plain TCP or Unix connection (TLS, a test's), gets the data in Twisted's way; so does one whose connection
    turns out to be lost, so that the reactor finds that out, and one with a pull producer, which is asked for more when
    the reactor has written what there was.
    """
    unsent = getattr(transport, "_tempDataBuffer", True) or getattr(transport, "dataBuffer", True)
    if (
        not unsent
        and transport.connected
        and not (transport.TLS or transport._writeDisconnected)
        and (transport.producer is None or transport.streamingProducer)
    ):
        sent = transport.writeSomeData(data)
        if isinstance(sent, int):
            if sent == len(data):
                return
            data = data[sent:]
    transport.write(data)
