"""Which machine this is, as EC2's metadata service tells an instance."""

from dataclasses import dataclass

import httpx

from shared.imds import IMDS, Imds

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Machine:
    """`market`: "on-demand" or "spot"."""

    type: str = UNKNOWN
    market: str = UNKNOWN


def this_machine(endpoint: str = IMDS) -> Machine:
    """Unknown where there is no such service, as on a laptop."""
    imds = Imds(endpoint)
    try:
        type, market = (imds.get(name) for name in ("instance-type", "instance-life-cycle"))
    except httpx.HTTPError:
        return Machine()
    return Machine(type or UNKNOWN, market or UNKNOWN)
