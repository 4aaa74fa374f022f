#!/usr/bin/env bash
# Usage: infra/scripts/step-312-build-image.sh [--dry-run] [--yes] [--help]
# Summary: Build the server's image with docker, podman or buildah; nothing changed since the last time: nothing is built.
source "$(dirname "$0")/lib/common.sh"
source "$ROOT/infra/image/tools.sh"
begin "$@"
need FAST_API_ECR_REPOSITORY_URI step-301-setup-ecr-repository
identify

NEEDED_GB=30 # the image, the stage that its packages come from, and what a builder keeps beside them meanwhile
MODEL=${WHISPER_MODEL:-tiny.en}
FAST_API_TAG=$("$PYTHON" "$ROOT/infra/image/tag.py" "$ROOT" "WHISPER_MODEL=$MODEL")
IMAGE=$FAST_API_ECR_REPOSITORY_URI:$FAST_API_TAG

# A full disk shows after half an hour, so it is looked at before. Of a daemon in a virtual machine nothing can be seen.
space() {
  local folder free
  case $TOOL in
    docker) folder=$(docker info --format '{{.DockerRootDir}}') ;;
    podman) folder=$(podman info --format '{{.Store.GraphRoot}}') ;;
    buildah) folder=$(buildah info --format '{{.store.GraphRoot}}') ;;
  esac
  [[ -d $folder ]] || return 0
  free=$(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1048576)}')
  ((free >= NEEDED_GB)) || fail "the disk is too small for the image" \
    "$TOOL keeps images in $folder: $free GB are free, $NEEDED_GB GB are needed" \
    "free some ($TOOL knows what can go: docker system prune, podman system prune, buildah prune), then infra/scripts/$STEP.sh"
}

build() {
  local words revision
  words=(build --platform linux/amd64 --file "$ROOT/Dockerfile.gpu" --tag "$IMAGE" --build-arg "WHISPER_MODEL=$MODEL"
    --label "org.opencontainers.image.version=$FAST_API_TAG")
  revision=$(git -C "$ROOT" describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || true)
  [[ -z $revision ]] || words+=(--label "org.opencontainers.image.revision=$revision")
  # The OCI's own format has no health check; and without --layers all would be one layer, pushed whole every time.
  [[ $TOOL == docker ]] || words+=(--format docker --layers)
  umask 022 # what the build makes is for the container's user to read
  # One image under the tag, not an index with attestations beside it, which the repository would count as images.
  BUILDX_NO_DEFAULT_ATTESTATIONS=1 tool "${words[@]}" "$ROOT" ||
    fail "the image was not built" "see $TOOL's message above" "infra/scripts/$STEP.sh, again: it goes on where it was"
}

if pushed; then
  note "nothing changed: $ECR_REPOSITORY has $FAST_API_TAG already"
else
  container_tool
  if [[ -z $DRY_RUN ]] && built; then
    note "nothing changed: $TOOL has $FAST_API_TAG already"
  else
    [[ -n $DRY_RUN ]] || space
    (build)
  fi
fi
save_setting FAST_API_TAG "$FAST_API_TAG"
good "image $IMAGE"
