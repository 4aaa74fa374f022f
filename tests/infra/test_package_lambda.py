"""The functions' zips: the same bytes from the same inputs, with what a function needs and nothing else."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from infra.scripts.lib import package_lambda


def test_neither_times_nor_order_nor_modes_of_files_reach_the_zip(tmp_path: Path) -> None:
    outputs = []
    for number, names in enumerate((["b.py", "a.py"], ["a.py", "b.py"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            path = folder / name
            path.write_text(f"# {name}")
            path.chmod(0o600 if number else 0o755)
            os.utime(path, (number * 10**9, number * 10**9))
        output = tmp_path / f"{number}.zip"
        package_lambda.write_zip(output, list(package_lambda.files(folder)))
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("program", package_lambda.PROGRAMS)
def test_every_service_the_function_talks_to_keeps_its_model(program: str) -> None:
    sources = [path.read_text() for _, path in package_lambda.own_files(program)]
    used = {name for source in sources for name in re.findall(r'\.(?:client|resource)\(\s*"(\w+)"', source)}
    assert used
    assert used <= package_lambda.SERVICES


@pytest.mark.integration
@pytest.mark.parametrize(
    ("program", "handler"), [("router", "router_lambda/handler.py"), ("launcher", "batch_worker/launcher.py")]
)
def test_two_builds_give_the_same_zip_and_it_holds_only_the_function(
    program: str, handler: str, tmp_path: Path
) -> None:
    runtime = f"python{sys.version_info.major}.{sys.version_info.minor}"

    def build(name: str) -> str:
        output = tmp_path / name
        command = [sys.executable, package_lambda.__file__, program, "--runtime", runtime, "--architecture", "x86_64"]
        done = subprocess.run([*command, "--output", output], capture_output=True, text=True, check=True)
        return done.stdout

    assert build("one.zip") == build("two.zip")
    names = zipfile.ZipFile(tmp_path / "one.zip").namelist()
    assert {handler, "shared/keys.py", "shared/prices.json", "boto3/__init__.py"} <= set(names)
    others = "batch_worker" if program == "router" else "router_lambda"
    beside = rf"\.pyc$|__pycache__|/tests/|dist-info|^(gpu_server|torch|{others})"
    assert not [name for name in names if re.search(beside, name)]
    assert (tmp_path / "one.zip").stat().st_size < 15_000_000
