#!/usr/bin/env bash
# Usage: infra/scripts/step-340-deploy-lambda-router.sh [--dry-run] [--yes] [--help]
# Summary: Build the router's zip, and create or update the function, its log, its retries and the server's key.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
need SQS_QUEUE_URL step-020-create-sqs-resources
need SQS_FAILURES_QUEUE_URL step-020-create-sqs-resources
identify

ZIP=$SCRATCH/router.zip
ROLE=$(role_arn "$ROUTER")

build() {
  if [[ -n $DRY_RUN ]]; then
    note "would build the zip for $LAMBDA_RUNTIME on $LAMBDA_ARCHITECTURE"
    return
  fi
  local native=()
  [[ ${LAMBDA_WHEELS:-} != native ]] || native=(--native)
  "$PYTHON" "$LIB/package_lambda.py" --runtime "$LAMBDA_RUNTIME" --architecture "$LAMBDA_ARCHITECTURE" \
    --output "$ZIP" ${native[@]+"${native[@]}"} >"$SCRATCH/sha256"
  good "zip: $(($(wc -c <"$ZIP") / 1024)) KB"
}

# The server's key lives in a SecureString. It is neither printed nor an argument of a process.
server_key() {
  if look_up ssm get-parameter --name "$API_KEY_PARAMETER" --with-decryption --query Parameter.Value --output text; then
    if [[ -z ${API_KEY:-} || ${API_KEY%%,*} == "$FOUND" ]]; then
      good "the server's key is in $API_KEY_PARAMETER"
      return
    fi
  elif [[ -z ${API_KEY:-} ]]; then
    API_KEY=$("$PYTHON" -c 'import secrets; print(secrets.token_urlsafe(32))')
    save_setting API_KEY "$API_KEY"
    note "made a key for the server, kept as API_KEY in ${ENV_FILE/#$ROOT\//}"
  fi
  # While a key is being rotated the server takes two; callers use the first.
  printf '%s' "${API_KEY%%,*}" | documents secret "$API_KEY_PARAMETER" >"$SCRATCH/key.json"
  change ssm put-parameter --cli-input-json "file://$SCRATCH/key.json" >/dev/null
  good "the server's key is in $API_KEY_PARAMETER"
}

settings() {
  documents object "AUDIO_BUCKET=$AUDIO_BUCKET" "SQS_QUEUE_URL=$SQS_QUEUE_URL" \
    "SQS_FAILURES_QUEUE_URL=$SQS_FAILURES_QUEUE_URL" "EVENT_BUS_NAME=$EVENT_BUS_NAME" \
    "API_KEY_PARAMETER=$API_KEY_PARAMETER" "HEALTH_CHECK_TIMEOUT=$HEALTH_CHECK_TIMEOUT" \
    "FAST_API_SERVER_URL=${FAST_API_SERVER_URL:-}" "FAST_API_PORT=${FAST_API_PORT:-}" \
    "GPU_SERVER_TAG=${GPU_SERVER_TAG:-}" "EXPECTED_BUCKET_OWNER=${EXPECTED_BUCKET_OWNER:-}" \
    "ROUTING=${ROUTING:-}" "LONG_AUDIO_BYTES=${LONG_AUDIO_BYTES:-}" "DEFER_ABOVE_BYTES=${DEFER_ABOVE_BYTES:-}" \
    "LIVE_HOURS=${LIVE_HOURS:-}" "LIVE_TIMEZONE=${LIVE_TIMEZONE:-}" "SESSION_FINISH=${SESSION_FINISH:-}" \
    POWERTOOLS_SERVICE_NAME=router "QUEUE_PREFIX=$QUEUE_PREFIX"
}

