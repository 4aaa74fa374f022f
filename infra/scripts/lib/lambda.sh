# shellcheck shell=bash
# How a step deploys a function: its zip, itself, its retries, its concurrency.
#
# source lambda.sh NAME PROGRAM: the function's name, and what package_lambda.py calls its code. The step writes what the
# function is like to the file FUNCTION_FILE.

FUNCTION=$1
PROGRAM=$2
ZIP=$SCRATCH/function.zip
FUNCTION_FILE=$SCRATCH/function.json

build() {
  if [[ -n $DRY_RUN ]]; then
    note "would build the zip for $LAMBDA_RUNTIME on $LAMBDA_ARCHITECTURE"
    return
  fi
  local native=()
  [[ ${LAMBDA_WHEELS:-} != native ]] || native=(--native)
  "$PYTHON" "$LIB/package_lambda.py" "$PROGRAM" --runtime "$LAMBDA_RUNTIME" --architecture "$LAMBDA_ARCHITECTURE" \
    --output "$ZIP" ${native[@]+"${native[@]}"} >"$SCRATCH/sha256"
  good "zip: $(($(wc -c <"$ZIP") / 1024)) KB"
}

# A new role takes some seconds to be known to Lambda; nothing tells when.
create_function() {
  local deadline=$((SECONDS + 60))
  while ! change lambda create-function --cli-input-json "file://$FUNCTION_FILE" \
    --zip-file "fileb://$ZIP" --architectures "$LAMBDA_ARCHITECTURE" --tags "Project=$QUEUE_PREFIX" \
    >/dev/null 2>"$SCRATCH/refused"; do
    if ! grep -q 'cannot be assumed by Lambda' "$SCRATCH/refused" || ((SECONDS > deadline)); then
      cat "$SCRATCH/refused" >&2
      fail "the function was not created" "see the message above" "infra/scripts/step-010-setup-iam-permissions.sh"
    fi
    sleep 2
  done
  cat "$SCRATCH/refused" >&2
  [[ -n $DRY_RUN ]] || aws lambda wait function-active-v2 --function-name "$FUNCTION"
  good "function $FUNCTION created"
}

# update_function DEPLOYED: changes only what differs, and waits, because Lambda takes one change at a time.
update_function() {
  local deployed=$1
  if documents includes "$(cat "$FUNCTION_FILE")" "$deployed"; then
    note "settings unchanged"
  else
    change lambda update-function-configuration --cli-input-json "file://$FUNCTION_FILE" >/dev/null
    [[ -n $DRY_RUN ]] || aws lambda wait function-updated-v2 --function-name "$FUNCTION"
    good "settings of $FUNCTION updated"
  fi
  if documents includes "{\"CodeSha256\":\"$(cat "$SCRATCH/sha256" 2>/dev/null || true)\",\"Architectures\":[\"$LAMBDA_ARCHITECTURE\"]}" "$deployed"; then
    note "code unchanged"
  else
    change lambda update-function-code --function-name "$FUNCTION" --zip-file "fileb://$ZIP" \
      --architectures "$LAMBDA_ARCHITECTURE" >/dev/null
    [[ -n $DRY_RUN ]] || aws lambda wait function-updated-v2 --function-name "$FUNCTION"
    good "code of $FUNCTION updated"
  fi
}

create_or_update_function() {
  # A function that is in no VPC is described without one, or with an empty one.
  # shellcheck disable=SC2016  # JMESPath's backticks
  if look_up lambda get-function-configuration --function-name "$FUNCTION" --output json --query \
    'merge(@, {VpcConfig: {SubnetIds: VpcConfig.SubnetIds || `[]`, SecurityGroupIds: VpcConfig.SecurityGroupIds || `[]`}})'; then
    update_function "$FOUND"
  else
    create_function
  fi
}

# Events that fail or wait are Lambda's to keep: how long, and where they go then, is set, not left to defaults.
retries() {
  change lambda put-function-event-invoke-config --function-name "$FUNCTION" --maximum-retry-attempts 2 \
    --maximum-event-age-in-seconds 21600 \
    --destination-config "{\"OnFailure\":{\"Destination\":\"$FAILURES_ARN\"}}" >/dev/null
  good "two retries within 6 h, then $FAILURES_QUEUE"
}

# concurrency MOST: how many of it may run at once; 0 reserves nothing.
concurrency() {
  if [[ $1 == 0 ]]; then
    change lambda delete-function-concurrency --function-name "$FUNCTION"
    return
  fi
  change lambda put-function-concurrency --function-name "$FUNCTION" --reserved-concurrent-executions "$1" >/dev/null ||
    fail "could not reserve $1 concurrent executions" \
      "an account must keep 100 unreserved ones; a new account may have 10 in all" \
      "set LAMBDA_CONCURRENCY=0 in ${ENV_FILE/#$ROOT\//}, then infra/scripts/$STEP.sh"
  good "at most $1 at once"
}

# check_limits MOST: reads retries and concurrency back.
check_limits() {
  local wanted=$1
  [[ $wanted != 0 ]] || wanted=None
  expect "$FUNCTION: retries, age, destination" "2 21600 $FAILURES_ARN" "$(
    aws lambda get-function-event-invoke-config --function-name "$FUNCTION" --output text \
      --query '[MaximumRetryAttempts,MaximumEventAgeInSeconds,DestinationConfig.OnFailure.Destination]' | tr '\t' ' ' || true
  )"
  expect "$FUNCTION: reserved concurrency" "$wanted" "$(aws lambda get-function-concurrency --function-name "$FUNCTION" \
    --query ReservedConcurrentExecutions --output text)"
}
