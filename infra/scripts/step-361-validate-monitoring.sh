#!/usr/bin/env bash
# Usage: infra/scripts/step-361-validate-monitoring.sh [--dry-run] [--yes] [--help]
# Summary: Read back alarms, topic, dashboard, budget and logs; says which alarms are on now.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify
source "$LIB/monitoring.sh"

topic() {
  local key policy
  if ! topic_attributes; then
    problem "topic $ALARM_TOPIC does not exist"
    return 0
  fi
  IFS=$'\t' read -r key policy <<<"$FOUND"
  expect "topic $ALARM_TOPIC: its key" "$ALARM_KEY" "$key"
  expect_document "topic $ALARM_TOPIC: its policy" "$(document render topic-policy.json)" "$policy"
  subscriber
}

subscriber() {
  if [[ -z $ALARM_EMAIL ]]; then
    warn "nobody is told of alarms: ALARM_EMAIL is empty"
    return
  fi
  subscription
  case $FOUND in
    '') problem "topic $ALARM_TOPIC: ALARM_EMAIL is not subscribed" ;;
    arn:*) ;;
    *) warn "ALARM_EMAIL is not told of alarms before the link in AWS's mail is followed" ;;
  esac
}

key() {
  local id state
  if ! look_up kms describe-key --key-id "$ALARM_KEY" --query 'KeyMetadata.[KeyId,KeyState]' --output text; then
    problem "key $ALARM_KEY does not exist"
    return 0
  fi
  read -r id state <<<"$FOUND"
  expect "key $ALARM_KEY" Enabled "$state"
  look_up kms get-key-policy --key-id "$id" --policy-name default --query Policy --output text
  expect_document "key $ALARM_KEY: its policy" "$(document render key-policy.json)" "$FOUND"
}

alarms() {
  local line
  found_alarms
  documents differences "$WANTED_ALARMS" "$FOUND_ALARMS" >"$SCRATCH/differences"
  while IFS= read -r line; do
    problem "$line"
  done <"$SCRATCH/differences"
}

dashboard() {
  look_up cloudwatch get-dashboard --dashboard-name "$DASHBOARD" --query DashboardBody --output text || true
  expect_document "dashboard $DASHBOARD" "$(dashboard_body)" "${FOUND:-none}"
}

group() {
  if group_metrics; then
    expect "group $INSTANCES: what it tells" "$GROUP_METRICS" "$FOUND"
  else
    note "there is no group of instances yet"
  fi
}

logs() {
  local name
  look_up logs describe-log-groups --log-group-name-prefix "$1" --output text \
    --query 'logGroups[].[logGroupName,retentionInDays]' || true
  shift
  for name in "$@"; do
    expect "log $name: days that it remembers" 30 "$(awk -v name="$name" '$1 == name { print $2 }' <<<"$FOUND")"
  done
}

month() {
  [[ -n $MONTHLY_BUDGET ]] || return 0
  if budget; then
    expect "the month's budget" "$MONTHLY_BUDGET" "${FOUND%.*}"
  else
    warn "the budget was not looked at: these credentials may not"
  fi
}

wanted_alarms
in_parallel topic key alarms dashboard group month \
  "logs /aws/lambda/$QUEUE_PREFIX- $ROUTER_LOG_GROUP $LAUNCHER_LOG_GROUP" \
  "logs /$QUEUE_PREFIX/ $SERVER_LOG_GROUP $WORKER_LOG_GROUP"
verdict "alarms, topic, dashboard, budget and logs" "infra/scripts/step-360-create-monitoring.sh"
documents on "$FOUND_ALARMS" | while IFS= read -r line; do
  warn "$line"
done
