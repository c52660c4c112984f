"""Who hands in a message: what the Received line says of a user id (spec/qmail.md §6.2)."""

from __future__ import annotations

import os

from qtwist.mail.envelope import Origin


def origin_of(uid: int, own: int, alias: int, network: frozenset[int] = frozenset()) -> Origin:
    """The origin of a message from the real user id `uid`.

    `own` is whom the queue belongs to, `alias` whom HOME/alias belongs to (-1: nobody). In a home of one account, where
    both are the same, that account is a user like any other. `network` are the accounts of servers that run as
    processes of their own; in a daemon of one process, mail ``from network`` does not come through the door, and mail
    ``for bounce`` never does.
    """
    if uid in network:
        return Origin.network(uid)
    if uid == alias != own:
        return Origin.alias(uid)
    return Origin.user(uid)


def owner(path: str) -> int:
    """Whose file this is; -1 when it cannot be told."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1
