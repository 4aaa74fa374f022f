# shellcheck shell=bash
# shellcheck disable=SC2034 # the names defined here are for the steps
# What every step shares: strict mode, flags, configuration, names, talking, and calling AWS.
#
# A step is:  # Usage: … and # Summary: … lines, `source lib/common.sh`, `begin "$@"`, then its work.
# stdout is data, stderr is talk. Written for bash 3.2, which is what macOS has.

set -Eeuo pipefail
umask 077 # temporary files and ENV_FILE may hold the server's key

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ROOT=$(cd "$SCRIPTS/../.." && pwd)
LIB=$SCRIPTS/lib
POLICIES=$SCRIPTS/../policies
PATTERNS=$SCRIPTS/patterns
STEP=$(basename "$0" .sh)
ENV_FILE=${ENV_FILE:-$ROOT/.env}
DRY_RUN=
ASSUME_YES=

# Talking -----------------------------------------------------------------------------------------------------------

if [[ -t 2 && -z ${NO_COLOR:-} ]]; then
  BOLD=$'\e[1m' GREEN=$'\e[32m' YELLOW=$'\e[33m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
  BOLD='' GREEN='' YELLOW='' RED='' PLAIN=''
fi

title() { printf '%s%s%s\n' "$BOLD" "$*" "$PLAIN" >&2; }
note() { printf '  %s\n' "$*" >&2; }
good() { printf '  %sok%s  %s\n' "$GREEN" "$PLAIN" "$*" >&2; }
warn() { printf '  %snote%s  %s\n' "$YELLOW" "$PLAIN" "$*" >&2; }

# fail WHAT [WHY] [NEXT]: what went wrong, why, and the next command.
fail() {
  trap - ERR
  first_failure || exit 1
  printf '%sfailed%s  %s\n' "$RED" "$PLAIN" "$1" >&2
  [[ -z ${2:-} ]] || printf '   why  %s\n' "$2" >&2
  [[ -z ${3:-} ]] || printf '  next  %s\n' "$3" >&2
  exit 1
}

unexpected() {
  explain "${REFUSAL:-/dev/null}"
  fail "$STEP stopped at line $1 (status $2)" "$WHY" "$NEXT"
}

# A failure travels up through subshells: the one that knows what happened speaks, the others are silent.
first_failure() { [[ -z ${SCRATCH:-} ]] || mkdir "$SCRATCH/failed" 2>/dev/null; }

# Starting ----------------------------------------------------------------------------------------------------------

header() { sed -n "s/^# $1: //p" "$SCRIPTS/$STEP.sh"; }

usage() {
  printf 'Usage: %s\n\n%s\n\n' "$(header Usage)" "$(header Summary)"
  printf '  --dry-run  print every call that would change something, make none\n'
  printf '  --yes      ask nothing\n'
  printf '  --help     this text\n\n'
  printf 'Configuration is read from %s; the environment wins over it.\n' "${ENV_FILE/#$ROOT\//}"
}

# begin "$@": flags, configuration, names. Every step calls it first.
begin() {
  local flag
  for flag in "$@"; do
    case $flag in
      --dry-run) DRY_RUN=1 ;;
      --yes) ASSUME_YES=1 ;;
      --help | -h)
        usage
        exit 0
        ;;
      *) fail "unknown argument: $flag" "" "$0 --help" ;;
    esac
  done
  trap 'unexpected $LINENO $?' ERR
  SCRATCH=$(mktemp -d)
  PROBLEMS=$SCRATCH/problems
  : >"$PROBLEMS"
  trap 'rm -rf "$SCRATCH"' EXIT
  load_configuration
  name_everything
  title "$STEP: $(header Summary)"
}

interactive() { [[ -t 0 && -t 2 && -z $ASSUME_YES && -z $DRY_RUN ]]; }

# Configuration -----------------------------------------------------------------------------------------------------

