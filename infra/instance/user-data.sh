#!/usr/bin/env bash
# A GPU instance from its first boot to its end.
#
# step-320 puts values in front of this (QUEUE_PREFIX, REGION, IMAGE, PORT, IDLE_TIMEOUT_MINUTES, MAX_INSTANCE_HOURS)
# and makes it the launch template's user data. No secret is among them: whoever may describe an instance can read it.
#
#   boot    at each boot: units, disk, settings, image; safe to repeat. What happens without an argument
#   server  the server's container, and
#   worker  the batch worker's, each run by its systemd unit
#   finish  every minute: the worker ends this instance when there is nothing to do; this does when there is no worker
#   leave   take this instance out of its group
#   fail    have the group put another in its place
#
# ROOT_DIR is the root of another file system, for tests.

set -euo pipefail
umask 077
export HOME=/root AWS_DEFAULT_REGION=$REGION # cloud-init has no HOME, and docker keeps its login there

ROOT=${ROOT_DIR:-}
SELF=/var/lib/cloud/scripts/per-boot/transcription-instance # where cloud-init runs it again at later boots
SETTINGS=$ROOT/etc/transcription
STATE=$ROOT/run/transcription
START_SECONDS=1200 # a server that is not healthy by then will not be

main() {
  mkdir -p "$STATE"
  case ${1:-boot} in
    boot | server | worker | finish | leave | fail) "${@:-boot}" ;;
    *)
      printf 'unknown command: %s\n' "$1" >&2
      exit 64
      ;;
  esac
}

boot() {
  units # first: from here on this instance ends by itself, whatever fails below
  local_disk
  systemctl start docker.service
  docker network inspect transcription >/dev/null 2>&1 || docker network create transcription >/dev/null
  settings
  image
  systemctl start --no-block transcription-server.service
  [[ ! -s $SETTINGS/worker.env ]] || systemctl start --no-block transcription-worker.service
}

# retry COMMAND…: the network of a new instance may take its time.
retry() {
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return
    printf 'try %s of 5 failed: %s\n' "$attempt" "$1" >&2
    sleep $((attempt * 5))
  done
  return 1
}

# Units -------------------------------------------------------------------------------------------------------------

unit() { cat >"$ROOT/etc/systemd/system/transcription-$1"; }

units() {
  mkdir -p "$ROOT/etc/systemd/system" "$ROOT${SELF%/*}"
  [[ $0 -ef $ROOT$SELF ]] || install -m 700 "$0" "$ROOT$SELF"
  # Neither is enabled: `boot` starts them when image and settings are there.
  unit server.service <<END
[Unit]
Description=Transcription server
Requires=docker.service
After=docker.service
StartLimitIntervalSec=0

[Service]
ExecStart=$SELF server
Restart=always
RestartSec=5
TimeoutStopSec=60
END
  # Status 2: wrong settings, which no second try makes right.
  unit worker.service <<END
[Unit]
Description=Transcription batch worker: empties the queue, and ends this instance when nothing comes any more
Wants=transcription-server.service
Requires=docker.service
After=docker.service transcription-server.service
StartLimitIntervalSec=6h
StartLimitBurst=3

[Service]
ExecStart=$SELF worker
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=60
TimeoutStopSec=60
END
  unit finish.service <<END
[Unit]
Description=Ends this instance when it has nothing to do and no worker that does so

[Service]
Type=oneshot
ExecStart=$SELF finish
END
  unit finish.timer <<END
[Unit]
Description=Looks every minute whether this instance is of any use

[Timer]
OnCalendar=minutely

[Install]
WantedBy=timers.target
END
  unit deadline.service <<END
[Unit]
Description=Ends this instance, whatever it does

[Service]
Type=oneshot
ExecStart=$SELF leave "up for $MAX_INSTANCE_HOURS hours"
END
  unit deadline.timer <<END
[Unit]
Description=Ends this instance $MAX_INSTANCE_HOURS hours after its boot

[Timer]
OnBootSec=${MAX_INSTANCE_HOURS}h

[Install]
WantedBy=timers.target
END
  systemctl daemon-reload
  systemctl enable --now transcription-finish.timer transcription-deadline.timer
}

# Disk --------------------------------------------------------------------------------------------------------------

# Image and models are unpacked to and read from the instance's own NVMe disk, where there is one.
local_disk() {
  local folder=/mnt/local disk
  if mountpoint --quiet "$ROOT/opt/dlami/nvme"; then # the Deep Learning AMIs prepare it
    folder=/opt/dlami/nvme
  elif ! mountpoint --quiet "$ROOT$folder"; then
    disk=$(lsblk --nodeps --noheadings --paths --output NAME,MODEL | awk '/Instance Storage/ { print $1; exit }')
    [[ -n $disk ]] || return 0
    mkdir -p "$ROOT$folder"
    # Refuses a disk that has a file system: after a reboot it is ours.
    mkfs.xfs -q "$disk" || true
    if ! mount "$disk" "$ROOT$folder"; then
      printf '%s cannot be used: the root disk it is\n' "$disk" >&2
      return 0
    fi
    rm -f "$STATE/docker-moved" # docker has not seen this disk yet
  fi
  [[ ! -e $STATE/docker-moved ]] || return 0
  mkdir -p "$ROOT/etc/docker"
  python3 - "$ROOT/etc/docker/daemon.json" "$folder/docker" <<'END'
import json, pathlib, sys

path = pathlib.Path(sys.argv[1])  # may hold the NVIDIA runtime
settings = json.loads(path.read_text()) if path.exists() else {}
path.write_text(json.dumps({**settings, "data-root": sys.argv[2]}, indent=2))
END
  systemctl restart docker.service
  touch "$STATE/docker-moved"
}

