"""The image: what goes into it, its repository, and the steps that build and push it with stand-in programs."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

from infra.local import stack
from tests.infra.conftest import SCRIPTS, Aws, Step

ROOT = stack.ROOT
PREFIX = "image-test"  # beside what other tests deploy to the same local AWS
REPOSITORY = f"{PREFIX}-server"
DOCKERFILE = (ROOT / "Dockerfile.gpu").read_text()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tag = load(ROOT / "infra/image/tag.py")

# What goes into it ---------------------------------------------------------------------------------------------------


def sources() -> list[str]:
    """What the Dockerfile copies from the project."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [word for words in copied for word in words.split()]


def ignored(path: Path) -> bool:
    """As docker reads .dockerignore: the last line that matches the path, or a folder above it, decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        regex = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(regex, str(one)) for one in (path, *path.parents[:-1])):  # all but the root
            verdict = not line.startswith("!")
            assert verdict or "*" not in line, "builders other than BuildKit do not go down into folders for a pattern"
    return verdict


def test_the_image_gets_exactly_what_its_dockerfile_copies() -> None:
    copied: set[str] = set()
    for source in map(Path, sources()):
        assert (ROOT / source).exists(), source
        below = (ROOT / source).rglob("*") if (ROOT / source).is_dir() else [ROOT / source]
        copied |= {str(path.relative_to(ROOT)) for path in below if path.is_file() and path.suffix != ".pyc"}
    folders = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    files = [path.relative_to(ROOT) for folder in folders for path in (folder, *folder.rglob("*")) if path.is_file()]

    let_in = {str(path) for path in files if not ignored(path)}

    assert let_in == copied
    assert {"Dockerfile.gpu", *let_in} == set(tag.context(ROOT))
    assert {"gpu_server/__main__.py", "batch_worker/__main__.py", "gpu_server/engines/__init__.py"} <= let_in
    for secret in (".env", ".local/env", "infra/x.py", "shared/.env", "tests/shared/a.py"):
        assert ignored(Path(secret))


def test_the_image_is_pinned_runs_as_nobody_and_knows_whether_it_is_well() -> None:
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:${PYTHON}"}
    assert "--require-hashes -r /requirements/gpu.txt" in DOCKERFILE
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*/opt/healthcheck.py", DOCKERFILE, re.MULTILINE)


def test_the_tag_changes_with_what_goes_in_and_with_nothing_else(tmp_path: Path) -> None:
    for name in [*tag.context(ROOT), ".dockerignore"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    model = ["WHISPER_MODEL=tiny.en"]
    first = tag.tag(tmp_path, model)
    assert first == tag.tag(ROOT, model)
    assert re.fullmatch("[0-9a-f]{16}", first)

    os.utime(tmp_path / "shared/keys.py", (0, 0))
    (tmp_path / "README.md").write_text("not in the image")
    (tmp_path / "shared/__pycache__").mkdir(exist_ok=True)
    (tmp_path / "shared/__pycache__/keys.pyc").write_text("nor this")
    assert tag.tag(tmp_path, model) == first

    assert tag.tag(tmp_path, ["WHISPER_MODEL=small"]) != first
    for name in ("requirements/gpu.txt", "Dockerfile.gpu", "batch_worker/work.py"):
        before = tag.tag(tmp_path, model)
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        assert tag.tag(tmp_path, model) != before
    (tmp_path / "gpu_server/engines/new.py").touch()
    assert tag.tag(tmp_path, model) != before


@pytest.mark.parametrize(
    ("status", "reason", "well"),
    [(200, None, 0), (503, "saturated", 0), (503, "draining", 0), (503, "loading", 1), (503, "broken", 1)],
)
def test_a_container_is_well_when_its_server_works_be_it_full(
    status: int, reason: str | None, well: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"reason": reason}).encode())

    health = load(ROOT / "infra/image/healthcheck.py")
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        monkeypatch.setenv("FAST_API_PORT", str(server.server_port))
        Thread(target=server.handle_request).start()
        assert health.main() == well
    assert health.main() == 1  # nobody answers


@pytest.mark.parametrize("name", ["base.sh", "check.sh", "tools.sh"])
def test_a_script_of_the_image_parses(name: str) -> None:
    subprocess.run(["bash", "-n", ROOT / "infra/image" / name], check=True)


def test_image_check_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    done = subprocess.run(
        ["bash", ROOT / "infra/image/check.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "missing: buildah curl (Debian, Ubuntu: sudo apt-get install buildah curl)" in done.stderr


# Stand-in programs ---------------------------------------------------------------------------------------------------

# One program for docker, podman and buildah: an image is a file in $STORE, and to push is to put its manifest where the
# emulator's registry is (MiniStack speaks the registry's protocol at its own endpoint).
TOOL = r"""#!/usr/bin/env bash
set -eu
me=$(basename "$0")
printf '%s %s\n' "$me" "$*" >>"$STORE/calls"
last=${@: -1}
file=$STORE/$(printf '%s' "$last" | tr '/:' '__')
case "$1" in
  info)
    [[ ! -e $STORE/no-daemon ]] || { echo "Cannot connect to the daemon" >&2; exit 1; }
    [[ $# == 1 ]] || echo "$STORE"
    ;;
  build)
    umask >"$STORE/umask"
    printf '%s' "${BUILDX_NO_DEFAULT_ATTESTATIONS:-}" >"$STORE/attestations"
    while [[ $1 != --tag ]]; do shift; done
    printf '{"schemaVersion":2,"built":"%s"}' "$2" >"$STORE/$(printf '%s' "$2" | tr '/:' '__')"
    ;;
  inspect) [[ -e $file ]] ;;
  image)
    [[ -e $file ]] || exit 1
    [[ $* != *RepoDigests* ]] || echo "${last%:*}@sha256:$(sha256sum "$file" | cut -d' ' -f1)"
    ;;
  login) cat >"$STORE/password" ;;
  push)
    [[ -e $STORE/password ]] || { echo "no basic auth credentials" >&2; exit 1; }
    name=${last#*/}
    curl -sSf -o /dev/null -X PUT -H "Host: ${last%%/*}" --data-binary "@$file" \
      "$AWS_ENDPOINT_URL/v2/${name%:*}/manifests/${name##*:}"
    [[ $2 != --digestfile ]] || printf 'sha256:%s' "$(sha256sum "$file" | cut -d' ' -f1)" >"$3"
    ;;
  *) echo "unknown: $*" >&2; exit 1 ;;
