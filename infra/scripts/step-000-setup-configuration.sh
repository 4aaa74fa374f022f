#!/usr/bin/env bash
# Usage: infra/scripts/step-000-setup-configuration.sh [--dry-run] [--yes] [--help]
# Summary: Create .env from .env.example and fill in what can be known; a person's lines stay as they are.
source "$(dirname "$0")/lib/common.sh"
begin "$@"

# ask KEY QUESTION: the default is what KEY is now.
ask() {
  local answer
  interactive || return 0
  read -r -p "  $2 [${!1}]: " answer
  [[ -z $answer ]] || printf -v "$1" '%s' "$answer"
}

# fill KEY: writes it only where the file says nothing.
fill() {
  [[ -n $(saved_setting "$1") || -z ${!1:-} ]] && return 0
  save_setting "$1" "${!1}"
  note "$1=${!1}"
}

if [[ ! -f $ENV_FILE ]]; then
  if [[ -n $DRY_RUN ]]; then
    note "would create ${ENV_FILE/#$ROOT\//} from .env.example"
  else
    mkdir -p "$(dirname "$ENV_FILE")"
    if [[ -f $ROOT/.env.example ]]; then
      cat "$ROOT/.env.example" >"$ENV_FILE"
    else
      : >"$ENV_FILE"
    fi
    chmod 600 "$ENV_FILE"
    note "created ${ENV_FILE/#$ROOT\//}"
    rm -rf "$SCRATCH"
    exec "$0" "$@" # what the example says counts as chosen, so from the start again
  fi
fi

if [[ -z $AWS_REGION ]]; then
  AWS_REGION=$(command "$AWS_CLI" configure get region || true)
  [[ -n $AWS_REGION ]] || interactive || fail "AWS_REGION is not set" "there is no default for the region" \
    "AWS_REGION=us-east-2 infra/scripts/$STEP.sh"
fi
[[ -n $(saved_setting AWS_REGION) ]] || ask AWS_REGION "AWS region"
[[ -n $(saved_setting QUEUE_PREFIX) ]] || ask QUEUE_PREFIX "prefix of everything this project creates"
identify
[[ -n $(saved_setting AUDIO_BUCKET) ]] || ask AUDIO_BUCKET "bucket for audio and transcripts"

for key in AWS_REGION QUEUE_PREFIX AUDIO_BUCKET EVENT_BUS_NAME; do
  fill "$key"
done
good "configuration is in ${ENV_FILE/#$ROOT\//} (account $ACCOUNT, region $AWS_REGION)"
