"""`python -m tests.faults.simulation SEED [COUNT]`: replays schedules by their seeds, and says what is wrong."""

import sys
import time
from collections import Counter

from tests.faults.simulation.plan import draw
from tests.faults.simulation.simulate import simulate


def main(first: int, count: int = 1) -> int:
    if count == 1:
        print(draw(first))
    began = time.process_time()
    result = simulate(range(first, first + count))
    rate = count / (time.process_time() - began)
    print(f"{count} schedules, {rate:.0f} a second, {result.steps / count:.0f} steps each")
    for kind, number in Counter(word.split("(")[0] for all in result.violations.values() for word in all).most_common():
        print(f"{number:6} {kind}")
    for seed, words in list(result.violations.items())[:10]:
        print(f"seed {seed}: {'; '.join(words)}")
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
