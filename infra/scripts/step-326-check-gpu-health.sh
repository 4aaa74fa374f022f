#!/usr/bin/env bash
# Usage: infra/scripts/step-326-check-gpu-health.sh [--dry-run] [--yes] [--help]
# Summary: List the GPU instances, and ask each one's server how it is. No instance at all is well, too. Changes nothing.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

# As infra/instance/user-data.sh has it: an instance whose server is not healthy by then is replaced.
START_MINUTES=20

minutes_since() {
  "$PYTHON" - "$1" <<'END'
import datetime, sys

started = datetime.datetime.fromisoformat(sys.argv[1].replace("Z", "+00:00"))
print(int((datetime.datetime.now(datetime.timezone.utc) - started).total_seconds() // 60))
END
}

# A server at an address of its own.
named_server() {
  local answer
  answer=$(curl -sS --max-time 10 -w ' (HTTP %{http_code})' "${1%/}/health" 2>&1 || true)
  if [[ $answer == *"(HTTP 200)" ]]; then
    good "$1 is healthy: ${answer% (*}"
  else
    problem "$1 says: ${answer:0:300}"
  fi
}

# ask ID: what the server on the instance says of its health, through Session Manager: nobody else can reach its port.
ask() {
  local command curl="curl -sS --max-time 10 -w ' (HTTP %{http_code})' http://127.0.0.1:$FAST_API_PORT/health 2>&1"
  command=$(aws ssm send-command --instance-ids "$1" --document-name AWS-RunShellScript --timeout-seconds 30 \
    --parameters "{\"commands\":[\"$curl\"]}" \
    --query Command.CommandId --output text) &&
    { aws ssm wait command-executed --command-id "$command" --instance-id "$1" || true; } &&
    aws ssm get-command-invocation --command-id "$command" --instance-id "$1" --query StandardOutputContent --output text
}

# instance ID TYPE MARKET LAUNCHED STATE
instance() {
  local id=$1 minutes answer what
  minutes=$(minutes_since "$4")
  what="$id ($2, ${3/None/on-demand}, $5, up for $minutes minutes)"
  if [[ -n $DRY_RUN ]]; then
    note "$what; would ask its server through Session Manager"
    return
  fi
  answer=$(ask "$id" 2>/dev/null || true)
  if [[ $answer == *"(HTTP 200)"* ]]; then
    good "$what is healthy: ${answer% (*}"
  elif ((minutes < START_MINUTES)); then
    warn "$what is still starting: it has $START_MINUTES minutes. Look again, or at its log:"
    note "aws logs tail $SERVER_LOG_GROUP --log-stream-names $id (AWS CLI 2)"
  elif [[ -n $answer ]]; then
    problem "$what says: ${answer:0:300}"
  else
    problem "$what cannot be asked from here; for its health at localhost:$FAST_API_PORT/health (needs the Session Manager plugin):
      aws ssm start-session --region $AWS_REGION --target $id --document-name AWS-StartPortForwardingSession --parameters portNumber=$FAST_API_PORT,localPortNumber=$FAST_API_PORT"
  fi
}

for url in $(tr , ' ' <<<"${FAST_API_SERVER_URL:-}"); do
  named_server "$url"
done
need_group
DESIRED=${FOUND##*$'\t'}
look_up ec2 describe-instances --filters "Name=tag:aws:autoscaling:groupName,Values=$INSTANCES" \
  Name=instance-state-name,Values=pending,running --output text --query \
  'Reservations[].Instances[].[InstanceId,InstanceType,InstanceLifecycle,LaunchTime,State.Name]' || true
if [[ -n $FOUND && $FOUND != None ]]; then
  checks=()
  while read -r id type market launched state; do
    checks+=("instance $id $type $market $launched $state")
  done <<<"$FOUND"
  in_parallel "${checks[@]}"
elif [[ $DESIRED == 0 || -n $DRY_RUN ]]; then
  note "no instance runs (desired 0): that is what idle costs, nothing"
else
  look_up autoscaling describe-scaling-activities --auto-scaling-group-name "$INSTANCES" --max-items 1 \
    --query 'Activities[0].StatusMessage' --output text || true
  problem "the group wants $DESIRED instances and has none: ${FOUND:-AWS does not say why}"
fi
verdict "nothing is wrong with the servers" "infra/scripts/$STEP.sh in some minutes; instance logs: $SERVER_LOG_GROUP"
