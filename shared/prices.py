"""What an instance costs: one table (`prices.json`, with its date in it) for launcher, report and dashboard."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Prices:
    """`dollars`: an hour of an instance, by its type and market. `date`: when they were looked up."""

    date: str
    dollars: dict[str, dict[str, float]]

    def an_hour(self, type: str | None, market: str | None) -> float | None:
        """None for what the table does not have."""
        return self.dollars.get(type or "", {}).get(market or "")


@cache
def prices() -> Prices:
    """The table that comes with the program."""
    table = json.loads((Path(__file__).parent / "prices.json").read_text())
    return Prices(table["date"], table["dollars_an_hour"])
