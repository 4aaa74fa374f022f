#!/usr/bin/env bash
# Usage: infra/scripts/step-999-destroy-all.sh [--dry-run] [--yes] [--help]
# Summary: Destroy all that the other steps made; the bucket with the recordings only with DELETE_AUDIO=yes.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
[[ ${DELETE_AUDIO:-} =~ ^(yes)?$ ]] || fail "DELETE_AUDIO is '$DELETE_AUDIO', expected yes or nothing"
identify

TAB=$'\t'
LISTED=$SCRATCH/listed   # kind, name, id and, where the listing says it, owner
OURS=$SCRATCH/ours       # kind, name, id, remark
OTHERS=$SCRATCH/others   # kind, name
REASONS=$SCRATCH/reasons # kind, name, why it could not be deleted
KEPT=$SCRATCH/kept       # the bucket, in words
touch "$OURS" "$OTHERS" "$REASONS" "$KEPT"
WAIT_SECONDS=2400 # the network interfaces of a function may take AWS half an hour

# Finding -----------------------------------------------------------------------------------------------------------
# By the prefix of their names, whatever version of a step made them.

# rows KIND COMMAND…: lists what COMMAND finds. Its --query gives rows of name, id and, if it can, the Project tag.
rows() {
  local kind=$1
  shift
  look_up "$@" --output text || return 0
  [[ -z $FOUND ]] || sed -e '/^None$/d' -e "s|^|$kind$TAB|" <<<"$FOUND" >>"$LISTED"
}

PROJECT="Tags[?Key=='Project'] | [0].Value"
begins() { printf "starts_with(%s, '%s-')" "$1" "$QUEUE_PREFIX"; }

# They have no tags: whose they are shows in the role that they act with.
schedules() {
  local name
  look_up scheduler list-schedules --name-prefix "$QUEUE_PREFIX-" --query 'Schedules[].[Name]' --output text || return 0
  for name in $FOUND; do
    [[ $name == "$WATCH" || $name =~ ^$WINDOW(-[0-9]+)?$ ]] || continue
    rows schedule scheduler get-schedule --name "$name" \
      --query "[Name, Name, Target.RoleArn == '$(role_arn "$SCHEDULER_ROLE")' && '$QUEUE_PREFIX']"
  done
}
scaling_groups() {
  rows scaling-group autoscaling describe-auto-scaling-groups --query \
    "AutoScalingGroups[?$(begins AutoScalingGroupName)].[AutoScalingGroupName, AutoScalingGroupName, $PROJECT]"
}
instances() {
  rows instance ec2 describe-instances --filters "Name=tag:Project,Values=$QUEUE_PREFIX" \
    Name=instance-state-name,Values=pending,running,stopping,stopped \
    --query "Reservations[].Instances[].[InstanceId, InstanceId, '$QUEUE_PREFIX']"
}
launch_templates() {
  rows launch-template ec2 describe-launch-templates \
    --query "LaunchTemplates[?$(begins LaunchTemplateName)].[LaunchTemplateName, LaunchTemplateId, $PROJECT]"
}
security_groups() {
  rows security-group ec2 describe-security-groups \
    --query "SecurityGroups[?$(begins GroupName)].[GroupName, GroupId, $PROJECT]"
}
functions() {
  rows function lambda list-functions --query "Functions[?$(begins FunctionName)].[FunctionName, FunctionArn]"
}
rules() { rows rule events list-rules --event-bus-name "$1" --name-prefix "$QUEUE_PREFIX-" --query 'Rules[].[Name, Arn]'; }
buses() { rows bus events list-event-buses --query "EventBuses[?Name=='$EVENT_BUS_NAME' && Name!='default'].[Name, Arn]"; }
queues() { rows queue sqs list-queues --queue-name-prefix "$QUEUE_PREFIX-" --query 'QueueUrls[].[@, @]'; }
log_groups() {
  rows log-group logs describe-log-groups --log-group-name-prefix "$1" --query 'logGroups[].[logGroupName, arn]'
}
alarms() {
  rows alarm cloudwatch describe-alarms --alarm-name-prefix "$QUEUE_PREFIX-" \
    --alarm-types MetricAlarm CompositeAlarm --query '[MetricAlarms, CompositeAlarms][].[AlarmName, AlarmArn]'
}
dashboards() {
  rows dashboard cloudwatch list-dashboards --dashboard-name-prefix "$DASHBOARD" \
    --query "DashboardEntries[?DashboardName=='$DASHBOARD'].[DashboardName, DashboardName, '$QUEUE_PREFIX']"
}
topics() { rows topic sns list-topics --query "Topics[?contains(TopicArn, ':$QUEUE_PREFIX-')].[TopicArn, TopicArn]"; }
keys() {
  rows key kms describe-key --key-id "alias/$ALARM_TOPIC" --query "['alias/$ALARM_TOPIC', KeyMetadata.KeyId]"
}
# In some accounts only their owners may look at budgets; that must not hold up the rest.
budgets() {
  local errors
  errors=$(mktemp "$SCRATCH/errors.XXXXXX")
  if aws budgets describe-budget --account-id "$ACCOUNT" --budget-name "$QUEUE_PREFIX" --output text \
    --query Budget.BudgetName >/dev/null 2>"$errors"; then
    printf 'budget\t%s\t%s\t%s\n' "$QUEUE_PREFIX" "$QUEUE_PREFIX" "$QUEUE_PREFIX" >>"$LISTED"
  elif ! grep -qE "$ABSENT" "$errors"; then
    warn "whether there is a budget $QUEUE_PREFIX cannot be seen: $(tr '\n' ' ' <"$errors")"
  fi
}
parameters() {
  rows parameter ssm get-parameters-by-path --path "/$QUEUE_PREFIX" --recursive \
    --query "Parameters[].[Name, Name, '$QUEUE_PREFIX']"
}
repositories() {
  rows repository ecr describe-repositories --query "repositories[?$(begins repositoryName)].[repositoryName, repositoryArn]"
}
profiles() {
  rows instance-profile iam list-instance-profiles \
    --query "InstanceProfiles[?$(begins InstanceProfileName)].[InstanceProfileName, InstanceProfileName]"
}
roles() { rows role iam list-roles --query "Roles[?$(begins RoleName)].[RoleName, RoleName]"; }
bucket() { rows bucket s3api list-buckets --query "Buckets[?Name=='$AUDIO_BUCKET'].[Name, Name]"; }

