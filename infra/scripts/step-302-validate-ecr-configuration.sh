#!/usr/bin/env bash
# Usage: infra/scripts/step-302-validate-ecr-configuration.sh [--dry-run] [--yes] [--help]
# Summary: Read back everything that step-301 sets on the image's repository.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

repository() {
  local uri tags scan encryption
  if ! look_up ecr describe-repositories --repository-names "$ECR_REPOSITORY" --output text --query \
    'repositories[0].[repositoryUri,imageTagMutability,imageScanningConfiguration.scanOnPush,encryptionConfiguration.encryptionType]'; then
    problem "repository $ECR_REPOSITORY does not exist"
    return 0
  fi
  read -r uri tags scan encryption <<<"$FOUND"
  expect "FAST_API_ECR_REPOSITORY_URI in ${ENV_FILE/#$ROOT\//}" "$uri" "${FAST_API_ECR_REPOSITORY_URI:-}"
  expect "$ECR_REPOSITORY: imageTagMutability" IMMUTABLE "$tags"
  expect "$ECR_REPOSITORY: scanOnPush" True "$scan"
  expect "$ECR_REPOSITORY: encryptionType" AES256 "$encryption"
}

owner() {
  look_up ecr list-tags-for-resource --resource-arn "arn:$PARTITION:ecr:$AWS_REGION:$ACCOUNT:repository/$ECR_REPOSITORY" \
    --query "tags[?Key=='Project'].Value" --output text || true
  expect "$ECR_REPOSITORY: the tag Project" "$QUEUE_PREFIX" "$FOUND"
}

lifecycle() {
  look_up ecr get-lifecycle-policy --repository-name "$ECR_REPOSITORY" --query lifecyclePolicyText --output text || true
  expect_document "$ECR_REPOSITORY: the lifecycle policy" "$(render "$POLICIES/ecr-lifecycle.json")" "$FOUND"
}

in_parallel repository owner lifecycle
verdict "repository $ECR_REPOSITORY" "infra/scripts/step-301-setup-ecr-repository.sh"
