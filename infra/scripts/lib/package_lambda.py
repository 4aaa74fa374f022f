"""Builds a function's zip: pinned dependencies for Lambda's platform, our two packages, the same bytes every time.

Prints the SHA-256 of the zip as Lambda shows it (base64). Dependencies are kept in .build/lambda/ and installed
again only when the pins, the runtime or the architecture change.
"""

# ruff: noqa: T201  printing is what the scripts run this for

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "requirements/lambda.txt"
PROGRAMS = {"router": ("router_lambda", "shared"), "launcher": ("batch_worker", "shared")}

# botocore brings the models of 400 services, 90 % of the zip. The functions talk to these.
SERVICES = frozenset({"autoscaling", "cloudwatch", "ec2", "events", "s3", "sqs", "ssm", "sts"})

PLATFORMS = {
    "x86_64": ("manylinux2014_x86_64", "manylinux_2_28_x86_64"),
    "arm64": ("manylinux2014_aarch64", "manylinux_2_28_aarch64"),
}

EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip can hold
LAYOUT = "2"  # part of the cache's name: to be changed with what `install` leaves out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=sorted(PROGRAMS))
    parser.add_argument("--runtime", required=True, help="python3.13")
    parser.add_argument("--architecture", required=True, choices=sorted(PLATFORMS))
    parser.add_argument("--native", action="store_true", help="wheels for this machine, to run on a local emulator")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    dependencies = installed(arguments.runtime.removeprefix("python"), arguments.architecture, native=arguments.native)
    write_zip(arguments.output, [*files(dependencies), *own_files(arguments.program)])
    print(base64.b64encode(hashlib.sha256(arguments.output.read_bytes()).digest()).decode())


def installed(version: str, architecture: str, *, native: bool = False) -> Path:
    """The folder with the dependencies; made if there is none for exactly these inputs."""
    inputs = (REQUIREMENTS.read_bytes(), version, architecture, native, LAYOUT, sorted(SERVICES))
    folder = ROOT / ".build/lambda" / hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        target = Path(scratch) / "packages"
        install(target, version, () if native else PLATFORMS[architecture])
        prune(target)
        try:
            target.rename(folder)
        except OSError:  # another run was faster; its folder holds the same
            if not folder.exists():
                raise
    return folder


def install(target: Path, version: str, platforms: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--require-hashes", "--only-binary=:all:", "--no-deps", "--no-compile", "--target", str(target)]
    command += ["--implementation", "cp", "--python-version", version]
    for platform in platforms:
        command += ["--platform", platform]
    done = subprocess.run([*command, "-r", str(REQUIREMENTS)], stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"pip could not install {REQUIREMENTS.relative_to(ROOT)} for Python {version}")


def prune(target: Path) -> None:
    """Remove what a function never reads: tests, examples, commands, installers' records, other services' models."""
    for path in sorted(target.rglob("*"), key=lambda path: len(path.parts)):
        if path.is_dir() and (path.name in ("tests", "__pycache__", "examples") or path.suffix == ".dist-info"):
            shutil.rmtree(path)
    shutil.rmtree(target / "bin", ignore_errors=True)
    for models in (target / "botocore/data", target / "boto3/data"):
        for service in models.iterdir() if models.is_dir() else ():
            if service.is_dir() and service.name not in SERVICES:
                shutil.rmtree(service)


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            yield path.relative_to(folder).as_posix(), path


def own_files(program: str) -> Iterator[tuple[str, Path]]:
    for package in PROGRAMS[program]:
        for path in (*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.json")):
            yield path.relative_to(ROOT).as_posix(), path


def write_zip(output: Path, entries: list[tuple[str, Path]]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f"{output.name}.{os.getpid()}")
    with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, path in sorted(entries):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix: the next line is a mode
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
    scratch.replace(output)


if __name__ == "__main__":
    main()
