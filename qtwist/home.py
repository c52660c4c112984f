"""A home directory, and the services that it describes.

`Home(path)` is the way in for whoever builds a mail system of their own in a ``.tac`` file or a plugin::

    home = Home("/srv/mail")
    home.smtpd(policies=[Quiet()]).setServiceParent(application)
    home.send().setServiceParent(application)

Everything is built from parts that can be given instead: the interfaces are in :mod:`qtwist.interfaces`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

from qtwist.control import Control, ControlError
from qtwist.dns.config import resolver_from_control
from qtwist.files.disk import RealDisk
from qtwist.interfaces import IQueue, IResolver
from qtwist.local.spawn import LocalSpawner
from qtwist.mail.rewriting import Rewriter
from qtwist.policy import Policy
from qtwist.queue.files import FileQueue
from qtwist.remote.spawn import RemoteSpawner
from qtwist.send.bounces import BounceSettings
from qtwist.send.log import LogFile, SendLog
from qtwist.send.manager import QueueManager, SendSettings
from qtwist.smtpd.factory import SMTPFactory