esac
"""

# What df says, but for the free kilobytes: how full the disk of the tests is must not decide them.
DF = r"""#!/usr/bin/env bash
free=100000000
[[ ! -e $STORE/small-disk ]] || free=12900000
%s "$@" | awk -v free=$free 'NR == 2 {$4 = free} 1'
"""

Tools = Callable[..., dict[str, str]]


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    """Puts stand-ins by these names on a PATH that has no real one; returns the environment to use."""
    folder, store = tmp_path / "bin", tmp_path / "store"
    folder.mkdir()
    store.mkdir()
    others = ["bash", "basename", "dirname", "cat", "mktemp", "mkdir", "mv", "rm", "sed", "grep", "cut", "tr", "wc"]
    for name in [*others, "awk", "git", "sha256sum", "curl"]:
        (folder / name).symlink_to(shutil.which(name) or "")

    def install(*names: str) -> dict[str, str]:
        for name, text in {**dict.fromkeys(names, TOOL), "df": DF % shutil.which("df")}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        return {"PATH": str(folder), "STORE": str(store), "PYTHON": sys.executable, "ENV_FILE": str(tmp_path / "env")}

    return install


def calls(environment: dict[str, str], first: str = "") -> list[str]:
    path = Path(environment["STORE"]) / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if first in line]


# The steps, against the emulator -------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_repository_is_made_kept_and_brought_back_and_the_image_gets_into_it(
    environment: dict[str, str], aws: Aws, tools: Tools, tmp_path: Path
) -> None:
    ecr = aws("ecr")
    step = Step(tmp_path / "env", {**environment, "QUEUE_PREFIX": PREFIX, **tools("docker")})
    place = step.environment

    def ours() -> dict[str, object]:
        (found,) = ecr.describe_repositories(repositoryNames=[REPOSITORY])["repositories"]
        return {**found, "lifecycle": ecr.get_lifecycle_policy(repositoryName=REPOSITORY)["lifecyclePolicyText"]}

    assert step("301").returncode == 0
    made = ours()
    assert made["imageTagMutability"] == "IMMUTABLE"
    assert made["imageScanningConfiguration"] == {"scanOnPush": True}
    assert made["encryptionConfiguration"] == {"encryptionType": "AES256"}
    assert step.settings()["FAST_API_ECR_REPOSITORY_URI"] == made["repositoryUri"]
    untagged, kept = json.loads(str(made["lifecycle"]))["rules"]
    assert (untagged["selection"]["tagStatus"], untagged["selection"]["countNumber"]) == ("untagged", 1)
    assert (kept["selection"]["countType"], kept["selection"]["countNumber"]) == ("imageCountMoreThan", 10)

    # Built, pushed, read back.
    built, pushed = step("312"), step("313")
    assert built.returncode == pushed.returncode == 0, built.stderr + pushed.stderr
    image = f"{made['repositoryUri']}:{step.settings()['FAST_API_TAG']}"
    (build,) = calls(place, "docker build")
    for part in ("--platform linux/amd64", f"--tag {image}", "--build-arg WHISPER_MODEL=tiny.en", "image.revision="):
        assert part in build
    assert "--format" not in build  # docker knows no such flag
    store = Path(place["STORE"])
    assert (store / "umask").read_text().strip() == "0022"
    assert (store / "attestations").read_text() == "1"
    password = (store / "password").read_text().strip()
    assert password
    assert password not in "\n".join(calls(place)) + pushed.stdout + pushed.stderr
    (stored,) = ecr.describe_images(repositoryName=REPOSITORY)["imageDetails"]
    assert stored["imageTags"] == [step.settings()["FAST_API_TAG"]]
    assert stored["imageDigest"] in pushed.stderr

    # A person's click is seen, and undone.
    ecr.put_image_tag_mutability(repositoryName=REPOSITORY, imageTagMutability="MUTABLE")
    ecr.put_image_scanning_configuration(repositoryName=REPOSITORY, imageScanningConfiguration={"scanOnPush": False})
    ecr.delete_lifecycle_policy(repositoryName=REPOSITORY)
    found = step("302")
    assert found.returncode == 1
    for words in ("imageTagMutability is MUTABLE", "scanOnPush is False", "the lifecycle policy is not as"):
        assert words in found.stderr
    assert "next  infra/scripts/step-301-setup-ecr-repository.sh" in found.stderr
    assert step("301").returncode == 0
    assert ours() == made
    done = step("302")
    assert done.returncode == 0, done.stderr


# What can go wrong, with a stand-in for AWS ---------------------------------------------------------------------------

URI = f"111111111111.dkr.ecr.us-east-2.amazonaws.com/{REPOSITORY}"

# Answers the calls of the steps; ANSWER_<call> in the environment says how, and an empty one is AWS's "not found".
CLOUD = r"""#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift 2; done
printf 'aws %s %s\n' "$1" "$2" >>"$STORE/calls"
case "$2" in
  get-caller-identity) printf '111111111111\tarn:aws:iam::111111111111:user/u\n'; exit ;;
  get-login-password) echo secret; exit ;;
