"""What all actors of a simulation share."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from simpy import Environment, Event

from bench.simulation.ledger import Ledger, Work
from bench.simulation.scenario import Scenario
from bench.simulation.sqs import JobsQueue

T = TypeVar("T")
Steps: TypeAlias = Generator[Event, Any, T]

PIECE = 600.0  # audio seconds that are heard a second time at once


@dataclass
class World:
    """`unheard`: its event was lost. `second`: audio seconds of sessions that are to be heard once more, whole.

    `reheard`: audio seconds that were. `busy`: instance-seconds of useful work.
    """

    scenario: Scenario
    env: Environment = field(default_factory=Environment)
    ledger: Ledger = field(default_factory=Ledger)
    queue: JobsQueue = field(init=False)
    unheard: list[Work] = field(default_factory=list)
    second: float = 0.0
    reheard: float = 0.0
    busy: float = 0.0

    def __post_init__(self) -> None:
        self.queue = JobsQueue(self.env)

    @property
    def now(self) -> float:
        return float(self.env.now)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        timeout = self.env.timeout(seconds)
        assert timeout.callbacks is not None
        timeout.callbacks.append(lambda _: call())

    def sweep(self) -> bool:
        """Queue the audio whose event was lost: the bucket has it. False if there is none."""
        unheard, self.unheard = self.unheard, []
        for work in unheard:
            self.queue.send(work)
        return bool(unheard)

    def heard_alone(self, audio: float) -> None:
        """A session will be better for a second hearing."""
        if self.scenario.second_hearing:
            called = self.second >= PIECE
            self.second += audio
            if self.second >= PIECE and not called:
                self.queue.call()
