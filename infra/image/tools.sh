# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # what comes from, and goes to, the steps
# What the steps that build and push the image share: the program that does it, and what is where already.

# container_tool: sets TOOL to the first of docker, podman and buildah that is installed; CONTAINER_TOOL picks one.
container_tool() {
  local one
  case ${CONTAINER_TOOL:-} in
    '' | docker | podman | buildah) ;;
    *) fail "CONTAINER_TOOL is '$CONTAINER_TOOL'" "expected docker, podman or buildah" "correct ${ENV_FILE/#$ROOT\//}" ;;
  esac
  TOOL=
  for one in ${CONTAINER_TOOL:-docker podman buildah}; do
    [[ -n $TOOL ]] || ! command -v "$one" >/dev/null || TOOL=$one
  done
  if [[ -n $DRY_RUN ]]; then
    TOOL=${TOOL:-${CONTAINER_TOOL:-docker}}
    return
  fi
  [[ -n $TOOL ]] || fail "there is no ${CONTAINER_TOOL:-docker, podman or buildah} on PATH" "one of them builds the image" \
    "install Docker, or e.g. sudo apt-get install buildah; then infra/scripts/$STEP.sh"
  if ! "$TOOL" info >/dev/null 2>"$SCRATCH/tool"; then
    cat "$SCRATCH/tool" >&2
    fail "$TOOL is installed but does not work" "$TOOL info was refused (above); mostly its daemon is not running" \
      "start it (docker: sudo systemctl start docker, or Docker Desktop), or set CONTAINER_TOOL to another"
  fi
  # A login is for this run only; docker, which has its contexts in the same folder, keeps it the 12 hours it is good for.
  export REGISTRY_AUTH_FILE=$SCRATCH/auth.json
}

# tool ARGUMENTS…: stdout is data, so what the program tells goes to stderr.
tool() {
  if [[ -n $DRY_RUN ]]; then
    printf '  would run: %s' "$TOOL" >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
  else
    "$TOOL" "$@" >&2
  fi
}

built() {
  case $TOOL in
    buildah) buildah inspect --type image "$IMAGE" ;;
    *) "$TOOL" image inspect "$IMAGE" ;;
  esac >/dev/null 2>&1
}

# pushed: whether the repository has FAST_API_TAG; its digest goes to FOUND. An emulator may answer with an empty list
# where AWS says ImageNotFoundException.
pushed() {
  look_up ecr describe-images --repository-name "$ECR_REPOSITORY" --image-ids "imageTag=$FAST_API_TAG" \
    --query 'imageDetails[0].imageDigest' --output text || return 1
  [[ $FOUND != None ]]
}