list() {
  local more=()
  : >"$LISTED"
  [[ $EVENT_BUS_NAME == default ]] || more=("rules $EVENT_BUS_NAME" buses)
  in_parallel schedules scaling_groups instances launch_templates security_groups functions "rules default" queues \
    "log_groups /$QUEUE_PREFIX/" "log_groups /aws/lambda/$QUEUE_PREFIX-" alarms dashboards topics keys budgets parameters \
    repositories profiles roles bucket ${more[@]+"${more[@]}"}
}

# Whose -------------------------------------------------------------------------------------------------------------

# The services give tags in four places, in three shapes.
OWNER="[Tags, tags, TagSet, InstanceProfile.Tags][?@] | [0] | (
  Project || ([?Key=='Project'].Value | [0]) || ([?TagKey=='Project'].TagValue | [0]))"

# owner_of LINE: puts that line of LISTED where it belongs.
owner_of() {
  local kind name id owner remark=''
  IFS=$TAB read -r kind name id owner < <(sed -n "$1p" "$LISTED")
  FOUND=$owner
  case $kind in
    function) ask lambda list-tags --resource "$id" ;;
    queue) ask sqs list-queue-tags --queue-url "$id" ;;
    rule | bus) ask events list-tags-for-resource --resource-arn "$id" ;;
    log-group) ask logs list-tags-for-resource --resource-arn "${id%:\*}" ;;
    alarm) ask cloudwatch list-tags-for-resource --resource-arn "$id" ;;
    topic) ask sns list-tags-for-resource --resource-arn "$id" ;;
    key) ask kms list-resource-tags --key-id "$id" ;;
    repository) ask ecr list-tags-for-resource --resource-arn "$id" ;;
    instance-profile) ask iam get-instance-profile --instance-profile-name "$id" ;;
    role) ask iam list-role-tags --role-name "$id" ;;
    bucket) ask s3api get-bucket-tagging --bucket "$id" ;;
  esac
  owner=$FOUND
  [[ $kind != bucket ]] || same_region
  if [[ $owner != "$QUEUE_PREFIX" ]]; then
    printf '%s\t%s\n' "$kind" "$name" >>"$OTHERS"
    return
  fi
  case $kind in
    queue) remark=$(messages "$id") ;;
    bucket) remark=$(objects) ;;
  esac
  if [[ $kind == bucket && -z ${DELETE_AUDIO:-} ]]; then
    echo "bucket $AUDIO_BUCKET with its $remark (DELETE_AUDIO=yes destroys it too)" >"$KEPT"
  else
    printf '%s\t%s\t%s\t%s\n' "$kind" "$name" "$id" "$remark" >>"$OURS"
  fi
}

