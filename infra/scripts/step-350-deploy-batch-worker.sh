#!/usr/bin/env bash
# Usage: infra/scripts/step-350-deploy-batch-worker.sh [--dry-run] [--yes] [--help]
# Summary: Give the instances' batch worker its settings and its logs; reads them back. Needs the image and the group.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
need SQS_QUEUE_URL step-020-create-sqs-resources
need SQS_DLQ_URL step-020-create-sqs-resources
need SQS_FAILURES_QUEUE_URL step-020-create-sqs-resources
need FAST_API_ECR_REPOSITORY_URI step-301-setup-ecr-repository
need FAST_API_TAG step-312-build-image
identify

# Lines of NAME=value, unquoted, as systemd and containers read them. No secret: the instance gets the key by itself,
# and it knows its own server's address.
settings() {
  local name
  printf 'METRICS=emf\n'
  for name in AWS_REGION QUEUE_PREFIX AUDIO_BUCKET SQS_QUEUE_URL SQS_DLQ_URL SQS_FAILURES_QUEUE_URL EVENT_BUS_NAME \
    EXPECTED_BUCKET_OWNER SESSION_FINISH WORKER_CONCURRENCY GROUP_MESSAGES VISIBILITY_TIMEOUT HEARTBEAT_INTERVAL \
    JOB_TIMEOUT POLL_SECONDS DRAIN_TIMEOUT; do
    [[ -z ${!name:-} ]] || printf '%s=%s\n' "$name" "${!name}"
  done
}

worker_settings() {
  save_parameter "$WORKER_ENV_PARAMETER" "$(settings)"
  good "the worker's settings are in $WORKER_ENV_PARAMETER"
}

image() {
  [[ $FAST_API_ECR_REPOSITORY_URI == */"$ECR_REPOSITORY" ]] || return 0 # another registry's: step-320 says what goes
  look_up ecr describe-images --repository-name "$ECR_REPOSITORY" --image-ids "imageTag=$FAST_API_TAG" \
    --query 'imageDetails[0].imageDigest' --output text || true
  [[ -n $FOUND && $FOUND != None ]] || absent "image $ECR_REPOSITORY:$FAST_API_TAG" step-313-push-image
}

in_parallel image need_group # nothing is written for a worker that has nothing to run on
in_parallel worker_settings "log_group $SERVER_LOG_GROUP" "log_group $WORKER_LOG_GROUP"
[[ -z $DRY_RUN ]] || exit 0

check_settings() {
  saved_parameter "$WORKER_ENV_PARAMETER" || true
  [[ $FOUND == "$(settings)" ]] || problem "$WORKER_ENV_PARAMETER is not what was written: ${FOUND:0:200}"
}

check_logs() {
  expect "the logs' days of memory" "$SERVER_LOG_GROUP=30 $WORKER_LOG_GROUP=30" "$(aws logs describe-log-groups \
    --log-group-name-prefix "/$QUEUE_PREFIX/" --output text --query "logGroups[?logGroupName=='$SERVER_LOG_GROUP' || \
      logGroupName=='$WORKER_LOG_GROUP'].[logGroupName,retentionInDays]" | sort | tr '\t\n' '= ' | sed 's/ $//')"
}

in_parallel check_settings check_logs
verdict "the batch worker's settings and logs" "infra/scripts/$STEP.sh"
