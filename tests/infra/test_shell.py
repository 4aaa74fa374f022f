"""Shell code: all of it is linted, and none of it needs more than the bash 3.2 that macOS has."""

import re
import subprocess
from pathlib import Path

from infra.local import stack

# https://tiswww.case.edu/php/chet/bash/NEWS, what came after 3.2 and is easily written without a thought.
NEWER = {
    r"\b(declare|local|typeset) -[a-zA-Z]*[Ang]": "associative arrays, name references, declare -g (4)",
    r"\b(mapfile|readarray|coproc)\b": "mapfile, readarray, coproc (4.0)",
    r"\$\{[A-Za-z_][A-Za-z0-9_]*(\^|,)": "${x^}, ${x,,} (4.0)",
    r"\$\{[A-Za-z_][A-Za-z0-9_]*@[A-Za-z]\}": "${x@Q} (4.4)",
    r"\|&|&>>": "|&, &>> (4.0)",
    r";&": "case with ;& (4.0)",
    r"\$EPOCH|\$SRANDOM|\$BASHPID": "EPOCHSECONDS, SRANDOM (5), BASHPID (4)",
    r"printf [^|]*%\([^)]*\)T": "printf %(…)T (4.2)",
    r"\[\[? -v ": "[[ -v x ]] (4.2)",
    r"\bwait -n\b": "wait -n (4.3)",
    r"\w\[-\d+\]": "negative subscripts (4.2)",
}


LINUX_ONLY = ("infra/instance/", "infra/image/base.sh", "infra/image/check")


def shell_files() -> list[Path]:
    """Every file of the project that a shell runs, whatever it is called."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=stack.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [stack.ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and is_shell(path)]


def is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(200)
    return path.suffix == ".sh" or bool(re.match(rb"#!.*\b(ba)?sh\b", first))


def test_the_linters_read_every_shell_file() -> None:
    files = shell_files()
    assert len(files) > 10
    made = subprocess.run(["make", "-n", "lint"], cwd=stack.ROOT, capture_output=True, text=True, check=True)
    for linter in ("shellcheck", "shfmt"):
        (line,) = [line for line in made.stdout.splitlines() if f"bin/{linter} " in line]
        assert [str(path) for path in files if str(path.relative_to(stack.ROOT)) not in line.split()] == []


def test_what_runs_on_a_persons_machine_needs_no_newer_bash() -> None:
    found = []
    for path in shell_files():
        if str(path.relative_to(stack.ROOT)).startswith(LINUX_ONLY):
            continue
        code = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        found += [(path.name, why, line) for pattern, why in NEWER.items() for line in code if re.search(pattern, line)]
    assert found == []