ask() { look_up "$@" --query "$OWNER" --output text || true; }

messages() {
  aws sqs get-queue-attributes --queue-url "$1" --attribute-names ApproximateNumberOfMessages \
    --query "join(' ', [Attributes.ApproximateNumberOfMessages, 'messages'])" --output text
}

objects() {
  local count
  count=$(aws s3api list-objects-v2 --bucket "$AUDIO_BUCKET" --max-items 10000 --query 'length(Contents || `[]`)' \
    --output text | awk '{ sum += $1 } END { print sum + 0 }')
  echo "$count$([[ $count != 10000 ]] || echo ' or more') objects"
}

# Bucket and roles are the same from every region; the rest must not be missed, and then the roles taken from it.
same_region() {
  local region
  region=$(aws s3api get-bucket-location --bucket "$AUDIO_BUCKET" --query LocationConstraint --output text)
  case $region in
    None) region=us-east-1 ;;
    EU) region=eu-west-1 ;;
  esac
  [[ $region == "$AWS_REGION" ]] || fail "nothing was destroyed" \
    "bucket $AUDIO_BUCKET is in $region, AWS_REGION is $AWS_REGION" "AWS_REGION=$region infra/scripts/$STEP.sh"
}

find_owners() {
  local calls=() number count
  count=$(wc -l <"$LISTED")
  for ((number = 1; number <= count; number++)); do calls+=("owner_of $number"); done
  ((${#calls[@]} == 0)) || in_parallel "${calls[@]}"
}

# shown KIND NAME: a queue's name is its URL here, a topic's its ARN.
shown() {
  case $1 in
    queue | topic) printf '%s %s' "$1" "${2##*[/:]}" ;;
    *) printf '%s %s' "$1" "$2" ;;
  esac
}

show() {
  local kind name id remark
  sort "$OURS" | while IFS=$TAB read -r kind name id remark; do
    note "$(shown "$kind" "$name")${remark:+ ($remark)}"
  done
  sort "$OTHERS" | while IFS=$TAB read -r kind name; do
    case $kind in
      bucket) warn "bucket $name stays: it was there before this project; it goes on sending its events to EventBridge" ;;
      *) warn "$(shown "$kind" "$name") stays: it is someone else's, for it has no tag Project=$QUEUE_PREFIX" ;;
    esac
  done
  [[ ! -s $KEPT ]] || warn "$(cat "$KEPT") stays"
}

confirm() {
  local answer=''
  [[ -z $ASSUME_YES && -z $DRY_RUN ]] || return 0
  [[ -t 0 ]] || fail "nothing was destroyed" "there is nobody to ask" "infra/scripts/$STEP.sh --yes"
  read -r -p "  to destroy this in account $ACCOUNT, $AWS_REGION, type $QUEUE_PREFIX: " answer || true
  [[ $answer == "$QUEUE_PREFIX" ]] || fail "nothing was destroyed" "the answer was '$answer'"
}

# Destroying --------------------------------------------------------------------------------------------------------

