#!/usr/bin/env bash
# Usage: infra/scripts/step-341-configure-eventbridge-trigger.sh [--dry-run] [--yes] [--help]
# Summary: Let uploads and application events call the router, with retries and a place for what fails; reads it all back.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-retry-policy.html: the most that AWS allows, and
# said explicitly, because a newer kind of bus defaults to 5 attempts in 5 minutes.
RETRIES='{"MaximumRetryAttempts":185,"MaximumEventAgeInSeconds":86400}'
TARGET="{\"Id\":\"router\",\"Arn\":\"$ROUTER_ARN\",\"RetryPolicy\":$RETRIES,\"DeadLetterConfig\":{\"Arn\":\"$FAILURES_ARN\"}}"

bus() {
  [[ $EVENT_BUS_NAME != default ]] || return 0
  look_up events describe-event-bus --name "$EVENT_BUS_NAME" ||
    change events create-event-bus --name "$EVENT_BUS_NAME" --tags "Key=Project,Value=$QUEUE_PREFIX" >/dev/null
  good "bus $EVENT_BUS_NAME"
}

# rule NAME BUS PATTERN
rule() {
  local failed
  change events put-rule --name "$1" --event-bus-name "$2" --state ENABLED \
    --event-pattern "$(render "$PATTERNS/$3.json")" --tags "Key=Project,Value=$QUEUE_PREFIX" >/dev/null
  failed=$(change events put-targets --rule "$1" --event-bus-name "$2" --targets "[$TARGET]" \
    --query FailedEntryCount --output text)
  [[ -n $DRY_RUN || $failed == 0 ]] || fail "the target of rule $1 was refused"
  good "rule $1 on bus $2"
}

# permission RULE ARN: that rule, and no other, may call the function.
permission() {
  [[ $PERMITTED != *"\"$2\""* ]] || return 0
  [[ $PERMITTED != *"\"$1\""* ]] || # the same rule on a bus that was chosen before
    change lambda remove-permission --function-name "$ROUTER" --statement-id "$1"
  change lambda add-permission --function-name "$ROUTER" --statement-id "$1" --action lambda:InvokeFunction \
    --principal events.amazonaws.com --source-arn "$2" --source-account "$ACCOUNT" >/dev/null
  good "rule $1 may call $ROUTER"
}

permissions() {
  look_up lambda get-policy --function-name "$ROUTER" --query Policy --output text || true
  PERMITTED=$FOUND
  permission "$UPLOADS_RULE" "$UPLOADS_RULE_ARN" # one after the other: Lambda refuses two changes at a time
  permission "$APP_EVENTS_RULE" "$APP_EVENTS_RULE_ARN"
}

[[ -n $DRY_RUN ]] || look_up lambda get-function-configuration --function-name "$ROUTER" ||
  fail "function $ROUTER does not exist" "" "infra/scripts/step-340-deploy-lambda-router.sh"
bus
in_parallel "rule $UPLOADS_RULE default uploads" "rule $APP_EVENTS_RULE $EVENT_BUS_NAME app-events" permissions
[[ -z $DRY_RUN ]] || exit 0

# Reading it back: an event that no rule matches, or that may not call the function, is lost without a word.

# check_rule NAME BUS PATTERN ARN
check_rule() {
  local state pattern arn
  IFS=$'\t' read -r state arn pattern < <(aws events describe-rule --name "$1" --event-bus-name "$2" \
    --query '[State,Arn,EventPattern]' --output text)
  expect "$1: State" ENABLED "$state"
  expect "$1: Arn" "$4" "$arn"
  expect_document "$1: EventPattern" "$(render "$PATTERNS/$3.json")" "$pattern"
  expect_document "$1: Targets" "[$TARGET]" "$(aws events list-targets-by-rule --rule "$1" --event-bus-name "$2" \
    --query Targets --output json)"
}

check_permissions() {
  local policy arn
  policy=$(aws lambda get-policy --function-name "$ROUTER" --query Policy --output text)
  for arn in "$UPLOADS_RULE_ARN" "$APP_EVENTS_RULE_ARN"; do
    [[ $policy == *"\"$arn\""* ]] || problem "$ROUTER: its policy does not let $arn call it"
  done
}

check_failures_queue() {
  # shellcheck disable=SC2034  # fills in the policy
  local QUEUE_ARN=$FAILURES_ARN
  local url
  url=$(aws sqs get-queue-url --queue-name "$FAILURES_QUEUE" --query QueueUrl --output text)
  expect_document "$FAILURES_QUEUE: Policy (events.amazonaws.com must be able to send)" \
    "$(render "$POLICIES/failures-queue.json")" \
    "$(aws sqs get-queue-attributes --queue-url "$url" --attribute-names Policy --query Attributes.Policy --output text)"
}

in_parallel "check_rule $UPLOADS_RULE default uploads $UPLOADS_RULE_ARN" \
  "check_rule $APP_EVENTS_RULE $EVENT_BUS_NAME app-events $APP_EVENTS_RULE_ARN" check_permissions check_failures_queue
verdict "rules, targets, permissions" "infra/scripts/$STEP.sh"
