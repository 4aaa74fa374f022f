"""What a part of the fault suite hands back: its rows of the table, and which kinds of fault fired how often."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

Say = Callable[[str], None]  # tells how far a part is
AGAIN = "event delivered again"  # the kind that is no fault but a duplicate


@dataclass(frozen=True)
class Row:
    """One line of the table: `what` was measured, what was `wanted`, what it was, and whether that is enough.

    `reached`: None where nothing is wanted, and the figure is for information.
    """

    what: str
    wanted: str
    measured: str
    reached: bool | None


@dataclass
class Part:
    """What `run()` of a part returns. A kind of fault that was meant to fire and did not stands in `kinds` with 0."""

    rows: list[Row]
    kinds: Counter[str] = field(default_factory=Counter)
