#!/usr/bin/env bash
# Usage: infra/scripts/step-345-deploy-launcher.sh [--dry-run] [--yes] [--help]
# Summary: Create or update the launcher, the function that decides how many instances the backlog is worth; reads it back.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
need SQS_QUEUE_URL step-020-create-sqs-resources
need SQS_DLQ_URL step-020-create-sqs-resources
need SQS_FAILURES_QUEUE_URL step-020-create-sqs-resources
identify
source "$LIB/lambda.sh" "$LAUNCHER" launcher

CONCURRENCY=1 # two that decide at once would each start what one of them is to start
[[ $LAMBDA_CONCURRENCY != 0 ]] || CONCURRENCY=0

prices() {
  local type types=${INSTANCE_TYPE:-$INSTANCE_TYPES}
  [[ -n ${RUN_BUDGET:-} ]] || return 0
  for type in ${types//,/ }; do
    grep -q "\"$type\"" "$ROOT/shared/prices.json" || fail "there is no price of $type" \
      "RUN_BUDGET=$RUN_BUDGET, and what an hour of that type costs is not in shared/prices.json" \
      "add it there, or no RUN_BUDGET in ${ENV_FILE/#$ROOT\//}"
  done
}

# What is empty is left to the launcher's own default.
settings() {
  documents object "SQS_QUEUE_URL=$SQS_QUEUE_URL" "SQS_DLQ_URL=$SQS_DLQ_URL" \
    "SQS_FAILURES_QUEUE_URL=$SQS_FAILURES_QUEUE_URL" "QUEUE_PREFIX=$QUEUE_PREFIX" "MODE=$MODE" \
    "TARGET_MINUTES=${TARGET_MINUTES:-}" "INSTANCE_SPEED=${INSTANCE_SPEED:-}" "LEAST_JOBS=${LEAST_JOBS:-}" \
    "LATEST_AGE_HOURS=${LATEST_AGE_HOURS:-}" "ON_DEMAND_AGE_MINUTES=${ON_DEMAND_AGE_MINUTES:-}" \
    "RUN_BUDGET=${RUN_BUDGET:-}" "BOOTS_ALLOWED=${BOOTS_ALLOWED:-}" "IDLE_TIMEOUT_MINUTES=$IDLE_TIMEOUT_MINUTES" \
    "MAX_INSTANCE_HOURS=$MAX_INSTANCE_HOURS" "INSTANCE_TYPES=$INSTANCE_TYPES" "INSTANCE_TYPE=${INSTANCE_TYPE:-}" \
    "ON_DEMAND_PERCENT=$ON_DEMAND_PERCENT" POWERTOOLS_SERVICE_NAME=launcher
}

prices
need_group
in_parallel build "log_group $LAUNCHER_LOG_GROUP"
documents object "FunctionName=$LAUNCHER" "Role=$(role_arn "$LAUNCHER")" "Runtime=$LAMBDA_RUNTIME" \
  Handler=batch_worker.launcher.handler Timeout:=60 MemorySize:=256 \
  "Environment:={\"Variables\":$(settings)}" >"$FUNCTION_FILE"
create_or_update_function
retries # one after the other: Lambda refuses two changes at a time
concurrency "$CONCURRENCY"
[[ -z $DRY_RUN ]] || exit 0

check_limits "$CONCURRENCY"
verdict "the launcher's retries and limits" "infra/scripts/$STEP.sh"
