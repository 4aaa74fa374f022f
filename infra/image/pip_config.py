"""This machine's pip configuration for a build in a container: one file, and what of this machine it refers to.

Usage: pip_config.py FILE. Writes FILE, and prints the files and folders to mount, each at its own path.
"""

# ruff: noqa: T201  printing is what check.sh runs this for

import ast
import configparser
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Where packages come from, and how to get there; nothing about where they go.
PASSED = frozenset(
    {"index-url", "extra-index-url", "find-links", "no-index", "constraint", "cert", "client-cert", "trusted-host"}
    | {"proxy", "timeout", "default-timeout", "retries"}
)
CA_BUNDLES = (
    os.environ.get("SSL_CERT_FILE", ""),
    "/etc/ssl/certs/ca-certificates.crt",  # Debian and its kin
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora and its kin
)


def main() -> None:
    settings = from_pip()
    settings.setdefault("cert", next((path for path in CA_BUNDLES if Path(path).is_file()), ""))
    written = configparser.RawConfigParser()
    written["global"] = {name: value for name, value in settings.items() if value}
    with Path(sys.argv[1]).open("w") as file:
        written.write(file)
    for path in sorted({path for name, value in settings.items() for path in named(name, value)}):
        print(path)


def named(name: str, value: str) -> Iterator[Path]:
    """The files and folders that a setting names. An index may keep its files beside it, so its parent is meant."""
    for word in value.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            yield path.parent if name.endswith("index-url") else path


def from_pip() -> dict[str, str]:
    """What `pip config list` says, as section.name='value' lines; the environment wins."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    settings: dict[str, str] = {}
    for line in sorted(listed, key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in PASSED:
            settings[name] = str(ast.literal_eval(value))
    return settings


if __name__ == "__main__":
    main()