# stage KIND…: destroys what is ours of these kinds, side by side.
stage() {
  local calls=() number=0 kind rest
  while IFS=$TAB read -r kind rest; do
    number=$((number + 1))
    [[ " $* " != *" $kind "* ]] || calls+=("destroy $number")
  done <"$OURS"
  ((${#calls[@]} == 0)) || in_parallel "${calls[@]}"
}

# destroy LINE: of OURS.
destroy() {
  local KIND NAME ID
  IFS=$TAB read -r KIND NAME ID _ < <(sed -n "$1p" "$OURS")
  case $KIND in
    schedule) remove scheduler delete-schedule --name "$ID" ;;
    rule) destroy_rule ;;
    alarm) remove cloudwatch delete-alarms --alarm-names "$NAME" ;;
    dashboard) remove cloudwatch delete-dashboards --dashboard-names "$ID" ;;
    budget) remove budgets delete-budget --account-id "$ACCOUNT" --budget-name "$ID" ;;
    scaling-group) destroy_scaling_group ;;
    instance) remove ec2 terminate-instances --instance-ids "$ID" ;;
    launch-template) remove ec2 delete-launch-template --launch-template-id "$ID" ;;
    function) remove lambda delete-function --function-name "$NAME" ;;
    bus) remove events delete-event-bus --name "$NAME" ;;
    queue) remove sqs delete-queue --queue-url "$ID" ;;
    log-group) remove logs delete-log-group --log-group-name "$NAME" ;;
    topic) remove sns delete-topic --topic-arn "$ID" ;;
    key) destroy_key ;;
    parameter) remove ssm delete-parameter --name "$ID" ;;
    repository) remove ecr delete-repository --repository-name "$NAME" --force ;;
    instance-profile) destroy_profile ;;
    role) destroy_role ;;
    bucket) destroy_bucket ;;
  esac
  [[ -n $DRY_RUN ]] || grep -qF "$KIND$TAB$NAME$TAB" "$REASONS" || good "$(shown "$KIND" "$NAME")"
}

# remove COMMAND…: what is gone, or on its way, is fine; a refusal is kept for the end, and the rest goes on.
remove() {
  local errors
  errors=$(mktemp "$SCRATCH/errors.XXXXXX")
  if [[ -n $DRY_RUN ]]; then
    change "$@"
  elif ! aws "$@" >/dev/null 2>"$errors" && ! grep -qE "$ABSENT|InProgress|pending deletion" "$errors"; then
    printf '%s\t%s\t%s\n' "$KIND" "$NAME" "$(tr '\n' ' ' <"$errors")" >>"$REASONS"
  fi
}

