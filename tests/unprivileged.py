"""Running a piece of a test as an ordinary user, also where everybody is root (a container, CI).

Nothing is ever delivered as root, so what delivers cannot be tested as root: there a forked child gives up its
privileges and carries the piece out.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from typing import TypeVar

from twisted.trial.unittest import SynchronousTestCase

T = TypeVar("T")

#: The user and group id of the child: that of nobody on most systems; no account is needed for it.
ORDINARY = 65534


def folder(test: SynchronousTestCase) -> bytes:
    """A new folder that belongs to whoever :func:`as_user` runs as, removed after the test."""
    path = tempfile.mkdtemp(prefix="qtwist-local-")
    test.addCleanup(shutil.rmtree, path, ignore_errors=True)
    os.chmod(path, 0o700)
    if os.geteuid() == 0:
        os.chown(path, ORDINARY, ORDINARY)
    return os.fsencode(path)


def as_user(function: Callable[[], T]) -> T:
    """What `function` returns (it must be picklable) or raises, carried out as an ordinary user.

    That user may not be able to enter root's checkout: import beforehand what `function` imports late.
    """
    if os.geteuid() != 0:
        return function()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(ORDINARY)
            os.setuid(ORDINARY)
            answer: object
            try:
                answer = (True, function())
            except Exception as error:
                answer = (False, error)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    worked, value = pickle.loads(data)
    if not worked:
        raise value
    return value
