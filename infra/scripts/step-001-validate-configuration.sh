#!/usr/bin/env bash
# Usage: infra/scripts/step-001-validate-configuration.sh [--dry-run] [--yes] [--help]
# Summary: Check tools, credentials and every value of the configuration; says what is wrong and how to get it right.
source "$(dirname "$0")/lib/common.sh"
begin "$@"

# matches KEY PATTERN EXPECTED: an empty value is right only if the pattern allows it.
matches() {
  [[ ${!1:-} =~ ^($2)$ ]] || problem "$1 is '${!1:-}', expected $3"
}

[[ -f $ENV_FILE ]] || fail "${ENV_FILE/#$ROOT\//} does not exist" "" "infra/scripts/step-000-setup-configuration.sh"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  problem "$PYTHON is too old or missing, expected Python 3.11 or newer (\`make install\` makes .venv)"
"$PYTHON" -m pip --version >/dev/null 2>&1 ||
  problem "$PYTHON has no pip, expected one to build the function's zip (\`make install\` makes .venv)"
command -v "$AWS_CLI" >/dev/null || problem "no AWS CLI, expected .venv-aws/bin/aws (\`make install\`) or aws on PATH"
verdict "the tools" "make install"

matches AWS_REGION '[a-z]{2}(-[a-z]+)+-[0-9]' "a region such as us-east-2"
matches AWS_ENDPOINT_URL '(https?://[^[:space:]]+)?' "a URL, or nothing for the real AWS"
matches QUEUE_PREFIX '[a-z][a-z0-9-]{1,39}' "2 to 40 lower-case letters, digits and dashes: it names everything"
matches AUDIO_BUCKET '[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]' "a bucket name: 3 to 63 lower-case letters, digits, dots, dashes"
matches EVENT_BUS_NAME '[A-Za-z0-9._-]{1,256}' "'default' or the name of a bus (not its ARN)"
matches FAST_API_SERVER_URL '(https?://[^[:space:],]+(,https?://[^[:space:],]+)*)?' \
  "the server's URL such as http://10.0.1.5:8000, several with commas, or nothing"
matches HEALTH_CHECK_TIMEOUT '10|[0-9](\.[0-9]+)?' "seconds such as 2, at most 10"
matches LAMBDA_RUNTIME 'python3\.1[1-9]' "python3.11 or newer"
matches LAMBDA_ARCHITECTURE 'x86_64|arm64' "x86_64 or arm64"
matches LAMBDA_CONCURRENCY '[0-9]+' "how many routers may run at once, or 0 for no reservation"
matches FAST_API_ECR_REPOSITORY_URI '([a-z0-9.:-]+/[a-z0-9./_-]+)?' "an image's address without its tag; step-301 writes it"
matches FAST_API_TAG '([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?' "an image's tag; step-312 writes it"
matches CONTAINER_TOOL '([a-z]+)?' "docker, podman or buildah, or nothing for the one that is installed"
matches TEST_TIMEOUT '([1-9][0-9]*)?' "minutes, or nothing"
matches FAST_API_PORT '[1-9][0-9]{0,4}' "a port such as 8000"
matches AMI_PARAMETER '/[A-Za-z0-9._/-]+' "the name of a public SSM parameter that holds an AMI's id"
matches INSTANCE_TYPES '[a-z0-9-]+\.[a-z0-9-]+(,[a-z0-9-]+\.[a-z0-9-]+)*' "instance types such as g4dn.xlarge,g5.xlarge"
matches INSTANCE_TYPE '([a-z0-9-]+\.[a-z0-9-]+)?' "one instance type such as g5.xlarge, or nothing"
matches MIN_INSTANCES '[0-9]+' "a number of instances, such as 0"
matches MAX_INSTANCES '[1-9][0-9]*' "a number of instances, such as 2"
[[ $MIN_INSTANCES$MAX_INSTANCES =~ [^0-9] ]] || ((MIN_INSTANCES <= MAX_INSTANCES)) ||
  problem "MIN_INSTANCES is $MIN_INSTANCES, expected at most MAX_INSTANCES, which is $MAX_INSTANCES"
matches ON_DEMAND_PERCENT '[0-9]|[1-9][0-9]|100' "a share from 0 (spot only) to 100 (on demand only)"
matches MAX_INSTANCE_HOURS '[1-9][0-9]?|1[0-5][0-9]|16[0-7]' "hours, such as 12; at most 167, a week less one"
matches VPC_ID '(vpc-[0-9a-f]+)?' "a VPC such as vpc-0123456789abcdef0, or nothing for the default VPC"
matches ROUTER_SUBNETS '(subnet-[0-9a-f]+(,subnet-[0-9a-f]+)*)?' "subnets with commas, or nothing"
matches CLIENT_CIDR '([0-9.]+/([1-9]|[12][0-9]|3[0-2])|[0-9a-f:]+/([1-9][0-9]?|1[01][0-9]|12[0-8]))?' \
  "your own network such as 203.0.113.7/32 (never the whole internet), or nothing"
WHEN='(cron\(([^ ;]+ ){5}[^ ;]+\)|rate\([1-9][0-9]* (minutes?|hours?|days?)\))'
matches BATCH_SCHEDULE "$WHEN( *; *$WHEN)*" \
  "cron(…) with six fields such as cron(0 0 * * ? *), or rate(…) such as rate(12 hours); several with ; between them"
matches BATCH_TIMEZONE '[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*' "a time zone such as UTC or Europe/Berlin"
NUMBER='[0-9]*\.?[0-9]*[1-9][0-9]*|[1-9][0-9]*\.0*' # above 0
matches MODE 'scheduled|on-demand|always' "scheduled, on-demand or always"
matches TARGET_MINUTES "($NUMBER)?" "minutes, such as 60, or nothing"
matches INSTANCE_SPEED "($NUMBER)?" "audio seconds that one instance does in a second, such as 40, or nothing"
matches LEAST_JOBS '([1-9][0-9]*)?' "a number of jobs, such as 1, or nothing"
matches LATEST_AGE_HOURS "($NUMBER)?" "hours, such as 24, or nothing"
matches ON_DEMAND_AGE_MINUTES "($NUMBER)?" "minutes, such as 15, or nothing"
matches RUN_BUDGET "($NUMBER)?" "dollars, such as 2.50, or nothing for no limit"
matches BOOTS_ALLOWED '([1-9][0-9]*)?' "a number of instances, such as 2, or nothing"
matches IDLE_TIMEOUT_MINUTES '[1-9][0-9]*' "minutes, such as 10"
matches ALARM_EMAIL '([A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]+)?' "the address that alarms go to, or nothing"
matches MONTHLY_BUDGET '([1-9][0-9]*)?' "whole dollars a month, such as 50, or nothing for no budget"
verdict "the configuration" "correct ${ENV_FILE/#$ROOT\//}, then infra/scripts/$STEP.sh"

identify
good "credentials: account $ACCOUNT, region $AWS_REGION"
