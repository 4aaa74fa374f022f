#!/usr/bin/env bash
# Usage: infra/scripts/step-360-create-monitoring.sh [--dry-run] [--yes] [--help]
# Summary: Create the alarms and whom they tell, the dashboard, the budget, and an end to what logs remember.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify
source "$LIB/monitoring.sh"

# Whom alarms tell --------------------------------------------------------------------------------------------------

# A key of our own, because alarms may not use the one that SNS brings:
# https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/Notify_Users_Alarm_Changes.html
key() {
  local id policy
  policy=$(document render key-policy.json)
  if ! look_up kms describe-key --key-id "$ALARM_KEY" --query KeyMetadata.KeyId --output text; then
    id=$(change kms create-key --description "What the alarms of $QUEUE_PREFIX say" --policy "$policy" \
      --tags "TagKey=Project,TagValue=$QUEUE_PREFIX" --query KeyMetadata.KeyId --output text)
    change kms create-alias --alias-name "$ALARM_KEY" --target-key-id "${id:-<key>}" || {
      explain "$REFUSAL"
      # Without its name nobody finds it again, and it costs a dollar a month.
      change kms schedule-key-deletion --key-id "$id" --pending-window-in-days 7 >/dev/null
      fail "the key got no name, so it was deleted again" "$WHY" "$NEXT"
    }
    return
  fi
  id=$FOUND
  look_up kms list-resource-tags --key-id "$id" --query "Tags[?TagKey=='Project'].TagValue" --output text
  ours "key $ALARM_KEY" "$FOUND"
  look_up kms get-key-policy --key-id "$id" --policy-name default --query Policy --output text
  documents same "$policy" "$FOUND" ||
    change kms put-key-policy --key-id "$id" --policy-name default --policy "$policy"
}

topic_owner() {
  look_up sns list-tags-for-resource --resource-arn "$TOPIC_ARN" --query "Tags[?Key=='Project'].Value" --output text ||
    return 0
  ours "topic $ALARM_TOPIC" "$FOUND"
}

topic() {
  local policy key found
  policy=$(document render topic-policy.json)
  if ! topic_attributes; then
    change sns create-topic --name "$ALARM_TOPIC" --attributes \
      "$(documents object "KmsMasterKeyId=$ALARM_KEY" "Policy=$policy")" --tags "Key=Project,Value=$QUEUE_PREFIX" >/dev/null
  else
    IFS=$'\t' read -r key found <<<"$FOUND"
    [[ $key == "$ALARM_KEY" ]] || change sns set-topic-attributes --topic-arn "$TOPIC_ARN" \
      --attribute-name KmsMasterKeyId --attribute-value "$ALARM_KEY"
    documents same "$policy" "$found" || change sns set-topic-attributes --topic-arn "$TOPIC_ARN" \
      --attribute-name Policy --attribute-value "$policy"
  fi
  good "topic $ALARM_TOPIC: encrypted, for alarms and budget only"
}

subscriber() {
  if [[ -z $ALARM_EMAIL ]]; then
    warn "nobody is told of alarms: ALARM_EMAIL is empty"
    return
  fi
  subscription
  [[ -n $FOUND ]] || {
    change sns subscribe --topic-arn "$TOPIC_ARN" --protocol email --notification-endpoint "$ALARM_EMAIL" >/dev/null
    note "AWS has written to ALARM_EMAIL: alarms come once the link in that mail was followed"
  }
}

# Alarms ------------------------------------------------------------------------------------------------------------

alarms() {
  local calls=() line number=0 first
  found_alarms
  documents changed "$WANTED_ALARMS" "$FOUND_ALARMS" >"$SCRATCH/changed"
  while IFS= read -r line; do
    number=$((number + 1))
    printf '%s' "$line" >"$SCRATCH/alarm-$number"
    calls+=("put_alarm $number")
  done <"$SCRATCH/changed"
  for ((first = 0; first < number; first += 3)); do
    in_parallel "${calls[@]:first:3}" # AWS takes three a second
  done
  good "alarms: $number of $(wc -l <"$WANTED_ALARMS" | tr -d ' ') written, the others are as they should be"
}

put_alarm() {
  local name arn
  name=$(sed -E 's/.*"AlarmName":"([^"]+)".*/\1/' "$SCRATCH/alarm-$1")
  if grep -q "\"AlarmName\": *\"$name\"" "$FOUND_ALARMS"; then
    arn=arn:$PARTITION:cloudwatch:$AWS_REGION:$ACCOUNT:alarm:$name
    look_up cloudwatch list-tags-for-resource --resource-arn "$arn" --query "Tags[?Key=='Project'].Value" --output text
    ours "alarm $name" "$FOUND"
  fi
  change cloudwatch put-metric-alarm --cli-input-json "file://$SCRATCH/alarm-$1"
}

# Two alarms look at what the group of instances tells only if asked to; it costs nothing.
group() {
  if ! group_metrics; then
    note "there is no group of instances yet: after step-320-launch-gpu-instances this step is to run again"
    return
  fi
  [[ $FOUND != "$GROUP_METRICS" ]] || return 0
  # shellcheck disable=SC2086  # several words
  change autoscaling enable-metrics-collection --auto-scaling-group-name "$INSTANCES" --granularity 1Minute \
    --metrics $GROUP_METRICS
  good "group $INSTANCES tells how many instances it has"
}

# Dashboard, logs, budget -------------------------------------------------------------------------------------------

dashboard() {
  local body
  body=$(dashboard_body)
  look_up cloudwatch get-dashboard --dashboard-name "$DASHBOARD" --query DashboardBody --output text || true
  documents same "$body" "${FOUND:-none}" ||
    change cloudwatch put-dashboard --dashboard-name "$DASHBOARD" --dashboard-body "$body" >/dev/null
  good "dashboard $DASHBOARD"
}

prices() {
  local type
  for type in ${TYPES//,/ }; do
    grep -q "\"$type\"" "$ROOT/shared/prices.json" ||
      warn "shared/prices.json has no price of $type: on the dashboard it costs nothing"
  done
}

month() {
  [[ -n $MONTHLY_BUDGET ]] || return 0
  local document
  document=$(document render budget.json "MONTHLY_BUDGET=$MONTHLY_BUDGET")
  if ! budget; then
    cat "$SCRATCH/budget-errors" >&2
    warn "no budget was set: these credentials may not look at AWS Budgets (see above); all else is done"
  elif [[ -z $FOUND ]]; then
    change budgets create-budget --account-id "$ACCOUNT" --budget "$document" \
      --notifications-with-subscribers "$(document render budget-notifications.json)"
    good "a mail at 80 and 100 % of $MONTHLY_BUDGET dollars a month, of this whole account"
  elif [[ ${FOUND%.*} != "$MONTHLY_BUDGET" ]]; then
    change budgets update-budget --account-id "$ACCOUNT" --new-budget "$document"
    good "the budget is $MONTHLY_BUDGET dollars a month now"
  fi
}

wanted_alarms
topic_owner
key # the topic names it
topic
in_parallel subscriber alarms group dashboard prices month "log_group $ROUTER_LOG_GROUP" \
  "log_group $LAUNCHER_LOG_GROUP" "log_group $SERVER_LOG_GROUP" "log_group $WORKER_LOG_GROUP"
good "logs remember 30 days"
