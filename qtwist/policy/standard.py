"""The policies that come with qtwist, by the names that control/policies, the log and doc/policies.md give them."""

from __future__ import annotations

from collections.abc import Callable

from qtwist.policy.badmailfrom import BadMailFrom, BadRcptTo
from qtwist.policy.base import Policy
from qtwist.policy.clamd import Clamd
from qtwist.policy.greeting import BadHelo, GreetDelay, MailFromCheck, Tarpit
from qtwist.policy.greylist import Greylist
from qtwist.policy.memory import MemoryFree
from qtwist.policy.milters import Milters
from qtwist.policy.rblsmtpd import RBLSMTPd
from qtwist.policy.rcpthosts import RcptHosts
from qtwist.policy.recipients import Recipients
from qtwist.policy.room import QueueRoom
from qtwist.policy.rspamd import Rspamd
from qtwist.policy.surroundings import Surroundings

#: Those that look at whole messages. Milters come last, as they may sign what the others have changed.
CONTENT: dict[str, Callable[[Surroundings], Policy]] = {"clamd": Clamd, "rspamd": Rspamd, "milters": Milters}

#: In the order in which they are asked: what costs nothing first, and questions about a recipient once it is one of
#: ours. None of them ever accepts for good, so that no order of them opens a relay.
STANDARD: dict[str, Callable[[Surroundings], Policy]] = {
    "memory": MemoryFree,
    "queueroom": QueueRoom,
    "rblsmtpd": RBLSMTPd,  # asks its questions at connect, so that greetdelay does not wait for nothing
    "greetdelay": GreetDelay,
    "tarpit": Tarpit,
    "badhelo": BadHelo,
    "mfcheck": MailFromCheck,
    "badmailfrom": lambda surroundings: BadMailFrom(surroundings.control),
    "badrcptto": lambda surroundings: BadRcptTo(surroundings.control),
    "rcpthosts": lambda surroundings: RcptHosts(surroundings.control),
    "rcptcheck": Recipients,
    "greylisting": Greylist,
    **CONTENT,
}
