"""The README is true: its commands are run here, in its order, as they stand."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from infra.local import stack
from tests.integration.conftest import System

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**stack.without_aws(os.environ), **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_every_make_command_of_the_readme_is_in_the_help() -> None:
    text = (ROOT / "README.md").read_text()
    listed = shell("make help").stdout
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}\s", listed, re.MULTILINE), target


def test_the_demo_comes_out_right(tmp_path: Path) -> None:
    done = shell("make demo", LOCAL_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost: 0" in done.stdout
    assert not list(tmp_path.glob("**/state.json"))  # nothing keeps running


def test_the_local_stack_is_used_as_the_readme_says(tmp_path: Path) -> None:
    """`make up`, the curl and aws lines, `make worker`, `make down`; one shell after the other, like a person."""
    up, *uses, last = [block for block in BLOCKS if not block.startswith(("make demo", "make test"))]
    home = {"LOCAL_HOME": str(tmp_path)}
    settings = f"source {tmp_path}/env\n"
    try:
        started = shell(up.replace(".local/env", f"{tmp_path}/env"), **home)
        assert started.returncode == 0, started.stdout + started.stderr
        printed = [line.strip() for line in started.stdout.splitlines() if line.startswith("  ") and "✓" not in line]
        assert any(line.startswith("curl ") for line in printed)
        assert any(" s3 cp " in line for line in printed)
        for commands in ["\n".join(printed), *(settings + block for block in uses)]:
            done = shell(commands)
            assert done.returncode == 0, done.stdout + done.stderr
            assert '"type":"/problems' not in done.stdout
        assert uses
        again = shell(settings + up.splitlines()[0], **home)  # as the README says: at any time, in the same shell
        assert again.returncode == 0, again.stdout + again.stderr
        assert shell(last, **home).returncode == 0
    finally:
        shell("make down", **home)


@pytest.mark.usefixtures("system")
def test_the_scripts_explain_themselves(system: System) -> None:
    for script in sorted((ROOT / "infra/scripts").glob("step-*.sh")):
        done = shell(f"bash {script} --help")
        assert done.returncode == 0
        assert "Usage:" in done.stdout + done.stderr
