# shellcheck shell=bash
# shellcheck disable=SC2034 # the names defined here are for the steps
# What step-360 creates and step-361 reads back: both make the same documents of infra/monitoring.

MONITORING=$SCRIPTS/../monitoring
TYPES=${INSTANCE_TYPE:-$INSTANCE_TYPES}
ALARM_KEY=alias/$ALARM_TOPIC
TOPIC_ARN=arn:$PARTITION:sns:$AWS_REGION:$ACCOUNT:$ALARM_TOPIC
WANTED_ALARMS=$SCRATCH/wanted-alarms
FOUND_ALARMS=$SCRATCH/found-alarms
GROUP_METRICS="GroupDesiredCapacity GroupInServiceInstances"

# EventBridge counts rules of a bus of one's own by two dimensions, those of the default bus by one.
app_events_dimensions() {
  local bus=''
  [[ $EVENT_BUS_NAME == default ]] || bus="{\"Name\":\"EventBusName\",\"Value\":\"$EVENT_BUS_NAME\"},"
  printf '[%s{"Name":"RuleName","Value":"%s"}]' "$bus" "$APP_EVENTS_RULE"
}

# document COMMAND TEMPLATE [NAME=VALUE…]: a document of infra/monitoring.
document() {
  local command=$1 template=$MONITORING/$2 without=()
  shift 2
  [[ $command != render ]] || ! plain_http || without=(--without TlsOnly)
  documents "$command" ${without[@]+"${without[@]}"} "$template" "PARTITION=$PARTITION" "REGION=$AWS_REGION" \
    "ACCOUNT=$ACCOUNT" "QUEUE_PREFIX=$QUEUE_PREFIX" "TOPIC_ARN=$TOPIC_ARN" "ROUTER=$ROUTER" \
    "LAUNCHER=$LAUNCHER" "INSTANCES=$INSTANCES" \
    "JOBS_QUEUE=$JOBS_QUEUE" "DEAD_LETTER_QUEUE=$DEAD_LETTER_QUEUE" "FAILURES_QUEUE=$FAILURES_QUEUE" \
    "UPLOADS_RULE=$UPLOADS_RULE" ${@+"$@"}
}

# To the file WANTED_ALARMS, one on a line. An instance has MAX_INSTANCE_HOURS to end by itself, and one more.
wanted_alarms() {
  document alarms alarms.json "APP_EVENTS_DIMENSIONS=$(app_events_dimensions)" \
    "HOURS_TOO_LONG=$((MAX_INSTANCE_HOURS + 1))" "INSTANCES_TOO_MANY=$((MIN_INSTANCES + 1))" >"$WANTED_ALARMS"
}

# To the file FOUND_ALARMS.
found_alarms() {
  look_up cloudwatch describe-alarms --alarm-name-prefix "$QUEUE_PREFIX-" --query MetricAlarms --output json || true
  printf '%s' "$FOUND" >"$FOUND_ALARMS"
}

alarm_arns() {
  local names
  names=$(sed -E "s/.*\"AlarmName\":\"([^\"]+)\".*/\"arn:$PARTITION:cloudwatch:$AWS_REGION:$ACCOUNT:alarm:\\1\"/" \
    "$WANTED_ALARMS")
  printf '[%s]' "${names//$'\n'/,}"
}

dashboard_body() {
  local prices=$ROOT/shared/prices.json
  document render dashboard.json "ALARM_ARNS=$(alarm_arns)" \
    "PRICES_DATE=$(sed -n 's/.*"date": "\(.*\)".*/\1/p' "$prices")" \
    "INSTANCE_COSTS=$(documents costs "$prices" "$QUEUE_PREFIX" "$TYPES")" \
    "INSTANCE_COSTS_HIDDEN=$(documents costs --hidden "$prices" "$QUEUE_PREFIX" "$TYPES")"
}

# The topic's policy and key, as "KEY POLICY", to FOUND.
topic_attributes() {
  look_up sns get-topic-attributes --topic-arn "$TOPIC_ARN" --output text \
    --query 'Attributes.[KmsMasterKeyId,Policy]'
}

# To FOUND; nothing if that address was never subscribed.
subscription() {
  look_up sns list-subscriptions-by-topic --topic-arn "$TOPIC_ARN" --output text \
    --query "Subscriptions[?Protocol=='email' && Endpoint=='$ALARM_EMAIL'].SubscriptionArn" || true
}

# Those of the group's metrics that alarms look at and that it tells, in order, to FOUND; false if there is no group.
group_metrics() {
  look_up autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$INSTANCES" --output text --query \
    "AutoScalingGroups[].[AutoScalingGroupName, sort((EnabledMetrics || \`[]\`)[?contains('$GROUP_METRICS', Metric)].Metric)][]" &&
    [[ -n $FOUND && $FOUND != None ]] || return 1
  FOUND=${FOUND//[$'\t\n']/ }
  FOUND=${FOUND#"$INSTANCES"}
  FOUND=${FOUND# }
}

# The month's limit to FOUND, nothing if there is none; false if these credentials may not look at AWS Budgets.
budget() {
  local errors=$SCRATCH/budget-errors
  FOUND=$(aws budgets describe-budget --account-id "$ACCOUNT" --budget-name "$QUEUE_PREFIX" \
    --query 'Budget.BudgetLimit.Amount' --output text 2>"$errors") || grep -qE "$ABSENT" "$errors"
}
