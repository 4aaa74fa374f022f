"""One fault at a call to a local AWS, or to the server: some here, every fault at every call in `make faults`."""

from tests.faults.points.suite import Results, apart, on_emulator, singles, spread

OF_EACH_KIND = 1


def test_no_fault_loses_or_spoils_anything(endpoint: str) -> None:
    results = Results()
    cases = spread(apart(singles()), OF_EACH_KIND)
    for run in on_emulator(cases, endpoint):
        results.add(run)
    assert not results.broken, "\n".join(results.broken)
    assert results.runs == len(cases) > 10