# Reads KEY=VALUE lines without executing them. A key that the environment has keeps the environment's value.
load_configuration() {
  local line key value
  if [[ -f $ENV_FILE ]]; then
    while IFS= read -r line || [[ -n $line ]]; do
      [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || continue
      key=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
      [[ -z ${!key+set} ]] || continue
      printf -v "$key" '%s' "$(unquote "$value")"
      # The CLI reads these itself; nothing else, above all not API_KEY, needs to be in every child's environment.
      [[ $key != AWS_* || -z ${!key} ]] || export "${key?}"
    done <"$ENV_FILE"
  fi
  export AWS_PAGER='' AWS_CLI_AUTO_PROMPT=off
  [[ -n ${AWS_ENDPOINT_URL:-} ]] || unset AWS_ENDPOINT_URL
  AWS_REGION=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
  QUEUE_PREFIX=${QUEUE_PREFIX:-smart-transcription}
  EVENT_BUS_NAME=${EVENT_BUS_NAME:-default}
  HEALTH_CHECK_TIMEOUT=${HEALTH_CHECK_TIMEOUT:-2}
  LAMBDA_RUNTIME=${LAMBDA_RUNTIME:-python3.13}
  LAMBDA_ARCHITECTURE=${LAMBDA_ARCHITECTURE:-x86_64}
  LAMBDA_CONCURRENCY=${LAMBDA_CONCURRENCY-8}
  [[ -n $LAMBDA_CONCURRENCY ]] || LAMBDA_CONCURRENCY=0
  FAST_API_PORT=${FAST_API_PORT:-8000}
  AMI_PARAMETER=${AMI_PARAMETER:-/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id}
  INSTANCE_TYPES=${INSTANCE_TYPES:-g4dn.xlarge,g5.xlarge,g6.xlarge}
  MIN_INSTANCES=${MIN_INSTANCES:-0}
  MAX_INSTANCES=${MAX_INSTANCES:-2}
  ON_DEMAND_PERCENT=${ON_DEMAND_PERCENT:-0}
  MAX_INSTANCE_HOURS=${MAX_INSTANCE_HOURS:-12}
  ALARM_EMAIL=${ALARM_EMAIL:-}
  MONTHLY_BUDGET=${MONTHLY_BUDGET:-}
  VPC_ID=${VPC_ID:-}
  CLIENT_CIDR=${CLIENT_CIDR:-}
  ROUTER_SUBNETS=${ROUTER_SUBNETS:-}
  BATCH_SCHEDULE="${BATCH_SCHEDULE:-cron(0 0 * * ? *)}"
  BATCH_TIMEZONE=${BATCH_TIMEZONE:-UTC}
  IDLE_TIMEOUT_MINUTES=${IDLE_TIMEOUT_MINUTES:-10}
  MODE=${MODE:-scheduled}
  # One is always there only if the group must have it: an idle instance that may end does.
  [[ $MODE != always || $MIN_INSTANCES != 0 ]] || MIN_INSTANCES=1
}

unquote() {
  local value=$1
  case $value in
    \"*\"*) value=${value#\"} value=${value%%\"*} ;;
    \'*\'*) value=${value#\'} value=${value%%\'*} ;;
    *)
      value=${value%%[[:space:]]#*}
      value=${value%"${value##*[![:space:]]}"}
      ;;
  esac
  printf '%s' "$value"
}

# save_setting KEY VALUE: rewrites that one line of ENV_FILE, or appends it; atomic, and private.
save_setting() {
  local key=$1 value=$2 line found='' copy
  if [[ -n $DRY_RUN ]]; then
    note "would write $key to ${ENV_FILE/#$ROOT\//}"
    return
  fi
  copy=$(mktemp "$ENV_FILE.XXXXXX")
  {
    if [[ -f $ENV_FILE ]]; then
      while IFS= read -r line || [[ -n $line ]]; do
        if [[ $line =~ ^(export[[:space:]]+)?$key= ]]; then
          [[ -n $found ]] || printf '%s=%s\n' "$key" "$value"
          found=1
        else
          printf '%s\n' "$line"
        fi
      done <"$ENV_FILE"
    fi
    [[ -n $found ]] || printf '%s=%s\n' "$key" "$value"
  } >"$copy"
  mv -f "$copy" "$ENV_FILE"
}

# saved_setting KEY: what ENV_FILE itself says, whatever the environment has.
saved_setting() {
  local line
  [[ -f $ENV_FILE ]] || return 0
  while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line =~ ^(export[[:space:]]+)?$1=(.*)$ ]]; then
      unquote "${BASH_REMATCH[2]}"
      return
    fi
  done <"$ENV_FILE"
}

# need KEY STEP: a setting that an earlier step wrote.
need() {
  [[ -z ${!1:-} ]] || return 0
  if [[ -n $DRY_RUN ]]; then
    printf -v "$1" '%s' "<$1>"
  else
    fail "$1 is not set" "${ENV_FILE/#$ROOT\//} has no $1 yet; $2 writes it" "infra/scripts/$2.sh"
  fi
}

