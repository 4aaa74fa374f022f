#!/usr/bin/env bash
# Usage: [FROM=NNN] [SKIP="NNN …"] infra/scripts/deploy.sh [--dry-run] [--yes] [--help] all|core|NNN…
# Summary: Run the numbered steps in order; stop at the first that fails, and go on there the next time.
source "$(dirname "$0")/lib/common.sh"

CORE="000 001 010 011 020 021 340 341 342"
LAST=361 # what comes after it is no part of a deployment

flags=() wanted=''
for word in "$@"; do
  case $word in
    -*) flags+=("$word") ;;
    *) wanted="${wanted:+$wanted }$word" ;;
  esac
done
begin ${flags[@]+"${flags[@]}"}

# script NNN: sets SCRIPT to the step of that number.
script() {
  local found=("$SCRIPTS/step-$1"-*.sh)
  [[ $1 =~ ^[0-9]{3}$ && -f ${found[0]} ]] || fail "there is no step '$1'" "" "ls infra/scripts/step-*"
  SCRIPT=${found[0]}
}

every_step() {
  local path number
  for path in "$SCRIPTS"/step-*.sh; do
    number=$(basename "$path" | cut -c 6-8)
    ((10#$number > LAST)) || printf '%s ' "$number"
  done
}

# COMMAND is what a person gives to do the same again.
case $wanted in
  all) COMMAND="make deploy" wanted=$(every_step) ;;
  core) COMMAND="make deploy-core" wanted=$CORE ;;
  '') fail "no step is named" "" "infra/scripts/deploy.sh --help" ;;
  *) COMMAND="infra/scripts/deploy.sh $wanted" ;;
esac

# Where the last run stopped, "NNN deployment" in one line. Read anew each time: step-000 may have written ENV_FILE.
STOPPED=$ENV_FILE.stopped
# shellcheck disable=SC2016  # the other shell expands it
deployment() {
  bash -c 'source "$0"; load_configuration; echo "$QUEUE_PREFIX/$AWS_REGION/${AWS_PROFILE:-}/${AWS_ENDPOINT_URL:-}"' \
    "$LIB/common.sh"
}
last=
[[ ! -f $STOPPED ]] || read -r last of <"$STOPPED"
[[ " $wanted " == *" ${last:-none} "* && $of == "$(deployment)" ]] || last=

first=${FROM:-}
if [[ -z $first && -z $DRY_RUN && -n $last ]]; then
  first=$last
  note "goes on at step-$last, where the last run stopped; FROM=000 $COMMAND starts over"
fi
[[ -z $first ]] || script "$first"

steps=()
for number in $wanted; do
  script "$number"
  if [[ $number < $first ]]; then
    continue
  elif [[ " ${SKIP:-} " == *" $number "* ]]; then
    note "step-$number is left out, as SKIP says"
  elif [[ -n $DRY_RUN && $SCRIPT == *-validate-* ]]; then
    note "step-$number is left out of a dry run: it reads back what is not written"
  else
    steps+=("$SCRIPT")
  fi
done

done_steps=0
for SCRIPT in ${steps[@]+"${steps[@]}"}; do
  started=$SECONDS
  printf '%s[%d/%d]%s ' "$BOLD" $((done_steps + 1)) ${#steps[@]} "$PLAIN" >&2
  if ! bash "$SCRIPT" ${flags[@]+"${flags[@]}"}; then
    number=$(basename "$SCRIPT" | cut -c 6-8)
    [[ -n $DRY_RUN ]] || echo "$number $(deployment)" >"$STOPPED"
    fail "$(basename "$SCRIPT" .sh): $done_steps of ${#steps[@]} steps are done" "see the message above" \
      "$COMMAND goes on at step-$number; FROM=000 $COMMAND starts over"
  fi
  note "$((SECONDS - started)) s"
  done_steps=$((done_steps + 1))
done
[[ -n $DRY_RUN || -z $last ]] || rm -f "$STOPPED"
good "$COMMAND: $done_steps steps in $SECONDS s"
