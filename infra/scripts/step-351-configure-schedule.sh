#!/usr/bin/env bash
# Usage: infra/scripts/step-351-configure-schedule.sh [--dry-run] [--yes] [--help]
# Summary: Start an instance when BATCH_SCHEDULE says so, with retries and a place for what fails; reads it all back.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

ROLE=$(role_arn "$SCHEDULER_ROLE")
# https://docs.aws.amazon.com/scheduler/latest/UserGuide/managing-targets-universal.html
TARGET=arn:$PARTITION:scheduler:::aws-sdk:autoscaling:setDesiredCapacity
INPUT=$(documents object "AutoScalingGroupName=$INSTANCES" DesiredCapacity:=1 HonorCooldown:=false)
# A start that fails is tried again for six hours; later it would meet the working day, or the next night.
RETRIES=185 MAX_AGE=21600

# Schedules have no tags; whose one is shows in the role that it acts with.
acts_as_our_role() { [[ $FOUND == *"\"$ROLE\""* ]]; }

# save create|update: a new role takes some seconds to be known to EventBridge Scheduler; nothing tells when.
save() {
  local deadline=$((SECONDS + 60))
  while ! change scheduler "$1-schedule" --cli-input-json "file://$SCRATCH/schedule.json" \
    >/dev/null 2>"$SCRATCH/refused"; do
    if ! grep -q 'must allow AWS EventBridge Scheduler to assume the role' "$SCRATCH/refused" ||
      ((SECONDS > deadline)); then
      refused
    fi
    sleep 2
  done
  cat "$SCRATCH/refused" >&2
}

refused() {
  cat "$SCRATCH/refused" >&2
  if grep -qiE 'expression|time ?zone' "$SCRATCH/refused"; then
    fail "AWS does not take the schedule" "BATCH_SCHEDULE is '$BATCH_SCHEDULE', BATCH_TIMEZONE is '$BATCH_TIMEZONE'" \
      "correct ${ENV_FILE/#$ROOT\//} (such as cron(30 2 * * ? *) and Europe/Berlin), then infra/scripts/$STEP.sh"
  fi
  explain "$SCRATCH/refused"
  fail "schedule $SCHEDULE was not written" "$WHY" "$NEXT"
}

need_group
[[ -n $DRY_RUN || ${FOUND%%$'\t'*} != 0 ]] ||
  fail "the group $INSTANCES may have no instance" "its largest size is 0" \
    "MAX_INSTANCES=1 in ${ENV_FILE/#$ROOT\//}, then infra/scripts/step-320-launch-gpu-instances.sh"
look_up iam get-role --role-name "$SCHEDULER_ROLE" --query Role.Arn --output text ||
  absent "role $SCHEDULER_ROLE" step-010-setup-iam-permissions

documents object "Name=$SCHEDULE" "Description=Smart Transcription Router: starts an instance for the batch" \
  "ScheduleExpression=$BATCH_SCHEDULE" "ScheduleExpressionTimezone=$BATCH_TIMEZONE" State=ENABLED \
  'FlexibleTimeWindow:={"Mode":"OFF"}' "Target:=$(
    documents object "Arn=$TARGET" "RoleArn=$ROLE" "Input=$INPUT" "DeadLetterConfig:={\"Arn\":\"$FAILURES_ARN\"}" \
      "RetryPolicy:={\"MaximumRetryAttempts\":$RETRIES,\"MaximumEventAgeInSeconds\":$MAX_AGE}"
  )" >"$SCRATCH/schedule.json"
if ! look_up scheduler get-schedule --name "$SCHEDULE" --output json; then
  save create
elif ! acts_as_our_role; then
  fail "schedule $SCHEDULE is someone else's" "it does not act as $SCHEDULER_ROLE, so it stays as it is" \
    "choose another QUEUE_PREFIX in ${ENV_FILE/#$ROOT\//}"
elif documents includes "$(cat "$SCRATCH/schedule.json")" "$FOUND"; then
  note "unchanged"
else
  save update
fi
[[ -z $DRY_RUN ]] || exit 0

# Reading it back: a schedule that cannot start anything fails at night, when nobody looks.
look_up scheduler get-schedule --name "$SCHEDULE" --output text --query '[State,ScheduleExpression,
  ScheduleExpressionTimezone,FlexibleTimeWindow.Mode,Target.Arn,Target.RoleArn,
  Target.RetryPolicy.MaximumRetryAttempts,Target.RetryPolicy.MaximumEventAgeInSeconds,Target.DeadLetterConfig.Arn,
  Target.Input]' || true
IFS=$'\t' read -r state expression timezone window target role retries age failures input <<<"$FOUND"
expect "$SCHEDULE: State" ENABLED "$state"
expect "$SCHEDULE: ScheduleExpression" "$BATCH_SCHEDULE" "$expression"
expect "$SCHEDULE: ScheduleExpressionTimezone" "$BATCH_TIMEZONE" "$timezone"
expect "$SCHEDULE: FlexibleTimeWindow" OFF "$window"
expect "$SCHEDULE: what it calls" "$TARGET" "$target"
expect "$SCHEDULE: as whom" "$ROLE" "$role"
expect "$SCHEDULE: retries" "$RETRIES" "$retries"
expect "$SCHEDULE: seconds of retrying" "$MAX_AGE" "$age"
expect "$SCHEDULE: dead letters" "$FAILURES_ARN" "$failures"
expect_document "$SCHEDULE: Input" "$INPUT" "$input"
verdict "schedule $SCHEDULE: $BATCH_SCHEDULE, $BATCH_TIMEZONE" "infra/scripts/$STEP.sh"
