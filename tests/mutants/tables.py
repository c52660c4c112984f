"""All mutants."""

from __future__ import annotations

from tests.mutants import Mutant
from tests.mutants.deliveries import DELIVERIES
from tests.mutants.journal import JOURNAL
from tests.mutants.queue import QUEUE
from tests.mutants.send import SEND
from tests.mutants.wire import WIRE

MUTANTS: tuple[Mutant, ...] = (*QUEUE, *JOURNAL, *SEND, *DELIVERIES, *WIRE)
