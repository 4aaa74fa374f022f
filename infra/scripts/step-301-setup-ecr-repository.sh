#!/usr/bin/env bash
# Usage: infra/scripts/step-301-setup-ecr-repository.sh [--dry-run] [--yes] [--help]
# Summary: Create the image's repository: scanned on push, tags that stay what they are, the last ten images kept.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

REPOSITORY_ARN=arn:$PARTITION:ecr:$AWS_REGION:$ACCOUNT:repository/$ECR_REPOSITORY
URI='' TAGS=None SCAN=None

create() {
  URI=$(change ecr create-repository --repository-name "$ECR_REPOSITORY" --image-tag-mutability IMMUTABLE \
    --image-scanning-configuration scanOnPush=true --encryption-configuration encryptionType=AES256 \
    --tags "Key=Project,Value=$QUEUE_PREFIX" --query repository.repositoryUri --output text)
  good "repository $ECR_REPOSITORY created"
}

# Only a repository that this project made is brought back to its settings.
restore() {
  read -r URI TAGS SCAN <<<"$FOUND"
  look_up ecr list-tags-for-resource --resource-arn "$REPOSITORY_ARN" \
    --query "tags[?Key=='Project'].Value" --output text || true
  [[ $FOUND == "$QUEUE_PREFIX" ]] || fail "repository $ECR_REPOSITORY belongs to something else" \
    "it is there already and has no tag Project=$QUEUE_PREFIX" \
    "choose another QUEUE_PREFIX in ${ENV_FILE/#$ROOT\//}, or: aws ecr tag-resource --resource-arn $REPOSITORY_ARN --tags Key=Project,Value=$QUEUE_PREFIX"
  [[ $TAGS == IMMUTABLE ]] || change ecr put-image-tag-mutability --repository-name "$ECR_REPOSITORY" \
    --image-tag-mutability IMMUTABLE >/dev/null
  [[ $SCAN == True ]] || change ecr put-image-scanning-configuration --repository-name "$ECR_REPOSITORY" \
    --image-scanning-configuration scanOnPush=true >/dev/null
  good "repository $ECR_REPOSITORY"
}

lifecycle() {
  local wanted
  wanted=$(render "$POLICIES/ecr-lifecycle.json")
  look_up ecr get-lifecycle-policy --repository-name "$ECR_REPOSITORY" --query lifecyclePolicyText --output text || true
  documents same "$wanted" "$FOUND" || change ecr put-lifecycle-policy --repository-name "$ECR_REPOSITORY" \
    --lifecycle-policy-text "$wanted" >/dev/null
  good "it keeps ten images; what no tag names goes after a day"
}

if look_up ecr describe-repositories --repository-names "$ECR_REPOSITORY" --output text \
  --query 'repositories[0].[repositoryUri,imageTagMutability,imageScanningConfiguration.scanOnPush]'; then
  restore
else
  create
fi
lifecycle
save_setting FAST_API_ECR_REPOSITORY_URI "$URI"
