#!/usr/bin/env bash
# Usage: infra/scripts/step-351-configure-schedule.sh [--dry-run] [--yes] [--help]
# Summary: Call the launcher at each time of BATCH_SCHEDULE, and every 5 minutes to watch; with retries; reads it all back.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

ROLE=$(role_arn "$SCHEDULER_ROLE")
# A window that cannot be opened is tried again for six hours; later it would meet the working day, or the next night.
# A look that fails is soon followed by the next one.
RETRIES=185 WINDOW_AGE=21600 WATCH_AGE=300

# name_schedules: what there has to be, in four lists.
name_schedules() {
  local expression
  NAMES=() EXPRESSIONS=() OCCASIONS=() AGES=()
  while IFS= read -r expression; do
    [[ -z $expression ]] || add "$WINDOW-$((${#NAMES[@]} + 1))" "$expression" window "$WINDOW_AGE"
  done < <(tr ';' '\n' <<<"$BATCH_SCHEDULE" | sed 's/^ *//; s/ *$//')
  add "$WATCH" "rate(5 minutes)" watch "$WATCH_AGE"
}

# add NAME EXPRESSION OCCASION AGE
add() {
  NAMES+=("$1") EXPRESSIONS+=("$2") OCCASIONS+=("$3") AGES+=("$4")
}

input() { documents object "occasion=${OCCASIONS[$1]}"; }

# schedule INDEX
schedule() {
  local index=$1 name=${NAMES[$1]} file=$SCRATCH/${NAMES[$1]}.json
  documents object "Name=$name" "Description=Smart Transcription Router: calls the launcher" \
    "ScheduleExpression=${EXPRESSIONS[index]}" "ScheduleExpressionTimezone=$BATCH_TIMEZONE" State=ENABLED \
    'FlexibleTimeWindow:={"Mode":"OFF"}' "Target:=$(
      documents object "Arn=$LAUNCHER_ARN" "RoleArn=$ROLE" "Input=$(input "$index")" \
        "DeadLetterConfig:={\"Arn\":\"$FAILURES_ARN\"}" \
        "RetryPolicy:={\"MaximumRetryAttempts\":$RETRIES,\"MaximumEventAgeInSeconds\":${AGES[index]}}"
    )" >"$file"
  if ! look_up scheduler get-schedule --name "$name" --output json; then
    save create "$name" "$file"
  elif ! acts_as_our_role; then
    fail "schedule $name is someone else's" "it does not act as $SCHEDULER_ROLE, so it stays as it is" \
      "choose another QUEUE_PREFIX in ${ENV_FILE/#$ROOT\//}"
  elif documents includes "$(cat "$file")" "$FOUND"; then
    note "$name: unchanged"
  else
    save update "$name" "$file"
  fi
}

# save create|update NAME FILE: a new role takes some seconds to be known to EventBridge Scheduler; nothing tells when.
save() {
  local refusal=$SCRATCH/$2.refused deadline=$((SECONDS + 60))
  while ! change scheduler "$1-schedule" --cli-input-json "file://$3" >/dev/null 2>"$refusal"; do
    if ! grep -q 'must allow AWS EventBridge Scheduler to assume the role' "$refusal" || ((SECONDS > deadline)); then
      refused "$2" "$refusal"
    fi
    sleep 2
  done
  cat "$refusal" >&2
}

# refused NAME FILE
refused() {
  cat "$2" >&2
  if grep -qiE 'expression|time ?zone' "$2"; then
    fail "AWS does not take the schedule" "BATCH_SCHEDULE is '$BATCH_SCHEDULE', BATCH_TIMEZONE is '$BATCH_TIMEZONE'" \
      "correct ${ENV_FILE/#$ROOT\//} (such as cron(30 2 * * ? *) and Europe/Berlin), then infra/scripts/$STEP.sh"
  fi
  explain "$2"
  fail "schedule $1 was not written" "$WHY" "$NEXT"
}

# surplus: those that an earlier BATCH_SCHEDULE, or an earlier version of this step, has left.
surplus() {
  local name
  look_up scheduler list-schedules --name-prefix "$WINDOW" --query 'Schedules[].[Name]' --output text || true
  for name in $FOUND; do
    [[ $name =~ ^$WINDOW(-[0-9]+)?$ && " ${NAMES[*]} " != *" $name "* ]] || continue
    if look_up scheduler get-schedule --name "$name" --output json && acts_as_our_role; then
      change scheduler delete-schedule --name "$name"
      good "schedule $name removed: BATCH_SCHEDULE has no such window"
    fi
  done
}

need_group
[[ -n $DRY_RUN || ${FOUND%%$'\t'*} != 0 ]] ||
  fail "the group $INSTANCES may have no instance" "its largest size is 0" \
    "MAX_INSTANCES=1 in ${ENV_FILE/#$ROOT\//}, then infra/scripts/step-320-launch-gpu-instances.sh"
look_up iam get-role --role-name "$SCHEDULER_ROLE" --query Role.Arn --output text ||
  absent "role $SCHEDULER_ROLE" step-010-setup-iam-permissions
look_up lambda get-function-configuration --function-name "$LAUNCHER" --query FunctionArn --output text ||
  absent "function $LAUNCHER" step-345-deploy-launcher
name_schedules
for index in "${!NAMES[@]}"; do schedule "$index"; done
surplus
[[ -z $DRY_RUN ]] || exit 0

# Reading it back: a schedule that cannot start anything fails at night, when nobody looks.
check() {
  local name=${NAMES[$1]} state expression timezone window target role retries age failures input
  look_up scheduler get-schedule --name "$name" --output text --query '[State,ScheduleExpression,
    ScheduleExpressionTimezone,FlexibleTimeWindow.Mode,Target.Arn,Target.RoleArn,
    Target.RetryPolicy.MaximumRetryAttempts,Target.RetryPolicy.MaximumEventAgeInSeconds,Target.DeadLetterConfig.Arn,
    Target.Input]' || true
  IFS=$'\t' read -r state expression timezone window target role retries age failures input <<<"$FOUND"
  expect "$name: State" ENABLED "$state"
  expect "$name: ScheduleExpression" "${EXPRESSIONS[$1]}" "$expression"
  expect "$name: ScheduleExpressionTimezone" "$BATCH_TIMEZONE" "$timezone"
  expect "$name: FlexibleTimeWindow" OFF "$window"
  expect "$name: what it calls" "$LAUNCHER_ARN" "$target"
  expect "$name: as whom" "$ROLE" "$role"
  expect "$name: retries" "$RETRIES" "$retries"
  expect "$name: seconds of retrying" "${AGES[$1]}" "$age"
  expect "$name: dead letters" "$FAILURES_ARN" "$failures"
  expect_document "$name: Input" "$(input "$1")" "$input"
}

for index in "${!NAMES[@]}"; do check "$index"; done
verdict "schedules ${NAMES[*]}: $BATCH_SCHEDULE, $BATCH_TIMEZONE" "infra/scripts/$STEP.sh"
