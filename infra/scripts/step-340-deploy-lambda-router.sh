#!/usr/bin/env bash
# Usage: infra/scripts/step-340-deploy-lambda-router.sh [--dry-run] [--yes] [--help]
# Summary: Build the router's zip, and create or update the function, its log, its retries and the server's key.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
need SQS_QUEUE_URL step-020-create-sqs-resources
need SQS_FAILURES_QUEUE_URL step-020-create-sqs-resources
identify
source "$LIB/lambda.sh" "$ROUTER" router

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

function_itself() {
  local vpc
  vpc=$(network)
  documents object "FunctionName=$ROUTER" "Role=$(role_arn "$ROUTER")" "Runtime=$LAMBDA_RUNTIME" \
    Handler=router_lambda.handler.handler Timeout:=120 MemorySize:=512 \
    "Environment:={\"Variables\":$(settings)}" "VpcConfig:=$vpc" >"$FUNCTION_FILE"
  create_or_update_function
}

in_parallel build server_key "log_group $ROUTER_LOG_GROUP"
function_itself
retries # one after the other: Lambda refuses two changes at a time
concurrency "$LAMBDA_CONCURRENCY"