esac
name=ANSWER_${2//-/_}
[[ $* != *imageDigest=* ]] || name=ANSWER_by_digest
[[ -n ${!name:-} ]] || { echo "An error occurred (SomethingNotFoundException) when calling" >&2; exit 254; }
if [[ ${!name} == *Exception* ]]; then
  echo "An error occurred (${!name}): User: u is not authorized to perform: ecr:X" >&2
  exit 254
fi
printf '%s\n' "${!name}"
"""


@pytest.fixture
def cloud(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    program = tmp_path / "cloud"
    program.write_text(CLOUD)
    program.chmod(0o755)
    (tmp_path / "env").write_text(
        f"AWS_REGION=us-east-2\nQUEUE_PREFIX={PREFIX}\nFAST_API_ECR_REPOSITORY_URI={URI}\nFAST_API_TAG=t1\n"
    )

    def run(number: str, environment: dict[str, str], *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        (script,) = SCRIPTS.glob(f"step-{number}-*.sh")
        settings = {"AWS_CLI": str(program), **environment, **more}
        return subprocess.run(["bash", script, *arguments], env=settings, capture_output=True, text=True, check=False)

    return run


Cloud = Callable[..., subprocess.CompletedProcess[str]]


def test_somebody_elses_repository_is_refused_and_stays_as_it_is(cloud: Cloud, tools: Tools) -> None:
    place = tools()
    theirs = {"ANSWER_describe_repositories": f"{URI}\tMUTABLE\tFalse", "ANSWER_list_tags_for_resource": "other"}
    done = cloud("301", place, **theirs)
    assert done.returncode == 1
    assert f"{REPOSITORY} belongs to something else" in done.stderr
    assert "choose another QUEUE_PREFIX" in done.stderr
    assert not [call for call in calls(place) if " put-" in call or " create-" in call]


def test_no_permission_is_not_taken_for_no_repository(cloud: Cloud, tools: Tools) -> None:
    place = tools()
    done = cloud("301", place, ANSWER_describe_repositories="AccessDeniedException")
    assert done.returncode == 1
    assert "not authorized" in done.stderr
    assert not calls(place, "create-repository")


def test_a_dry_run_prints_the_commands_and_runs_none(cloud: Cloud, tools: Tools) -> None:
    place = tools("docker")
    made, built, pushed = (cloud(number, place, "--dry-run") for number in ("301", "312", "313"))
    assert [done.returncode for done in (made, built, pushed)] == [0, 0, 0], made.stderr + built.stderr + pushed.stderr
    assert "would run: aws ecr create-repository" in made.stderr
    assert "would run: docker build --platform linux/amd64" in built.stderr
    assert "would write FAST_API_TAG" in built.stderr
    assert "aws ecr get-login-password | docker login --username AWS --password-stdin 1111" in pushed.stderr
    assert f"would run: docker push {URI}:t1" in pushed.stderr
    assert not calls(place, "docker")
    assert not calls(place, "create-repository")


@pytest.mark.parametrize(
    ("installed", "settings", "spoiled", "words"),
    [
        ((), {}, "", "there is no docker, podman or buildah on PATH"),
        (("podman",), {"CONTAINER_TOOL": "docker"}, "", "there is no docker on PATH"),
        (("docker",), {"CONTAINER_TOOL": "make"}, "", "expected docker, podman or buildah"),
        (("docker", "buildah"), {}, "no-daemon", "mostly its daemon is not running"),
        (("podman",), {}, "small-disk", "12 GB are free, 30 GB are needed"),
    ],
)
def test_a_build_that_cannot_work_says_why_and_what_to_do(
    installed: tuple[str, ...], settings: dict[str, str], spoiled: str, words: str, cloud: Cloud, tools: Tools
) -> None:
    place = tools(*installed)
    if spoiled:
        (Path(place["STORE"]) / spoiled).touch()
    done = cloud("312", place, **settings)
    assert done.returncode == 1
    assert words in done.stderr
    assert "next  " in done.stderr
    assert not calls(place, " build")


def test_what_is_in_the_repository_is_neither_built_nor_pushed_again(cloud: Cloud, tools: Tools) -> None:
    place = tools("docker")
    there = {"ANSWER_describe_images": "sha256:1", "ANSWER_by_digest": "4200000000"}
    built, pushed = cloud("312", place, **there), cloud("313", place, **there)
    assert built.returncode == pushed.returncode == 0, built.stderr + pushed.stderr
    assert "nothing changed" in built.stderr
    assert "nothing to push" in pushed.stderr
    assert not calls(place, "docker")


@pytest.mark.parametrize("tool", ["podman", "buildah"])
def test_without_docker_another_builds_the_same_image_and_pushes_it(tool: str, cloud: Cloud, tools: Tools) -> None:
    place = tools(tool)
    built = cloud("312", place, WHISPER_MODEL="small")
    assert built.returncode == 0, built.stderr
    (build,) = calls(place, f"{tool} build")
    assert "--format docker --layers" in build  # for the health check, and to push what changed alone
    assert "--build-arg WHISPER_MODEL=small" in build
    again = cloud("312", place, WHISPER_MODEL="small")
    assert f"nothing changed: {tool} has" in again.stderr
    assert len(calls(place, f"{tool} build")) == 1

    (Path(place["PATH"]) / "curl").unlink()  # the registry of this test takes everything
    (Path(place["PATH"]) / "curl").symlink_to(shutil.which("true") or "")
    answers = {"ANSWER_describe_repositories": URI, "ANSWER_by_digest": "4200000000", "AWS_ENDPOINT_URL": "http://here"}
    written = re.search(r"^FAST_API_TAG=(.*)$", Path(place["ENV_FILE"]).read_text(), re.MULTILINE)
    assert written
    pushed = cloud("313", place, **answers)
    assert pushed.returncode == 0, pushed.stderr
    assert re.search(rf"{URI}:{written[1]}: sha256:[0-9a-f]{{64}}, 4200 MB", pushed.stderr)


def test_a_push_needs_the_image_the_right_account_and_is_not_believed_unseen(cloud: Cloud, tools: Tools) -> None:
    place = tools("podman")
    store = Path(place["STORE"])
    done = cloud("313", place, ANSWER_describe_repositories=URI)
    assert done.returncode == 1
    assert f"podman has no image {URI}:t1" in done.stderr
    assert "step-312-build-image.sh" in done.stderr

    (store / f"{URI}:t1".replace("/", "_").replace(":", "_")).write_text("{}")
    done = cloud("313", place, ANSWER_describe_repositories=URI.replace("1111", "2222"))
    assert done.returncode == 1
    assert "step-301-setup-ecr-repository.sh" in done.stderr
    assert not calls(place, "podman login")

    (Path(place["PATH"]) / "curl").unlink()
    (Path(place["PATH"]) / "curl").symlink_to(shutil.which("true") or "")
    done = cloud("313", place, ANSWER_describe_repositories=URI, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "the push seemed to work, and the repository says otherwise" in done.stderr
    assert (store / "password").read_text() == "secret\n"
    assert "secret" not in "\n".join(calls(place)) + done.stdout + done.stderr
