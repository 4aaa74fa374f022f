"""What holds for the project as a whole."""

import ast
import re
from pathlib import Path

import pytest

from batch_worker.launcher_settings import LauncherSettings
from batch_worker.settings import WorkerSettings
from gpu_server.settings import ServerSettings
from router_lambda.settings import RouterSettings

ROOT = Path(__file__).parents[1]
SERVICES = {"router_lambda", "gpu_server", "batch_worker", "cli"}
PROGRAMS = SERVICES | {"shared"}
HEAVY = {"torch", "whisperx", "faster_whisper", "ctranslate2", "pyannote"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(PROGRAMS))
def test_imports_go_one_way(package: str) -> None:
    """Services import shared and never each other; shared imports nobody. An operator's commands use the worker's."""
    allowed = {"shared": set(), "cli": {"shared", "batch_worker"}}
    others = PROGRAMS - {package} - allowed.get(package, {"shared"})
    for path in (ROOT / package).rglob("*.py"):
        assert not imports(path) & others, path


def test_only_the_engines_know_their_libraries() -> None:
    for path in ROOT.glob("*/**/*.py"):
        if path.parts[len(ROOT.parts)] in PROGRAMS and "engines" not in path.parts:
            assert not imports(path) & HEAVY, path


def test_the_lambda_is_light() -> None:
    for package in ("router_lambda", "shared"):
        for path in (ROOT / package).rglob("*.py"):
            assert not imports(path) & {"numpy", "av", "fastapi", "pebble"}, path


def test_every_setting_is_in_the_example_and_the_example_has_no_other() -> None:
    documented = set(re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    programs = (RouterSettings, ServerSettings, WorkerSettings, LauncherSettings)
    fields = {name.upper() for settings in programs for name in settings.model_fields}
    check = (ROOT / "infra/scripts/step-001-validate-configuration.sh").read_text()
    of_scripts = set(re.findall(r"^matches ([A-Z][A-Z0-9_]+) ", check, re.MULTILINE))
    assert fields | of_scripts == documented


def test_requirements_are_hashed_and_record_no_host() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text, path
        pins = re.findall(r"^[A-Za-z0-9._-]+==", text, re.MULTILINE)
        assert len(pins) == len(re.findall(r"^[A-Za-z0-9._-]+==.*\\\n(?:    --hash=sha256:)", text, re.MULTILINE)), path


def test_every_make_target_is_in_the_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony.group(1).split()) == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
