"""Stories for the crash machine, drawn by Hypothesis, which makes those that break the contract as short as it can."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from tests.sim.disk import Model
from tests.sim.machine import Life, Machine, SimulatedJournaledQueue, SimulatedQueue, Stop

_LOCAL, _REMOTE = b"here.test", b"far.test"

KINDS = ((b"dir", _LOCAL), (b"box", _LOCAL), (b"no", _LOCAL), (b"ok", _REMOTE), (b"slow", _REMOTE), (b"bad", _REMOTE))

EVERYBODY = ((b"dir", _LOCAL), (b"box", _LOCAL), (b"ok", _REMOTE))
FAILURES = ((b"no", _LOCAL), (b"dir", _LOCAL), (b"bad", _REMOTE), (b"slow", _REMOTE))


def one_message(
    kinds: Sequence[tuple[bytes, bytes]],
    *,
    sender: bytes = b"ok",
    size: int = 10,
    times: int = 1,
    asked: bool = False,
    **how: Any,
) -> Story:
    """A message (or some at once) to these recipients, until each has a result."""
    actions = [("send", sender, kinds, size, asked)] * times + [("settle",), ("advance", 2000)]
    return Story([Life(actions)], **how)


#: The last one is too large to be kept in memory until it is committed.
SIZES = (10, 5000, 70_000)


@attrs.frozen
class Story:
    """All that a machine needs to do the same again."""

    lives: Sequence[Life]
    seed: int = 0
    model: Model = Model.JOURNAL
    shared_sync: bool = True
    interleaved: bool = False
    journal: bool = False

    def machine(self, home: str) -> Machine:
        return Machine(
            home,
            seed=self.seed,
            model=self.model,
            shared_sync=self.shared_sync,
            interleaved=self.interleaved,
            queue=SimulatedJournaledQueue if self.journal else SimulatedQueue,
        )

    def tell(self, home: str) -> Machine:
        """Violation when the contract is broken."""
        machine = self.machine(home)
        machine.run(self.lives)
        return machine


def count_calls(home: str, story: Story) -> int:
    """How many disk calls the first life of a story takes when it is left alone."""
    machine = story.machine(home)
    machine.live(attrs.evolve(story.lives[0], stop=Stop(power=False, clean=True)))
    return machine.calls


def stop_everywhere(home: str, story: Story, seeds: Sequence[int], *, power: bool = True) -> int:
    """Tell a story of one life as often as it has disk calls, with a stop at each, and with several outcomes of each
    crash; how many that were. Violation when the contract is broken."""
    calls = count_calls(home, story)
    for seed in seeds:
        for at in range(1, calls + 1):
            life = attrs.evolve(story.lives[0], stop=Stop(power, at))
            attrs.evolve(story, lives=[life], seed=story.seed + 1000 * seed + at).tell(home)
    return calls * len(seeds)


def _action(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), *arguments)


sends = _action(
    "send",
    st.sampled_from((b"ok", b"bad", b"")),
    st.lists(st.sampled_from(KINDS), max_size=4),
    st.sampled_from(SIZES),
    st.booleans(),
)
actions = st.one_of(
    sends,
    sends,
    sends,
    _action("settle"),
    _action("steps", st.integers(1, 60)),
    _action("advance", st.sampled_from((1, 150, 500, 2000, 80_000))),
    _action("alarm"),
    _action("abort", st.sampled_from(SIZES)),
    _action("jump", st.sampled_from((-20_000, -500, 500, 100_000))),
    _action("hold", st.integers(0, 3), st.booleans()),
    _action("steer", st.sampled_from(("fail", "drop")), st.integers(0, 3)),
    _action("full", st.sampled_from((None, 0, 100, 400, 6000))),
)
calls = st.one_of(st.none(), st.integers(1, 500))
stops = st.builds(Stop, st.booleans(), calls, st.booleans())
faults = st.one_of(st.none(), st.tuples(st.integers(80, 400), st.sampled_from((errno.EIO, errno.ENOSPC))))
lives = st.builds(Life, st.lists(actions, max_size=8), stops, faults)
stories = st.builds(
    Story,
    st.lists(lives, min_size=1, max_size=4),
    st.integers(0, 1 << 30),
    st.sampled_from(Model),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