# Settings and image ------------------------------------------------------------------------------------------------

settings() {
  local key
  mkdir -p "$SETTINGS"
  retry parameter server-env >"$SETTINGS/server.env"
  retry parameter worker-env >"$SETTINGS/worker.env" # without one there is no worker
  key=$(retry parameter api-key)
  if [[ ! -s $SETTINGS/server.env || -z $key ]]; then
    printf 'the parameters /%s/server-env and api-key are missing\n' "$QUEUE_PREFIX" >&2
    return 1
  fi
  printf 'API_KEY=%s\n' "$key" >"$SETTINGS/key.env"
}

# parameter NAME: its value, or nothing if there is no such parameter.
parameter() {
  aws ssm get-parameter --name "/$QUEUE_PREFIX/$1" --with-decryption --query Parameter.Value --output text \
    2>"$STATE/refusal" && return
  grep -q ParameterNotFound "$STATE/refusal" && return
  cat "$STATE/refusal" >&2
  return 1
}

image() {
  local registry=${IMAGE%%/*}
  ! docker image inspect "$IMAGE" >/dev/null 2>&1 || return 0
  [[ $registry != *.dkr.ecr.* ]] || retry login "$registry"
  retry docker pull --quiet "$IMAGE"
  docker logout "$registry" >/dev/null
}

login() { aws ecr get-login-password | docker login --username AWS --password-stdin "$1" >/dev/null; }

# Containers --------------------------------------------------------------------------------------------------------

server() {
  local gpus=()
  ! nvidia-smi --list-gpus >/dev/null 2>&1 || gpus=(--gpus all)
  container server "${gpus[@]}" --publish "$PORT:$PORT" "$IMAGE"
}

worker() {
  container worker --no-healthcheck --env "FAST_API_SERVER_URL=http://transcription-server:$PORT" \
    --env "SERVER_WAIT=$START_SECONDS" --env "IDLE_TIMEOUT_MINUTES=$IDLE_TIMEOUT_MINUTES" \
    "$IMAGE" python -m batch_worker --until-idle
}

# container server|worker OPTION… IMAGE COMMAND…: in the foreground, for systemd; signals reach the program inside.
container() {
  local name=$1
  shift
  docker rm --force "transcription-$name" >/dev/null 2>&1 || true # one that outlived its client
  exec docker run --rm --name "transcription-$name" --pull never --network transcription \
    --read-only --tmpfs /tmp:size=2g --cap-drop ALL --security-opt no-new-privileges --pids-limit 4096 \
    --log-driver awslogs --log-opt "awslogs-region=$REGION" --log-opt "awslogs-group=/$QUEUE_PREFIX/$name" \
    --log-opt "awslogs-stream=$(instance_id)" --log-opt mode=non-blocking \
    --env-file "$SETTINGS/$name.env" --env-file "$SETTINGS/key.env" "$@"
}

instance_id() {
  local imds=http://169.254.169.254/latest token
  token=$(curl -fsS --max-time 5 --retry 3 -X PUT "$imds/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
  curl -fsS --max-time 5 --retry 3 "$imds/meta-data/instance-id" -H "X-aws-ec2-metadata-token: $token"
}

# The end -----------------------------------------------------------------------------------------------------------

finish() {
  local up worker work idle
  read -r up _ <"$ROOT/proc/uptime"
  ! curl -fs --max-time 10 "http://127.0.0.1:$PORT/health" >/dev/null || touch "$STATE/was-healthy"
  if [[ ! -e $STATE/was-healthy ]]; then
    ((${up%.*} < START_SECONDS)) || fail "no healthy server $((START_SECONDS / 60)) minutes after boot"
    return
  fi
  worker=$(systemctl is-active transcription-worker.service || true)
  work=$(jobs_so_far || true)
  if [[ ! $worker =~ ^(inactive|failed|unknown)$ || $work =~ in_flight\ [1-9] || ! -e $STATE/work ||
    $work != "$(cat "$STATE/work")" ]]; then
    printf '%s\n' "$work" >"$STATE/work" # its age: for how long there was nothing to do
    return
  fi
  idle=$(($(date +%s) - $(stat --format %Y "$STATE/work")))
  ((idle < IDLE_TIMEOUT_MINUTES * 60)) || leave "$((idle / 60)) minutes without work"
}

# What the server has done and does.
jobs_so_far() {
  curl -fs --max-time 10 -H @- "http://127.0.0.1:$PORT/metrics" <<<"X-API-Key: $(cut -d= -f2- "$SETTINGS/key.env")" |
    grep '^transcription_jobs_[ti]'
}

# leave WHY: for good, nobody takes its place. An instance that the group's smallest size wants stays.
leave() {
  printf 'this instance leaves: %s\n' "$1"
  end terminate-instance-in-auto-scaling-group --should-decrement-desired-capacity
}

# fail WHY: another one takes its place. The launcher counts those, and gives up when none is any better.
fail() {
  printf 'this instance failed: %s\n' "$1"
  end set-instance-health --health-status Unhealthy --no-should-respect-grace-period
}

# end CALL OPTION…: ask Auto Scaling for it.
end() {
  local refusal attempt
  for attempt in 1 2 3 4 5; do
    if refusal=$(aws autoscaling "$1" --instance-id "$(instance_id)" "${@:2}" 2>&1); then
      return
    elif [[ $refusal == *"min size"* ]]; then
      printf 'but MIN_INSTANCES wants it: it stays\n'
      return
    fi
    printf 'try %s of 5: %s\n' "$attempt" "$refusal" >&2
    sleep $((attempt * 5))
  done
  systemctl poweroff # the group then ends it; another may come, but this one does not run on for ever
}

main "$@"