# absent WHAT STEP: what an earlier step makes is not there; a dry run only says so.
absent() {
  if [[ -n $DRY_RUN ]]; then
    note "$1 does not exist yet; infra/scripts/$2.sh makes it"
  else
    fail "$1 does not exist" "" "infra/scripts/$2.sh"
  fi
}

# Names: everything that a step creates is looked up by these, never remembered.
name_everything() {
  JOBS_QUEUE=$QUEUE_PREFIX-jobs
  DEAD_LETTER_QUEUE=$QUEUE_PREFIX-dlq
  FAILURES_QUEUE=$QUEUE_PREFIX-failures
  ROUTER=$QUEUE_PREFIX-router # function and role
  INSTANCE_ROLE=$QUEUE_PREFIX-gpu-instance
  UPLOADS_RULE=$QUEUE_PREFIX-uploads
  APP_EVENTS_RULE=$QUEUE_PREFIX-app-events
  API_KEY_PARAMETER=/$QUEUE_PREFIX/api-key
  ROUTER_LOG_GROUP=/aws/lambda/$ROUTER
  ECR_REPOSITORY=$QUEUE_PREFIX-server
  LAUNCH_TEMPLATE=$QUEUE_PREFIX-gpu
  INSTANCES=$QUEUE_PREFIX-gpu       # Auto Scaling group, and the instances' Name
  SERVER_GROUP=$QUEUE_PREFIX-gpu    # security group of the instances
  ROUTER_GROUP=$QUEUE_PREFIX-router # security group of the function
  SCHEDULER_ROLE=$QUEUE_PREFIX-scheduler
  LAUNCHER=$QUEUE_PREFIX-launcher # function and role
  LAUNCHER_LOG_GROUP=/aws/lambda/$LAUNCHER
  WINDOW=$QUEUE_PREFIX-batch # schedules: with -1, -2, … for each window
  WATCH=$QUEUE_PREFIX-watch  # and one that looks every few minutes
  ALARM_TOPIC=$QUEUE_PREFIX-alarms
  DASHBOARD=$QUEUE_PREFIX
  SERVER_LOG_GROUP=/$QUEUE_PREFIX/server
  WORKER_LOG_GROUP=/$QUEUE_PREFIX/worker
  SERVER_ENV_PARAMETER=/$QUEUE_PREFIX/server-env
  WORKER_ENV_PARAMETER=/$QUEUE_PREFIX/worker-env
}

# AWS ---------------------------------------------------------------------------------------------------------------

if [[ -z ${AWS_CLI:-} ]]; then
  AWS_CLI=$ROOT/.venv-aws/bin/aws
  [[ -x $AWS_CLI ]] || AWS_CLI=aws
fi
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=$ROOT/.venv/bin/python
  [[ -x $PYTHON ]] || PYTHON=python3
fi

# For calls that only read. CLI v1 ignores AWS_ENDPOINT_URL for sqs, so it is always passed. What AWS said to a call
# that failed stays in the file REFUSAL, to be explained to the person.
aws() {
  local status=0
  REFUSAL=$(mktemp "$SCRATCH/refusal.XXXXXX")
  command "$AWS_CLI" --region "$AWS_REGION" ${AWS_ENDPOINT_URL:+--endpoint-url "$AWS_ENDPOINT_URL"} \
    --cli-connect-timeout 10 --cli-read-timeout 60 "$@" 2>"$REFUSAL" || status=$?
  cat "$REFUSAL" >&2
  ((status)) || REFUSAL=
  return "$status"
}

