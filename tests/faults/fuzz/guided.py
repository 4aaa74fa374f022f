"""Coverage-guided fuzzing of the parsers: atheris keeps whatever input reaches new code, and goes on from there.

It owns its process, so `fuzz` starts one: `python -m tests.faults.fuzz.guided TARGET …libFuzzer's options`.
"""

import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

INSTRUMENTED = ["shared", "gpu_server", "tests.faults.fuzz.targets"]
AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
WHY_NOT = "atheris has wheels for Linux on x86_64 only"
MAX_BYTES = 16 << 10  # of an input
INPUT_SECONDS = 20  # that one input may take
MEMORY_MB = 2048
GRACE_SECONDS = 120.0  # to start and to end


@dataclass(frozen=True)
class Guided:
    """How a run ended: inputs tried, branches reached, and the input that broke a rule, with its traceback."""

    inputs: int
    branches: int
    breaker: bytes | None
    words: str


def fuzz(target: str, seeds: list[bytes], folder: Path, *, runs: int = -1, seconds: int = 0, seed: int) -> Guided:
    """Try `runs` inputs, or go on for `seconds`; `folder` keeps what was found."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(content)
    words = folder / "words"
    words.write_text("\n".join(sorted(_words(seeds))) + "\n")
    options = {
        "runs": runs,
        "max_total_time": seconds,
        "seed": seed,
        "max_len": MAX_BYTES,
        "timeout": INPUT_SECONDS,
        "rss_limit_mb": MEMORY_MB,
        "artifact_prefix": f"{folder}/found-",
        "dict": words,
        "print_final_stats": 1,
        "verbosity": 1,
    }
    command = [sys.executable, "-m", __name__, target, corpus, *(f"-{name}={value}" for name, value in options.items())]
    timeout = seconds + GRACE_SECONDS if seconds else None
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    said = ended.stdout + ended.stderr
    found = sorted(folder.glob("found-*"))
    if ended.returncode and not found:
        raise RuntimeError(f"atheris ended with status {ended.returncode}: {said[-2000:]}")
    return Guided(
        inputs=_number(r"stat::number_of_executed_units: (\d+)", said),
        branches=_number(r"cov: (\d+)", said),
        breaker=found[0].read_bytes() if found else None,
        words=said[-3000:] if found else "",
    )


def _number(pattern: str, said: str) -> int:
    """The last such number."""
    return int(["0", *re.findall(pattern, said)][-1])


def _words(seeds: list[bytes]) -> set[str]:
    """Names and values in JSON seeds, as libFuzzer's dictionary: mutations put them elsewhere."""
    quoted = {word for seed in seeds for word in re.findall(rb'"[ -!#-\[\]-~]{1,60}"', seed) if seed.startswith(b"{")}
    return {'"' + word.decode().replace('"', '\\"') + '"' for word in quoted}


def main() -> None:
    import atheris

    target, *options = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.faults.fuzz import targets
    atheris.Setup([sys.argv[0], *options], getattr(targets, target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
