#!/usr/bin/env bash
# Usage: infra/scripts/step-352-test-batch-run.sh [--dry-run] [--yes] [--help]
# Summary: Call the launcher as the schedule would, and watch until the queue is empty and the instances are gone.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
need SQS_QUEUE_URL step-020-create-sqs-resources
need SQS_DLQ_URL step-020-create-sqs-resources
identify

TEST_TIMEOUT=${TEST_TIMEOUT:-60}
STOP="aws autoscaling set-desired-capacity --auto-scaling-group-name $INSTANCES --desired-capacity 0"

# backlog URL: WAITING, AT_WORK and DELAYED messages, by the queue's own counts: nothing is received.
backlog() {
  look_up sqs get-queue-attributes --queue-url "$1" --attribute-names ApproximateNumberOfMessages \
    ApproximateNumberOfMessagesNotVisible ApproximateNumberOfMessagesDelayed --output text --query 'Attributes.[
      ApproximateNumberOfMessages,ApproximateNumberOfMessagesNotVisible,ApproximateNumberOfMessagesDelayed]' ||
    absent "queue $1" step-020-create-sqs-resources
  read -r WAITING AT_WORK DELAYED <<<"$FOUND"
}

# group: DESIRED, EXISTING and READY instances.
group() {
  look_up autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$INSTANCES" --output text --query \
    "AutoScalingGroups[0].[DesiredCapacity,length(Instances),length(Instances[?LifecycleState=='InService'])]" || true
  [[ -n $FOUND && $FOUND != None ]] || absent "Auto Scaling group $INSTANCES" step-320-launch-gpu-instances
  read -r DESIRED EXISTING READY <<<"$FOUND"
}

# Why no instance comes, if AWS has said so since we began; it goes on trying.
hindrance() {
  local began status message
  look_up autoscaling describe-scaling-activities --auto-scaling-group-name "$INSTANCES" --no-paginate \
    --output text --query 'Activities[0].[StartTime,StatusCode,StatusMessage]' || true
  IFS=$'\t' read -r began status message <<<"$FOUND"
  if [[ $status == Failed && ! $began < $BEGAN && $message != "$HINDRANCE" ]]; then
    warn "no instance yet: $message"
    HINDRANCE=$message
  fi
}

agree() {
  local answer
  [[ -z $ASSUME_YES ]] || return 0
  interactive || fail "nobody is here to agree" "instances cost money" "infra/scripts/$STEP.sh --yes"
  read -r -p "  Start? [y/N] " answer
  [[ $answer == [yY]* ]] || fail "nothing was started" "you said no"
}

# start: asks the launcher, who knows what it is worth. What it decided goes to CAPACITY, REASON and WHAT.
start() {
  local failure answer=$SCRATCH/answer
  note "a GPU instance costs 0.2 to 1 dollar an hour by type and market, and ends by itself when the queue is empty and" \
    "it was idle for $IDLE_TIMEOUT_MINUTES minutes; how many start is the launcher's choice, at most $1"
  if [[ -n $DRY_RUN ]]; then
    change lambda invoke --function-name "$LAUNCHER" --payload "fileb://event.json" answer.json
    return
  fi
  agree
  printf '{"occasion":"window"}' >"$SCRATCH/event"
  look_up lambda invoke --function-name "$LAUNCHER" --payload "fileb://$SCRATCH/event" \
    --query FunctionError --output text "$answer" || absent "function $LAUNCHER" step-345-deploy-launcher
  failure=$FOUND
  [[ $failure == None ]] || fail "the launcher failed" "$(cat "$answer")" \
    "look at its log group $LAUNCHER_LOG_GROUP; infra/scripts/step-345-deploy-launcher.sh sets it up"
  IFS=$'\t' read -r CAPACITY REASON WHAT < <("$PYTHON" -c '
import json, sys

answer = json.load(open(sys.argv[1], encoding="utf-8"))
print(answer["capacity"], answer["reason"], answer["why"], sep="\t")' "$answer")
  note "the launcher wants $CAPACITY instances ($REASON): $WHAT"
}

# over: no instance is left but those that the group must have, and these have nothing to do.
over() {
  ((DESIRED <= MIN_INSTANCES && EXISTING <= MIN_INSTANCES && (MIN_INSTANCES == 0 || WAITING + AT_WORK == 0)))
}

# watch: until there have been instances, and it is over.
watch() {
  local deadline=$((SECONDS + TEST_TIMEOUT * 60)) line='' said=''
  SERVED='' HINDRANCE=''
  while :; do
    group
    backlog "$SQS_QUEUE_URL"
    line="instances: $READY in service of $DESIRED; jobs: $WAITING waiting, $AT_WORK at work"
    [[ $line == "$said" ]] || note "$((SECONDS / 60)) min: $line"
    said=$line
    ((READY == 0)) || SERVED=1
    [[ -n $SERVED ]] || hindrance
    if [[ -n $SERVED ]] && over; then
      return
    fi
    ((SECONDS < deadline)) || too_late "$line"
    sleep 2
  done
}

too_late() {
  if [[ -z $SERVED ]]; then
    fail "no instance came into service within $TEST_TIMEOUT minutes" \
      "${HINDRANCE:-AWS has named no reason} (the group goes on trying; to stop that: $STOP)" \
      "check the account's quota for G instances, or ON_DEMAND_PERCENT=100, then step-320 and infra/scripts/$STEP.sh"
  fi
  fail "the batch was not done within $TEST_TIMEOUT minutes" "$1" \
    "look at the log groups $WORKER_LOG_GROUP and $SERVER_LOG_GROUP; infra/scripts/$STEP.sh goes on watching"
}

need_group
IFS=$'\t' read -r largest desired <<<"$FOUND"
backlog "$SQS_QUEUE_URL"
note "jobs: $WAITING waiting, $AT_WORK at work, $DELAYED delayed"
BEGAN=$(date -u +%Y-%m-%dT%H:%M:%S)
if [[ -n $DRY_RUN ]] || ((desired <= MIN_INSTANCES)); then
  [[ $largest != 0 ]] || fail "the group $INSTANCES may have no instance" "its largest size is 0" \
    "MAX_INSTANCES=1 in ${ENV_FILE/#$ROOT\//}, then infra/scripts/step-320-launch-gpu-instances.sh"
  start "$largest"
  [[ -z $DRY_RUN ]] || exit 0
  if [[ $CAPACITY == 0 || $REASON == empty ]]; then
    good "the launcher works, and has started nothing. To see a batch run: infra/scripts/step-330-test-transcription.sh," \
      "which uploads something, and this step again"
    exit 0
  fi
else
  note "a batch is running already: only watching it"
fi
watch

((WAITING + AT_WORK == 0)) || fail "the instances are gone and $((WAITING + AT_WORK)) jobs are left" \
  "the worker stopped before the queue was empty, or they came since" "look at the log group $WORKER_LOG_GROUP"
backlog "$SQS_DLQ_URL"
((WAITING == 0)) || warn "$WAITING dead letters are in $DEAD_LETTER_QUEUE: each batch tries those that it can read once more"
((MIN_INSTANCES > 0)) || GONE=", the instances are gone"
good "the batch ran: the queue is empty${GONE:-}"
