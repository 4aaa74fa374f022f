#!/usr/bin/env bash
# Usage: infra/scripts/step-021-validate-sqs-resources.sh [--dry-run] [--yes] [--help]
# Summary: Read back every attribute of bucket and queues that the pipeline relies on. Touches no message.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

bucket() {
  local events answer
  if ! answer=$(aws s3api head-bucket --bucket "$AUDIO_BUCKET" --expected-bucket-owner "$ACCOUNT" 2>&1); then
    problem "bucket $AUDIO_BUCKET is not usable: ${answer##*: }"
    return 0
  fi
  events=$(aws s3api get-bucket-notification-configuration --bucket "$AUDIO_BUCKET" \
    --query 'EventBridgeConfiguration != null' --output text)
  expect "$AUDIO_BUCKET: EventBridge notifications" True "$events"
}

# What a bucket of someone else's sets is their business; of ours it is checked.
own_bucket() {
  local owner
  owner=$(aws s3api get-bucket-tagging --bucket "$AUDIO_BUCKET" \
    --query "TagSet[?Key=='Project'].Value" --output text 2>/dev/null || true)
  [[ $owner == "$QUEUE_PREFIX" ]] || return 0
  in_parallel own_access own_versions own_lifecycle own_policy
}

own_access() {
  expect "$AUDIO_BUCKET: block public access" "True True True True" "$(aws s3api get-public-access-block \
    --bucket "$AUDIO_BUCKET" --query 'PublicAccessBlockConfiguration.[BlockPublicAcls,IgnorePublicAcls,BlockPublicPolicy,RestrictPublicBuckets]' \
    --output text 2>/dev/null | tr '\t' ' ' || true)"
  expect "$AUDIO_BUCKET: object ownership" BucketOwnerEnforced "$(aws s3api get-bucket-ownership-controls \
    --bucket "$AUDIO_BUCKET" --query 'OwnershipControls.Rules[0].ObjectOwnership' --output text 2>/dev/null || true)"
}

own_versions() {
  expect "$AUDIO_BUCKET: versioning" Enabled "$(aws s3api get-bucket-versioning --bucket "$AUDIO_BUCKET" \
    --query Status --output text)"
  expect "$AUDIO_BUCKET: encryption" AES256 "$(aws s3api get-bucket-encryption --bucket "$AUDIO_BUCKET" \
    --query 'ServerSideEncryptionConfiguration.Rules[0].ApplyServerSideEncryptionByDefault.SSEAlgorithm' \
    --output text 2>/dev/null || true)"
}

own_lifecycle() {
  expect "$AUDIO_BUCKET: lifecycle (days to abort uploads, days to keep old versions)" "1 30" \
    "$(aws s3api get-bucket-lifecycle-configuration --bucket "$AUDIO_BUCKET" --query \
      "[Rules[?ID=='unfinished-uploads'].AbortIncompleteMultipartUpload.DaysAfterInitiation, Rules[?ID=='overwritten-versions'].NoncurrentVersionExpiration.NoncurrentDays][]" \
      --output text 2>/dev/null | tr '\t' ' ' || true)"
}

own_policy() {
  local policy
  policy=$(aws s3api get-bucket-policy --bucket "$AUDIO_BUCKET" --query Policy --output text 2>/dev/null || true)
  expect_document "$AUDIO_BUCKET: the bucket policy" "$(render "$POLICIES/bucket.json")" "$policy"
}

# queue NAME ARN RETENTION VISIBILITY WAIT POLICY REDRIVE
queue() {
  local name=$1 url found retention encrypted visibility wait policy redrive
  # shellcheck disable=SC2034  # fills in the policy
  local QUEUE_ARN=$2
  if ! look_up sqs get-queue-url --queue-name "$name" --query QueueUrl --output text; then
    problem "queue $name does not exist"
    return 0
  fi
  url=$FOUND
  found=$(aws sqs get-queue-attributes --queue-url "$url" --attribute-names All --query \
    'Attributes.[MessageRetentionPeriod,SqsManagedSseEnabled,VisibilityTimeout,ReceiveMessageWaitTimeSeconds,Policy,RedrivePolicy]' \
    --output text)
  IFS=$'\t' read -r retention encrypted visibility wait policy redrive <<<"$found"
  expect "$name: MessageRetentionPeriod" "$3" "$retention"
  expect "$name: SqsManagedSseEnabled" true "$encrypted"
  expect "$name: VisibilityTimeout" "$4" "$visibility"
  expect "$name: ReceiveMessageWaitTimeSeconds" "$5" "$wait"
  expect_document "$name: Policy" "$(render "$POLICIES/$6.json")" "$policy"
  [[ $name != "$JOBS_QUEUE" ]] || check_redrive "$redrive"
  printf '%s' "$url" >"$SCRATCH/$name"
}

check_redrive() {
  documents same "{\"deadLetterTargetArn\":\"$DEAD_LETTER_ARN\",\"maxReceiveCount\":5}" "$1" ||
    problem "$JOBS_QUEUE: RedrivePolicy is $1, expected maxReceiveCount 5 into $DEAD_LETTER_QUEUE"
}

saved() {
  expect "$1 in ${ENV_FILE/#$ROOT\//}" "$(cat "$SCRATCH/$2" 2>/dev/null || true)" "${!1:-}"
}

in_parallel bucket own_bucket \
  "queue $JOBS_QUEUE $JOBS_ARN 604800 120 20 queue" \
  "queue $DEAD_LETTER_QUEUE $DEAD_LETTER_ARN 1209600 30 0 queue" \
  "queue $FAILURES_QUEUE $FAILURES_ARN 1209600 30 0 failures-queue"
saved SQS_QUEUE_URL "$JOBS_QUEUE"
saved SQS_DLQ_URL "$DEAD_LETTER_QUEUE"
saved SQS_FAILURES_QUEUE_URL "$FAILURES_QUEUE"
verdict "bucket $AUDIO_BUCKET and the queues $QUEUE_PREFIX-*" "infra/scripts/step-020-create-sqs-resources.sh"
