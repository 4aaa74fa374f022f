#!/usr/bin/env bash
# Usage: infra/scripts/step-313-push-image.sh [--dry-run] [--yes] [--help]
# Summary: Push the image to its repository, unless it is there already, and read it back by its digest.
source "$(dirname "$0")/lib/common.sh"
source "$ROOT/infra/image/tools.sh"
begin "$@"
need FAST_API_ECR_REPOSITORY_URI step-301-setup-ecr-repository
need FAST_API_TAG step-312-build-image
identify

IMAGE=$FAST_API_ECR_REPOSITORY_URI:$FAST_API_TAG
REGISTRY=${FAST_API_ECR_REPOSITORY_URI%%/*}

repository() {
  look_up ecr describe-repositories --repository-names "$ECR_REPOSITORY" --query 'repositories[0].repositoryUri' \
    --output text || absent "repository $ECR_REPOSITORY" step-301-setup-ecr-repository
  [[ -n $DRY_RUN || $FOUND == "$FAST_API_ECR_REPOSITORY_URI" ]] ||
    fail "FAST_API_ECR_REPOSITORY_URI is $FAST_API_ECR_REPOSITORY_URI" \
      "the repository of account $ACCOUNT in $AWS_REGION is $FOUND" "infra/scripts/step-301-setup-ecr-repository.sh"
}

# The password goes from one program to the other, never into an argument, a variable or a file of ours.
login() {
  if [[ -n $DRY_RUN ]]; then
    note "would run: aws ecr get-login-password | $TOOL login --username AWS --password-stdin $REGISTRY"
    return
  fi
  aws ecr get-login-password | "$TOOL" login --username AWS --password-stdin "$REGISTRY" >&2 ||
    fail "no login to $REGISTRY" "see the messages above: AWS must give a password, and $TOOL must reach the registry" \
      "infra/scripts/$STEP.sh, again: it is safe"
}

# push: prints the digest under which the registry took the image.
push() {
  case $TOOL in
    docker)
      tool push "$IMAGE" &&
        docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$IMAGE" |
        sed -n "s|^$FAST_API_ECR_REPOSITORY_URI@||p"
      ;;
    *) tool push --digestfile "$SCRATCH/digest" "$IMAGE" && cat "$SCRATCH/digest" ;;
  esac || fail "the image was not pushed" "see $TOOL's message above" "infra/scripts/$STEP.sh, again: it sends what is missing"
}

# read_back DIGEST: what the repository has under it must bear our tag.
read_back() {
  look_up ecr describe-images --repository-name "$ECR_REPOSITORY" --image-ids "imageDigest=$1" --output text \
    --query "imageDetails[?contains(imageTags || \`[]\`, '$FAST_API_TAG')].imageSizeInBytes" || true
  [[ -n $FOUND ]] || fail "$ECR_REPOSITORY does not have $FAST_API_TAG as $1" \
    "the push seemed to work, and the repository says otherwise" "infra/scripts/$STEP.sh, again: it is safe"
  good "image $IMAGE: $1, $((FOUND / 1000000)) MB"
}

if pushed; then
  note "nothing to push"
  read_back "$FOUND"
  exit
fi
repository
container_tool
[[ -n $DRY_RUN ]] || built || fail "$TOOL has no image $IMAGE" "" "infra/scripts/step-312-build-image.sh"
login
if [[ -n $DRY_RUN ]]; then
  tool push "$IMAGE"
else
  digest=$(push)
  read_back "$digest"
fi