# From ROUTER_SUBNETS the function reaches the instances; without any it is in no network of ours.
network() {
  local subnets='[]' groups='[]' vpc
  if [[ -n $ROUTER_SUBNETS ]]; then
    # shellcheck disable=SC2001  # quotes in a substitution mean something else to bash 3.2
    subnets="[\"$(sed 's/,/","/g' <<<"$ROUTER_SUBNETS")\"]"
    # shellcheck disable=SC2086  # a word for each
    look_up ec2 describe-subnets --subnet-ids ${ROUTER_SUBNETS//,/ } --query 'Subnets[0].VpcId' --output text ||
      [[ -n $DRY_RUN ]] || fail "one of the subnets does not exist in $AWS_REGION" "ROUTER_SUBNETS=$ROUTER_SUBNETS" \
      "correct ROUTER_SUBNETS in ${ENV_FILE/#$ROOT\//}"
    vpc=$FOUND
    look_up ec2 describe-security-groups --filters "Name=group-name,Values=$ROUTER_GROUP" "Name=vpc-id,Values=$vpc" \
      --query 'SecurityGroups[].GroupId' --output text || true
    [[ -n $FOUND ]] || absent "security group $ROUTER_GROUP in ${vpc:-the VPC}" step-320-launch-gpu-instances
    groups="[\"$FOUND\"]"
  fi
  printf '{"SubnetIds":%s,"SecurityGroupIds":%s}' "$subnets" "$groups"
}

# A new role takes some seconds to be known to Lambda; nothing tells when.
create_function() {
  local deadline=$((SECONDS + 60))
  while ! change lambda create-function --cli-input-json "file://$SCRATCH/function.json" \
    --zip-file "fileb://$ZIP" --architectures "$LAMBDA_ARCHITECTURE" --tags "Project=$QUEUE_PREFIX" \
    >/dev/null 2>"$SCRATCH/refused"; do
    if ! grep -q 'cannot be assumed by Lambda' "$SCRATCH/refused" || ((SECONDS > deadline)); then
      cat "$SCRATCH/refused" >&2
      fail "the function was not created" "see the message above" "infra/scripts/step-010-setup-iam-permissions.sh"
    fi
    sleep 2
  done
  cat "$SCRATCH/refused" >&2
  [[ -n $DRY_RUN ]] || aws lambda wait function-active-v2 --function-name "$ROUTER"
  good "function $ROUTER created"
}

# update_function DEPLOYED: changes only what differs, and waits, because Lambda takes one change at a time.
update_function() {
  local deployed=$1
  if documents includes "$(cat "$SCRATCH/function.json")" "$deployed"; then
    note "settings unchanged"
  else
    change lambda update-function-configuration --cli-input-json "file://$SCRATCH/function.json" >/dev/null
    [[ -n $DRY_RUN ]] || aws lambda wait function-updated-v2 --function-name "$ROUTER"
    good "settings of $ROUTER updated"
  fi
  if documents includes "{\"CodeSha256\":\"$(cat "$SCRATCH/sha256" 2>/dev/null || true)\",\"Architectures\":[\"$LAMBDA_ARCHITECTURE\"]}" "$deployed"; then
    note "code unchanged"
  else
    change lambda update-function-code --function-name "$ROUTER" --zip-file "fileb://$ZIP" \
      --architectures "$LAMBDA_ARCHITECTURE" >/dev/null
    [[ -n $DRY_RUN ]] || aws lambda wait function-updated-v2 --function-name "$ROUTER"
    good "code of $ROUTER updated"
  fi
}

function_itself() {
  local vpc
  vpc=$(network)
  documents object "FunctionName=$ROUTER" "Role=$ROLE" "Runtime=$LAMBDA_RUNTIME" \
    Handler=router_lambda.handler.handler Timeout:=120 MemorySize:=512 \
    "Environment:={\"Variables\":$(settings)}" "VpcConfig:=$vpc" >"$SCRATCH/function.json"
  # A function that is in no VPC is described without one, or with an empty one.
  # shellcheck disable=SC2016  # JMESPath's backticks
  if look_up lambda get-function-configuration --function-name "$ROUTER" --output json --query \
    'merge(@, {VpcConfig: {SubnetIds: VpcConfig.SubnetIds || `[]`, SecurityGroupIds: VpcConfig.SecurityGroupIds || `[]`}})'; then
    update_function "$FOUND"
  else
    create_function
  fi
}

# Events that fail or wait are Lambda's to keep: how long, and where they go then, is set, not left to defaults.
retries() {
  change lambda put-function-event-invoke-config --function-name "$ROUTER" --maximum-retry-attempts 2 \
    --maximum-event-age-in-seconds 21600 \
    --destination-config "{\"OnFailure\":{\"Destination\":\"$FAILURES_ARN\"}}" >/dev/null
  good "two retries within 6 h, then $FAILURES_QUEUE"
}

concurrency() {
  if [[ $LAMBDA_CONCURRENCY == 0 ]]; then
    change lambda delete-function-concurrency --function-name "$ROUTER"
    return
  fi
  change lambda put-function-concurrency --function-name "$ROUTER" \
    --reserved-concurrent-executions "$LAMBDA_CONCURRENCY" >/dev/null ||
    fail "could not reserve $LAMBDA_CONCURRENCY concurrent executions" \
      "an account must keep 100 unreserved ones; a new account may have 10 in all" \
      "set LAMBDA_CONCURRENCY=0 in ${ENV_FILE/#$ROOT\//}, then infra/scripts/$STEP.sh"
  good "at most $LAMBDA_CONCURRENCY at once"
}

in_parallel build server_key "log_group $ROUTER_LOG_GROUP"
function_itself
retries # one after the other: Lambda refuses two changes at a time
concurrency