destroy_rule() {
  local bus=default ids
  [[ $ID != */*/* ]] || bus=$EVENT_BUS_NAME
  ids=$(aws events list-targets-by-rule --rule "$NAME" --event-bus-name "$bus" --query 'Targets[].Id' --output text)
  # shellcheck disable=SC2086  # several words
  [[ -z $ids ]] || remove events remove-targets --rule "$NAME" --event-bus-name "$bus" --ids $ids
  remove events delete-rule --name "$NAME" --event-bus-name "$bus"
}

destroy_scaling_group() {
  local deadline=$((SECONDS + WAIT_SECONDS))
  remove autoscaling delete-auto-scaling-group --auto-scaling-group-name "$ID" --force-delete
  if [[ -n $DRY_RUN ]] || grep -q "^$KIND" "$REASONS"; then
    return
  fi
  until [[ $(aws autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$ID" \
    --query 'length(AutoScalingGroups)' --output text) == 0 ]] || ((SECONDS >= deadline)); do
    note "waits for the instances of $NAME to end"
    sleep 15
  done
}

# Two groups may name each other, and the network interfaces of instances and functions hold them for a while.
destroy_security_groups() {
  local KIND NAME ID errors held deleted deadline=$((SECONDS + WAIT_SECONDS))
  errors=$(mktemp "$SCRATCH/errors.XXXXXX")
  while :; do
    held='' deleted=''
    while IFS=$TAB read -r KIND NAME ID _; do
      [[ $KIND == security-group && ! -f $SCRATCH/gone-$ID ]] || continue
      if [[ -n $DRY_RUN ]] || ((SECONDS >= deadline)); then
        remove ec2 delete-security-group --group-id "$ID"
      elif aws ec2 delete-security-group --group-id "$ID" >/dev/null 2>"$errors"; then
        deleted=1
        : >"$SCRATCH/gone-$ID"
        good "$(shown "$KIND" "$NAME")"
      elif grep -q DependencyViolation "$errors"; then
        held=$NAME
      else
        remove ec2 delete-security-group --group-id "$ID"
      fi
    done <"$OURS"
    [[ -n $held ]] || return 0
    if [[ -z $deleted ]]; then
      note "waits for AWS to let go of the network interfaces in $held (up to half an hour)"
      sleep 15
    fi
  done
}

# AWS keeps a key for a week more, for nothing.
destroy_key() {
  remove kms schedule-key-deletion --key-id "$ID" --pending-window-in-days 7
  remove kms delete-alias --alias-name "$NAME"
}

destroy_profile() {
  local role
  for role in $(aws iam get-instance-profile --instance-profile-name "$ID" \
    --query 'InstanceProfile.Roles[].RoleName' --output text); do
    remove iam remove-role-from-instance-profile --instance-profile-name "$ID" --role-name "$role"
  done
  remove iam delete-instance-profile --instance-profile-name "$ID"
}

destroy_role() {
  local policy
  for policy in $(aws iam list-role-policies --role-name "$ID" --query 'PolicyNames[]' --output text); do
    remove iam delete-role-policy --role-name "$ID" --policy-name "$policy"
  done
  for policy in $(aws iam list-attached-role-policies --role-name "$ID" --query 'AttachedPolicies[].PolicyArn' \
    --output text); do
    remove iam detach-role-policy --role-name "$ID" --policy-arn "$policy"
  done
  remove iam delete-role --role-name "$ID"
}

# Every version and delete marker, a page at a time.
destroy_bucket() {
  local page=$SCRATCH/page.json refused
  while [[ -z $DRY_RUN ]]; do
    aws s3api list-object-versions --bucket "$ID" --no-paginate --output json --query \
      '{Objects: [Versions, DeleteMarkers][].{Key: Key, VersionId: VersionId}, Quiet: `true`}' >"$page"
    grep -q '"Key"' "$page" || break
    refused=$(aws s3api delete-objects --bucket "$ID" --delete "file://$page" --query 'Errors[0].Message' --output text)
    [[ -z $refused || $refused == None ]] || break # delete-bucket will say that it is not empty
    note "emptied of $(grep -c '"Key"' "$page") more versions"
  done
  remove s3api delete-bucket --bucket "$ID"
}

# What steps wrote into ENV_FILE, and what would be wrong from now on.
forget_settings() {
  local key
  for key in SQS_QUEUE_URL SQS_DLQ_URL SQS_FAILURES_QUEUE_URL API_KEY FAST_API_ECR_REPOSITORY_URI FAST_API_TAG; do
    [[ -z $(saved_setting "$key") ]] || save_setting "$key" ''
  done
  [[ $(saved_setting GPU_SERVER_TAG) != "Name=$INSTANCES" ]] || save_setting GPU_SERVER_TAG ''
  [[ -n $DRY_RUN ]] || rm -f "$ENV_FILE.stopped"
}

# Proving -----------------------------------------------------------------------------------------------------------

# left: prints what is ours and still listed, and why.
left() {
  local kind name rest reason
  while IFS=$TAB read -r kind name rest; do
    grep -qF "$kind$TAB$name$TAB" "$LISTED" || continue
    reason=$(grep -F "$kind$TAB$name$TAB" "$REASONS" | tail -1 | cut -f 3 || true)
    printf 'left: %s: %s\n' "$(shown "$kind" "$name")" "${reason:-AWS still lists it}"
  done <"$OURS"
}

prove() {
  local deadline=$((SECONDS + 120)) what
  list
  what=$(left)
  # A deleted queue is listed for up to a minute.
  while [[ $what == *"AWS still lists it"* ]] && ((SECONDS < deadline)); do
    sleep 5
    list
    what=$(left)
  done
  if [[ -n $what ]]; then
    echo "$what"
    explain "$REASONS"
    fail "not all is destroyed" "$WHY" "$NEXT"
  fi
  echo "left: nothing$([[ ! -s $KEPT ]] || printf ' but %s' "$(cat "$KEPT")")"
}

list
find_owners
show
if [[ -s $OURS ]]; then
  confirm
  stage schedule rule alarm dashboard budget # from here on nothing starts anything
  stage scaling-group
  stage instance launch-template function
  in_parallel destroy_security_groups "stage bus queue log-group topic key parameter repository bucket"
  stage instance-profile # AWS takes a function's network interfaces away in the name of its role: roles come last
  stage role
fi
[[ -n $DRY_RUN ]] || prove
forget_settings
