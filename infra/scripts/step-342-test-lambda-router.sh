#!/usr/bin/env bash
# Usage: infra/scripts/step-342-test-lambda-router.sh [--dry-run] [--yes] [--help]
# Summary: Call the router with an event that is nothing to it, and ask EventBridge what would reach it. Touches no data.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify
source "$LIB/lambda.sh" "$ROUTER" router

NEXT="infra/scripts/step-340-deploy-lambda-router.sh, then infra/scripts/step-341-configure-eventbridge-trigger.sh"

# event KEY: what S3 sends when KEY was written.
event() {
  documents object source=aws.s3 "detail-type=Object Created" id=00000000-0000-0000-0000-000000000342 \
    "account=$ACCOUNT" "region=$AWS_REGION" time=2026-01-01T00:00:00Z resources:='[]' version=0 \
    "detail:={\"bucket\":{\"name\":\"$AUDIO_BUCKET\"},\"object\":{\"key\":\"$1\",\"size\":1,\"etag\":\"0\"},\"reason\":\"PutObject\"}"
}

invocation() {
  local failure answer
  event users/step-342/notes/not-audio.pdf >"$SCRATCH/event.json"
  if [[ -n $DRY_RUN ]]; then
    change lambda invoke --function-name "$ROUTER" --payload "fileb://event.json" answer.json
    return
  fi
  failure=$(aws lambda invoke --function-name "$ROUTER" --payload "fileb://$SCRATCH/event.json" \
    --query FunctionError --output text "$SCRATCH/answer.json")
  answer=$(cat "$SCRATCH/answer.json")
  if [[ $failure != None ]]; then
    problem "$ROUTER failed: $answer"
  elif [[ $answer != *'"ignored"'* ]]; then
    problem "$ROUTER answered $answer, expected the decision \"ignored\""
  fi
}

# matched KEY True|False: whether the deployed rule takes that upload.
matched() {
  local file
  file=$(mktemp "$SCRATCH/upload.XXXXXX")
  event "$1" >"$file"
  expect "$UPLOADS_RULE takes $1" "$2" "$(aws events test-event-pattern --event-pattern "file://$SCRATCH/pattern" \
    --event "file://$file" --query Result --output text)"
}

# target RULE BUS
target() {
  expect "$1: target, dead letters, retries, age" "$ROUTER_ARN $FAILURES_ARN 185 86400" "$(
    aws events list-targets-by-rule --rule "$1" --event-bus-name "$2" --output text --query \
      'Targets[].[Arn,DeadLetterConfig.Arn,RetryPolicy.MaximumRetryAttempts,RetryPolicy.MaximumEventAgeInSeconds]' |
      tr '\t' ' ' || true
  )"
}

if ! look_up events describe-rule --name "$UPLOADS_RULE" --query EventPattern --output text; then
  [[ -n $DRY_RUN ]] || fail "rule $UPLOADS_RULE does not exist" "" "$NEXT"
  FOUND=$(render "$PATTERNS/uploads.json")
fi
printf '%s' "$FOUND" >"$SCRATCH/pattern"
checks=(
  invocation
  "matched users/u/audio/sessions/s/chunk-001.webm True"
  "matched users/u/audio/sessions/s/chunk-1.WAV True"
  "matched users/u/audio/sessions/s/metadata.json True"
  "matched users/u/transcripts/s-chunk-001.json False"
  "matched users/u/transcripts/s.srt False"
  "matched users/u/transcripts/s.vtt False"
  "matched users/u/transcripts/s.txt False"
)
[[ -n $DRY_RUN ]] || checks+=("check_limits $LAMBDA_CONCURRENCY" "target $UPLOADS_RULE default" "target $APP_EVENTS_RULE $EVENT_BUS_NAME")
in_parallel "${checks[@]}"
verdict "the router answers, and only audio and manifests reach it" "$NEXT"