# explain FILE: what the AWS CLI's words in it mean for a person, as WHY and NEXT.
explain() {
  local words action='do this' again="infra/scripts/$STEP.sh, again: it is safe"
  words=$(cat "$1")
  WHY="see the message above" NEXT=$again
  case $words in
    *"not authorized to perform"* | *AccessDenied* | *UnauthorizedOperation* | *AuthorizationError*)
      [[ ! $words =~ perform:\ ([A-Za-z0-9-]+:[A-Za-z]+) ]] || action=${BASH_REMATCH[1]}
      WHY="these credentials may not $action"
      NEXT="ask for the policies infra/policies/deployer*.json (docs/deploy.md says how), then $again"
      ;;
    *ExpiredToken* | *RequestExpired* | *"oken has expired"* | *"session has expired"*)
      WHY="the credentials have expired"
      NEXT="get new ones (aws sso login, or the keys' owner), then $again"
      ;;
    *UnrecognizedClient* | *InvalidClientTokenId* | *InvalidAccessKeyId* | *SignatureDoesNotMatch* | *AuthFailure*)
      WHY="AWS in $AWS_REGION does not know these credentials: they are wrong, or this region is not enabled"
      NEXT="aws configure, then $again"
      ;;
    *"Unable to locate credentials"* | *NoCredentials* | *"config profile"*)
      WHY="there are no credentials"
      NEXT="aws configure (or export AWS_PROFILE), then $again"
      ;;
    *"Could not connect"* | *"onnect timeout"* | *"Could not resolve"*)
      WHY="nothing answers at ${AWS_ENDPOINT_URL:-AWS in $AWS_REGION}: is that a region, and is there a network?"
      NEXT="AWS_REGION in ${ENV_FILE/#$ROOT\//}"
      [[ -z ${AWS_ENDPOINT_URL:-} ]] || NEXT="make up, if that is the local stack"
      ;;
    *Throttling* | *RequestLimitExceeded* | *TooManyRequests*) WHY="AWS asks for fewer calls at a time" ;;
    *LimitExceeded* | *QuotaExceeded*)
      WHY="a quota of this account is used up"
      NEXT="ask for more (docs/deploy.md, quotas), then $again"
      ;;
  esac
}

# For calls that change something.
change() {
  local line
  if [[ -n $DRY_RUN ]]; then
    printf -v line ' %q' "$@"
    printf '  would run: aws%s\n' "$line" >&2 # in one go: others may be printing too
  else
    aws "$@"
  fi
}

ABSENT='\([A-Za-z.]*(NoSuch|NotFound|NonExistent|DoesNotExist)[A-Za-z.]*\)|\(404\)' # the code of "there is no such thing"

# look_up COMMAND…: its output goes to FOUND; false if AWS says that there is no such thing. Any other error ends the
# step: "not allowed to look" must never pass for "not there".
look_up() {
  local errors
  errors=$(mktemp "$SCRATCH/errors.XXXXXX")
  if FOUND=$(aws "$@" 2>"$errors"); then
    return 0
  elif grep -qE "$ABSENT" "$errors"; then
    FOUND=
    return 1
  fi
  cat "$errors" >&2
  explain "$errors"
  fail "aws $1 $2 was refused" "$WHY" "$NEXT"
}

# need_group: the Auto Scaling group must be there. Its largest and its desired size go to FOUND.
need_group() {
  look_up autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$INSTANCES" \
    --query 'AutoScalingGroups[0].[MaxSize,DesiredCapacity]' --output text || true
  [[ -n $FOUND && $FOUND != None ]] || absent "Auto Scaling group $INSTANCES" step-320-launch-gpu-instances
}

# ours WHAT OWNER: what has the name but not the tag is someone else's and stays as it is.
ours() {
  [[ $2 == "$QUEUE_PREFIX" ]] || fail "$1 belongs to something else" \
    "it is there already and has no tag Project=$QUEUE_PREFIX" "choose another QUEUE_PREFIX in ${ENV_FILE/#$ROOT\//}"
}

saved_parameter() { look_up ssm get-parameter --name "$1" --query Parameter.Value --output text; }

# acts_as_our_role: whether the schedule in FOUND does. Schedules have no tags; whose one is shows in that.
acts_as_our_role() { [[ $FOUND == *"\"$(role_arn "$SCHEDULER_ROLE")\""* ]]; }

# save_parameter NAME VALUE: written only where it differs.
save_parameter() {
  if ! saved_parameter "$1"; then
    change ssm put-parameter --name "$1" --type String --value "$2" --tags "Key=Project,Value=$QUEUE_PREFIX" >/dev/null
  elif [[ $FOUND != "$2" ]]; then
    change ssm put-parameter --name "$1" --type String --value "$2" --overwrite >/dev/null
  fi
}

# log_group NAME: with 30 days of memory; one that has no end of it yet gets one.
log_group() {
  look_up logs describe-log-groups --log-group-name-prefix "$1" --output text \
    --query "logGroups[?logGroupName=='$1'] | [0].[logGroupName,retentionInDays]" || true
  [[ $FOUND != "$1"$'\t30' ]] || return 0
  [[ $FOUND == "$1"$'\t'* ]] || change logs create-log-group --log-group-name "$1" --tags "Project=$QUEUE_PREFIX"
  change logs put-retention-policy --log-group-name "$1" --retention-in-days 30
}

