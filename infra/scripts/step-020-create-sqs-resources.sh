#!/usr/bin/env bash
# Usage: infra/scripts/step-020-create-sqs-resources.sh [--dry-run] [--yes] [--help]
# Summary: Create the audio bucket if it is not there, its events, and the three queues. Touches no message.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

# Bucket ------------------------------------------------------------------------------------------------------------

create_bucket() {
  local place=()
  [[ $AWS_REGION == us-east-1 ]] || place=(--create-bucket-configuration "LocationConstraint=$AWS_REGION")
  change s3api create-bucket --bucket "$AUDIO_BUCKET" --object-ownership BucketOwnerEnforced \
    ${place[@]+"${place[@]}"} >/dev/null
  change s3api put-bucket-tagging --bucket "$AUDIO_BUCKET" --tagging "TagSet=[{Key=Project,Value=$QUEUE_PREFIX}]"
}

access_block() {
  change s3api put-public-access-block --bucket "$AUDIO_BUCKET" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
}

versions_and_encryption() {
  change s3api put-bucket-versioning --bucket "$AUDIO_BUCKET" --versioning-configuration Status=Enabled
  change s3api put-bucket-encryption --bucket "$AUDIO_BUCKET" --server-side-encryption-configuration \
    '{"Rules":[{"ApplyServerSideEncryptionByDefault":{"SSEAlgorithm":"AES256"}}]}'
}

lifecycle_and_policy() {
  local policy
  change s3api put-bucket-lifecycle-configuration --bucket "$AUDIO_BUCKET" \
    --lifecycle-configuration "$(render "$POLICIES/bucket-lifecycle.json")" >/dev/null
  policy=$(render "$POLICIES/bucket.json")
  [[ -z $policy ]] || change s3api put-bucket-policy --bucket "$AUDIO_BUCKET" --policy "$policy"
}

# Merged into what is there: other people's notifications must survive.
bucket_events() {
  local before='' after
  [[ -n $DRY_RUN && -n $BUCKET_IS_NEW ]] ||
    before=$(aws s3api get-bucket-notification-configuration --bucket "$AUDIO_BUCKET" --output json)
  after=$(documents with-eventbridge <<<"$before")
  documents same "$after" "${before:-none}" ||
    change s3api put-bucket-notification-configuration --bucket "$AUDIO_BUCKET" --notification-configuration "$after"
  good "bucket $AUDIO_BUCKET sends its events to EventBridge"
}

bucket() {
  local answer owner
  BUCKET_IS_NEW=
  if answer=$(aws s3api head-bucket --bucket "$AUDIO_BUCKET" --expected-bucket-owner "$ACCOUNT" 2>&1); then
    # Only a bucket that this project made is brought back to its settings; half-finished runs included.
    owner=$(aws s3api get-bucket-tagging --bucket "$AUDIO_BUCKET" \
      --query "TagSet[?Key=='Project'].Value" --output text 2>/dev/null || true)
  elif [[ $answer == *"(404)"* ]]; then
    BUCKET_IS_NEW=1
    create_bucket
    owner=$QUEUE_PREFIX
  else
    fail "bucket $AUDIO_BUCKET is not usable" \
      "S3 answers: ${answer##*: } (403: it belongs to another account; 301: to another region)" \
      "choose another AUDIO_BUCKET in ${ENV_FILE/#$ROOT\//}"
  fi
  if [[ $owner == "$QUEUE_PREFIX" ]]; then
    in_parallel access_block versions_and_encryption lifecycle_and_policy
    good "bucket $AUDIO_BUCKET: private, encrypted, versioned"
  else
    note "bucket $AUDIO_BUCKET was there before this project: its own settings stay as they are"
  fi
  bucket_events
}

# Queues ------------------------------------------------------------------------------------------------------------

# queue NAME ATTRIBUTES: creates it with, or brings it back to, these attributes. Prints its URL.
queue() {
  local name=$1 attributes=$2 url
  if look_up sqs get-queue-url --queue-name "$name" --query QueueUrl --output text; then
    url=$FOUND
    change sqs set-queue-attributes --queue-url "$url" --attributes "$attributes"
  else
    url=$(change sqs create-queue --queue-name "$name" --attributes "$attributes" \
      --tags "Project=$QUEUE_PREFIX" --query QueueUrl --output text)
  fi
  good "queue $name"
  printf '%s' "$url"
}

dead_letters() {
  local QUEUE_ARN=$DEAD_LETTER_ARN
  queue "$DEAD_LETTER_QUEUE" "$(documents object MessageRetentionPeriod=1209600 SqsManagedSseEnabled=true \
    "RedriveAllowPolicy={\"redrivePermission\":\"byQueue\",\"sourceQueueArns\":[\"$JOBS_ARN\"]}" \
    "Policy=$(render "$POLICIES/queue.json")")" >"$SCRATCH/dlq"
}

failures() {
  local QUEUE_ARN=$FAILURES_ARN
  queue "$FAILURES_QUEUE" "$(documents object MessageRetentionPeriod=1209600 SqsManagedSseEnabled=true \
    "Policy=$(render "$POLICIES/failures-queue.json")")" >"$SCRATCH/failures"
}

jobs_queue() {
  # shellcheck disable=SC2034  # fills in the policy
  local QUEUE_ARN=$JOBS_ARN
  queue "$JOBS_QUEUE" "$(documents object VisibilityTimeout=120 MessageRetentionPeriod=604800 \
    ReceiveMessageWaitTimeSeconds=20 SqsManagedSseEnabled=true \
    "RedrivePolicy={\"deadLetterTargetArn\":\"$DEAD_LETTER_ARN\",\"maxReceiveCount\":5}" \
    "Policy=$(render "$POLICIES/queue.json")")" >"$SCRATCH/jobs"
}

queues() {
  in_parallel dead_letters failures
  jobs_queue # names the dead-letter queue, which must be there
}

in_parallel bucket queues
save_setting SQS_QUEUE_URL "$(cat "$SCRATCH/jobs")"
save_setting SQS_DLQ_URL "$(cat "$SCRATCH/dlq")"
save_setting SQS_FAILURES_QUEUE_URL "$(cat "$SCRATCH/failures")"
