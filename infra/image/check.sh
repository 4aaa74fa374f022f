#!/usr/bin/env bash
# Usage: infra/image/check.sh   (make image-check)
# Builds Dockerfile.gpu with buildah, without any daemon, and asks the running container for a transcript. The base image
# comes from its registry, or is made here (base.sh) where none can be reached. pip's configuration and the CA bundle of
# this machine are mounted for the build only. KEEP=1 leaves the layers for the next run.
set -euo pipefail
umask 022

ROOT=$(cd "$(dirname "$0")/../.." && pwd)
HERE=$ROOT/infra/image
WORK=$ROOT/.build/image-check
IMAGE=localhost/transcription-server:check
NEEDED_GB=40
PYTHON=$ROOT/.venv/bin/python
[[ -x $PYTHON ]] || PYTHON=python3

say() { printf '%4d s  %s\n' "$SECONDS" "$*" >&2; }

stop() {
  printf 'failed  %s\n' "$1" >&2
  exit 1
}

store() { buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver "$DRIVER" "$@"; }

# Without daemon and privileges of one: a chroot. The network is this machine's.
run() { store run --isolation chroot "$@"; }

finish() {
  local status=$?
  trap - EXIT
  [[ -z ${SERVER:-} ]] || kill -- "-$SERVER" 2>/dev/null || true
  [[ -z ${SERVER:-} ]] || wait "$SERVER" 2>/dev/null || true
  store unmount --all >/dev/null 2>&1 || true
  store rm --all >/dev/null 2>&1 || true
  if ! unmount; then # to remove through a mount would remove this machine's own files
    say "$WORK is left: something in it is still mounted"
  elif [[ -z ${KEEP:-} ]]; then
    rm -rf "$WORK"
  fi
  exit "$status"
}

# unmount: the container's buildah outlives it for a moment, and mounts its storage once more to tidy up.
unmount() {
  local deadline=$((SECONDS + 30))
  while pgrep -f -- "--root $WORK/storage" >/dev/null || grep -qF " $WORK/" /proc/self/mounts; do
    ((SECONDS < deadline)) || return 1
    umount "$WORK/storage/overlay" 2>/dev/null || sleep 1
  done
}

# Tools, room ---------------------------------------------------------------------------------------------------------

missing=
for tool in buildah curl; do
  command -v "$tool" >/dev/null || missing="$missing $tool"
done
[[ -z $missing ]] || stop "missing:$missing (Debian, Ubuntu: sudo apt-get install$missing)"
[[ $(id -u) == 0 ]] || stop "containers without a daemon need root here: sudo make image-check"
mkdir -p "$WORK/tmp"
free=$(df -Pk "$WORK" | awk 'NR == 2 {print int($4 / 1048576)}')
((free >= NEEDED_GB)) || stop "$free GB are free in $WORK, $NEEDED_GB GB are needed"
export TMPDIR=$WORK/tmp # layers on their way are larger than many a /tmp
DRIVER=overlay
store info >/dev/null 2>&1 || DRIVER=vfs
trap finish EXIT

# Base image ----------------------------------------------------------------------------------------------------------

tag=$(sed -n 's/^ARG PYTHON=//p' "$ROOT/Dockerfile.gpu")
tag=${tag%%@*} # made here it has another digest than the real one
version=$(cut -d. -f1,2 <<<"$tag")
if store inspect --type image "python:$tag" >/dev/null 2>&1; then
  say "base image python:$tag is here"
elif store pull -q "python:$tag" >/dev/null 2>"$WORK/pull"; then
  say "base image python:$tag is the registry's"
else
  say "no base image from a registry ($(tail -n 1 "$WORK/pull")): making one of this machine's mirror and Python"
  rm -rf "$WORK/base"
  bash "$HERE/base.sh" "$WORK/base" "$version" "${tag##*-}"
  container=$(store from scratch)
  store copy -q "$container" "$WORK/base" / >/dev/null
  store config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 "$container"
  store commit -q --rm --format docker "$container" "python:$tag" >/dev/null
  rm -rf "$WORK/base"
  say "base image python:$tag made here"
fi

# Build ---------------------------------------------------------------------------------------------------------------

mounts=(--volume "$WORK/pip.conf:/etc/pip.conf:ro")
while IFS= read -r path; do
  mounts+=(--volume "$path:$path:ro")
done < <("$PYTHON" "$HERE/pip_config.py" "$WORK/pip.conf")
say "building with $(buildah --version), $DRIVER"
store build --isolation chroot --format docker --pull-never --build-arg "PYTHON=$tag" "${mounts[@]}" \
  --file "$ROOT/Dockerfile.gpu" --tag "$IMAGE" "$ROOT" >&2 || stop "the image was not built: see above"
say "image built: $(store images --format '{{.Size}}' "$IMAGE")"

# Run -----------------------------------------------------------------------------------------------------------------

words() { store inspect --type image --format "{{range $1}}{{println .}}{{end}}" "$IMAGE" | sed '/^$/d'; }
mapfile -t command < <(words .OCIv1.Config.Cmd)
mapfile -t health < <(words .Docker.Config.Healthcheck.Test)
port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
key=for-this-check-only
container=$(store from --pull-never "$IMAGE")
settings=(--env "API_KEY=$key" --env "FAST_API_PORT=$port")

run "$container" -- python -m batch_worker --help >/dev/null || stop "the worker does not start in the container"
set -m # a group of its own, to end with all its children
run "${settings[@]}" "$container" -- "${command[@]}" >"$WORK/server.log" 2>&1 &
SERVER=$!
set +m
deadline=$((SECONDS + 300))
until run "${settings[@]}" "$container" -- "${health[@]:1}" >"$WORK/health" 2>&1; do # the first word is CMD
  if ! kill -0 "$SERVER" 2>/dev/null || ((SECONDS > deadline)); then
    tail -n 20 "$WORK/server.log" >&2
    stop "the container does not get well: $(tail -n 1 "$WORK/health")"
  fi
  sleep 2
done
say "the container is well: its health check says so"
text=$(curl -sS --fail-with-body -H "X-API-Key: $key" -F "file=@$ROOT/tests/data/hello.wav" \
  "http://127.0.0.1:$port/transcribe" | tee "$WORK/answer" |
  "$PYTHON" -c 'import json, sys; answer = json.load(sys.stdin); print(answer["engine"], "heard:", answer["text"].strip())') ||
  stop "no transcript: $(cat "$WORK/answer")"
say "$text"
[[ $text == *"Hello and welcome. This is a short test."* ]] || stop "that is not what hello.wav says"
# The user may write nowhere but in /tmp, so a read-only root is no loss.
written=$(find "$(store mount "$container")" -xdev -user 10001 -not -path '*/tmp/*' -not -path '*/tmp' | head -n 5)
[[ -z $written ]] || stop "the server wrote outside /tmp: $written"
say "image-check: the image builds, and its container transcribes"