# Who we are: sets ACCOUNT and PARTITION, and the ARNs made of them. One call.
identify() {
  local arn
  [[ -n $AWS_REGION ]] || fail "AWS_REGION is not set" "" "infra/scripts/step-000-setup-configuration.sh"
  look_up sts get-caller-identity --query '[Account,Arn]' --output text
  read -r ACCOUNT arn <<<"$FOUND"
  PARTITION=$(cut -d: -f2 <<<"$arn")
  AUDIO_BUCKET=${AUDIO_BUCKET:-$QUEUE_PREFIX-audio-$ACCOUNT}
  JOBS_ARN=$(sqs_arn "$JOBS_QUEUE")
  DEAD_LETTER_ARN=$(sqs_arn "$DEAD_LETTER_QUEUE")
  FAILURES_ARN=$(sqs_arn "$FAILURES_QUEUE")
  ROUTER_ARN=arn:$PARTITION:lambda:$AWS_REGION:$ACCOUNT:function:$ROUTER
  LAUNCHER_ARN=arn:$PARTITION:lambda:$AWS_REGION:$ACCOUNT:function:$LAUNCHER
  UPLOADS_RULE_ARN=arn:$PARTITION:events:$AWS_REGION:$ACCOUNT:rule/$UPLOADS_RULE
  APP_EVENTS_RULE_ARN=arn:$PARTITION:events:$AWS_REGION:$ACCOUNT:rule/$APP_EVENTS_RULE
  [[ $EVENT_BUS_NAME == default ]] ||
    APP_EVENTS_RULE_ARN=arn:$PARTITION:events:$AWS_REGION:$ACCOUNT:rule/$EVENT_BUS_NAME/$APP_EVENTS_RULE
}

sqs_arn() { printf 'arn:%s:sqs:%s:%s:%s' "$PARTITION" "$AWS_REGION" "$ACCOUNT" "$1"; }
role_arn() { printf 'arn:%s:iam::%s:role/%s' "$PARTITION" "$ACCOUNT" "$1"; }

# A "TLS only" policy would lock everyone out of an endpoint that has no TLS.
plain_http() { [[ ${AWS_ENDPOINT_URL:-} == http://* ]]; }

# render TEMPLATE: the JSON document with ${NAMES} filled in, on one line; without its TLS rule where there is no TLS.
render() {
  # shellcheck disable=SC2046  # two words or none
  "$PYTHON" "$LIB/documents.py" render $(plain_http && printf -- '--without TlsOnly') "$1" \
    "PARTITION=$PARTITION" "REGION=$AWS_REGION" "ACCOUNT=$ACCOUNT" "QUEUE_PREFIX=$QUEUE_PREFIX" \
    "AUDIO_BUCKET=$AUDIO_BUCKET" "EVENT_BUS_NAME=$EVENT_BUS_NAME" "QUEUE_ARN=${QUEUE_ARN:-}" \
    "UPLOADS_RULE_ARN=$UPLOADS_RULE_ARN" "APP_EVENTS_RULE_ARN=$APP_EVENTS_RULE_ARN"
}

documents() { "$PYTHON" "$LIB/documents.py" "$@"; }

# in_parallel FUNCTION…: runs them side by side, waits for all, fails if one failed. "FUNCTION ARG" may have words.
in_parallel() {
  local call pids='' pid failed=
  for call in "$@"; do
    # shellcheck disable=SC2086  # the words are the function and its arguments
    $call &
    pids="$pids $!"
  done
  for pid in $pids; do
    wait "$pid" || failed=1
  done
  [[ -z $failed ]] || fail "$STEP did not finish" "see the message above" "infra/scripts/$STEP.sh, again: it is safe"
}

# Validating --------------------------------------------------------------------------------------------------------

# expect WHAT EXPECTED FOUND: collects what differs, so that a person sees all of it at once.
expect() {
  if [[ $2 == "$3" ]]; then
    return 0
  fi
  problem "$1 is ${3:-not set}, expected $2"
}

# expect_document WHAT EXPECTED FOUND: the same for JSON, whatever its order and spaces.
expect_document() { documents same "$2" "$3" || problem "$1 is not as this project sets it: ${3:0:200}"; }

problem() {
  printf '%s\n' "$*" >>"$PROBLEMS"
  printf '  %swrong%s  %s\n' "$RED" "$PLAIN" "$*" >&2
}

# verdict WHAT NEXT: fails if any expectation did.
verdict() {
  local count
  count=$(wc -l <"$PROBLEMS" | tr -d ' ')
  ((count == 0)) || fail "$count of the checks of $1" "see the lines above" "$2"
  good "$1"
}
