#!/usr/bin/env bash
# Usage: infra/scripts/step-330-test-transcription.sh [--dry-run] [--yes] [--help]
# Summary: Upload three seconds of speech as a recording of the user step-330, wait for its transcript, remove both.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

AUDIO=users/step-330/audio/sessions/hello/chunk-001.wav
TRANSCRIPT=users/step-330/transcripts/hello-chunk-001
SECONDS_TO_WAIT=${TRANSCRIPT_TIMEOUT:-120}
NEXT="infra/scripts/step-326-check-gpu-health.sh, step-342-test-lambda-router.sh; router's log: $ROUTER_LOG_GROUP"

# remove KEY KEY
remove() {
  change s3api delete-objects --bucket "$AUDIO_BUCKET" --delete "Objects=[{Key=$1},{Key=$2}],Quiet=true" >/dev/null
}

# Is there a server that the router can reach?
server_runs() {
  [[ -z ${FAST_API_SERVER_URL:-} ]] || return 0
  [[ -n $ROUTER_SUBNETS ]] || return 1
  look_up ec2 describe-instances --filters "Name=tag:aws:autoscaling:groupName,Values=$INSTANCES" \
    Name=instance-state-name,Values=running --query 'Reservations[].Instances[].InstanceId' --output text || true
  [[ -n $FOUND && $FOUND != None ]]
}

# arrived KEY: into the file `answer`.
arrived() { look_up s3api get-object --bucket "$AUDIO_BUCKET" --key "$1" "$SCRATCH/answer"; }

# field NAME: of what arrived.
field() {
  "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1], encoding="utf-8")).get(sys.argv[2], ""))' \
    "$SCRATCH/answer" "$1"
}

look_up s3api head-bucket --bucket "$AUDIO_BUCKET" || absent "bucket $AUDIO_BUCKET" step-020-create-sqs-resources
remove "$TRANSCRIPT.json" "$TRANSCRIPT.error.json" # of an earlier run: what is found below must be new
change s3api put-object --bucket "$AUDIO_BUCKET" --key "$AUDIO" --body "$ROOT/tests/data/hello.wav" >/dev/null
[[ -z $DRY_RUN ]] || exit 0
if ! server_runs; then
  good "uploaded s3://$AUDIO_BUCKET/$AUDIO"
  note "no server runs that the router can reach: the job waits in the queue $JOBS_QUEUE for the next batch (step-351), or for step-352 now."
  note "Its transcript will be s3://$AUDIO_BUCKET/$TRANSCRIPT.json"
  exit 0
fi

started=$SECONDS
until arrived "$TRANSCRIPT.json"; do
  if arrived "$TRANSCRIPT.error.json"; then
    fail "the recording was not transcribed: $(field type)" "$(field message)" "$NEXT"
  fi
  ((SECONDS - started < SECONDS_TO_WAIT)) || fail "no transcript after $SECONDS_TO_WAIT seconds" \
    "the router could not reach a server, and the job waits in the queue $JOBS_QUEUE" "$NEXT"
  sleep 1
done
printf '%s\n' "$(field text)"
good "transcribed in $((SECONDS - started)) seconds by $(field model), route $(field route)"
[[ -n ${KEEP:-} ]] || remove "$AUDIO" "$TRANSCRIPT.json"
