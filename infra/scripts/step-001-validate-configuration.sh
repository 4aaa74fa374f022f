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
matches HEALTH_CHECK_TIMEOUT '[0-9]+(\.[0-9]+)?' "seconds, such as 2"
matches LAMBDA_RUNTIME 'python3\.1[1-9]' "python3.11 or newer"
matches LAMBDA_ARCHITECTURE 'x86_64|arm64' "x86_64 or arm64"
matches LAMBDA_CONCURRENCY '[0-9]+' "how many routers may run at once, or 0 for no reservation"
verdict "the configuration" "correct ${ENV_FILE/#$ROOT\//}, then infra/scripts/$STEP.sh"

identify
good "credentials: account $ACCOUNT, region $AWS_REGION"
