#!/usr/bin/env bash
# Usage: infra/scripts/step-320-launch-gpu-instances.sh [--dry-run] [--yes] [--help]
# Summary: Set up the GPU instances' firewall, launch template and Auto Scaling group; reads them back. Starts MIN_INSTANCES.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
need FAST_API_ECR_REPOSITORY_URI step-301-setup-ecr-repository
need FAST_API_TAG step-312-build-image
identify

CONFIGURATION=${ENV_FILE/#$ROOT\//}
REGISTRY=$ACCOUNT.dkr.ecr.$AWS_REGION.amazonaws.com
TEMPLATE=$SCRATCH/template.json
GROUP=$SCRATCH/group.json
TYPES=${INSTANCE_TYPE:-$INSTANCE_TYPES}

[[ -z $CLIENT_CIDR || $CLIENT_CIDR =~ /0*[1-9] ]] ||
  fail "CLIENT_CIDR=$CLIENT_CIDR admits the whole internet" "the server takes audio from whoever reaches it" \
    "CLIENT_CIDR in $CONFIGURATION: your own network, such as 203.0.113.7/32"

# found COMMAND…: look_up for a list; an empty one is false too.
found() { look_up "$@" && [[ -n $FOUND && $FOUND != None ]]; }

# What must be there already ----------------------------------------------------------------------------------------

image() {
  case $FAST_API_ECR_REPOSITORY_URI in
    */"$ECR_REPOSITORY")
      found ecr describe-images --repository-name "$ECR_REPOSITORY" --image-ids "imageTag=$FAST_API_TAG" \
        --query 'imageDetails[].imageDigest' --output text || absent "image $FAST_API_TAG" step-313-push-image
      ;;
    "$REGISTRY"*)
      fail "the instances may not pull from $FAST_API_ECR_REPOSITORY_URI" \
        "their role may read the repository $ECR_REPOSITORY only (infra/policies/gpu-instance.json)" \
        "push the image to $REGISTRY/$ECR_REPOSITORY"
      ;;
  esac
}

profile() {
  found iam get-instance-profile --instance-profile-name "$INSTANCE_ROLE" \
    --query 'InstanceProfile.Roles[].RoleName' --output text ||
    absent "instance profile $INSTANCE_ROLE" step-010-setup-iam-permissions
}

machine_image() {
  local id='' root=''
  if found ssm get-parameter --name "$AMI_PARAMETER" --query Parameter.Value --output text; then
    id=$FOUND
    ! found ec2 describe-images --image-ids "$id" --query 'Images[].RootDeviceName' --output text || root=$FOUND
    [[ -n $root$DRY_RUN ]] || fail "there is no machine image $id in $AWS_REGION" "$AMI_PARAMETER names it" \
      "another AMI_PARAMETER in $CONFIGURATION"
  elif [[ -z $DRY_RUN ]]; then
    fail "there is no public parameter $AMI_PARAMETER in $AWS_REGION" "it names the machine image (AMI)" \
      "remove AMI_PARAMETER from $CONFIGURATION, or: aws ssm get-parameters-by-path --path /aws/service/deeplearning/ami --recursive"
  fi
  printf '%s %s\n' "${id:-<AMI>}" "${root:-<root>}" >"$SCRATCH/machine-image"
}

network() {
  local filter=Name=default-for-az,Values=true id in_vpc public vpc='' some='' all=''
  [[ -z $VPC_ID ]] || filter=Name=vpc-id,Values=$VPC_ID
  if ! found ec2 describe-subnets --filters "$filter" --output text \
    --query 'Subnets[].[SubnetId,VpcId,MapPublicIpOnLaunch]'; then
    [[ -n $DRY_RUN ]] || fail "${VPC_ID:-the default VPC} has no subnet in $AWS_REGION, or is not there" \
      "the instances need a network from which they reach ECR, S3, SQS and SSM" \
      "aws ec2 create-default-vpc --region $AWS_REGION, or VPC_ID in $CONFIGURATION"
    FOUND='<subnets> <vpc> True'
  fi
  # Public ones if there are any: the others may have no way out. The firewall lets nobody in by such an address.
  while read -r id in_vpc public; do
    vpc=$in_vpc all=$all,$id
    [[ $public != True ]] || some=$some,$id
  done <<<"$FOUND"
  all=${some:-$all}
  printf '%s %s\n' "$vpc" "${all#,}" >"$SCRATCH/network"
}

# A new account may have no GPU instance at all, which shows only when one is to start.
quota() {
  local vcpus
  [[ -z ${AWS_ENDPOINT_URL:-} ]] || return 0 # a local stack has no quotas
  vcpus=$(aws service-quotas get-service-quota --service-code ec2 --quota-code "$1" --query Quota.Value \
    --output text 2>/dev/null || true)
  vcpus=${vcpus%.*}
  [[ $vcpus =~ ^[0-9]+$ ]] || return 0 # not everyone may ask
  ((vcpus >= 4)) || warn "this account may run $vcpus vCPUs of $2 G instances, the smallest has 4; ask for more (it takes hours to days): aws service-quotas request-service-quota-increase --region $AWS_REGION --service-code ec2 --quota-code $1 --desired-value 8"
}

# Firewall ----------------------------------------------------------------------------------------------------------

# security_groups: both, their ids to SERVER_GROUP_ID and ROUTER_GROUP_ID.
security_groups() {
  local id name owner
  SERVER_GROUP_ID='' ROUTER_GROUP_ID=''
  if found ec2 describe-security-groups --filters "Name=vpc-id,Values=$VPC" \
    "Name=group-name,Values=$SERVER_GROUP,$ROUTER_GROUP" --output text \
    --query "SecurityGroups[].[GroupId,GroupName,Tags[?Key=='Project']|[0].Value]"; then
    while read -r id name owner; do
      ours "security group $name" "$owner"
      [[ $name != "$SERVER_GROUP" ]] || SERVER_GROUP_ID=$id
      [[ $name != "$ROUTER_GROUP" ]] || ROUTER_GROUP_ID=$id
    done <<<"$FOUND"
  fi
  [[ -n $SERVER_GROUP_ID ]] || SERVER_GROUP_ID=$(security_group "$SERVER_GROUP" transcription-servers)
  [[ -n $ROUTER_GROUP_ID ]] || ROUTER_GROUP_ID=$(security_group "$ROUTER_GROUP" transcription-router)
}

# security_group NAME DESCRIPTION: creates it, and prints its id.
security_group() {
  local id
  id=$(change ec2 create-security-group --group-name "$1" --description "$2" --vpc-id "$VPC" --tag-specifications \
    "ResourceType=security-group,Tags=[{Key=Name,Value=$1},{Key=Project,Value=$QUEUE_PREFIX}]" \
    --query GroupId --output text)
  printf '%s' "${id:-<$1>}"
}

# The one port: from the function, and from CLIENT_CIDR.
wanted_rules() {
  local v4='' v6=''
  case $CLIENT_CIDR in
    '') ;;
    *:*) v6="{\"CidrIpv6\":\"$CLIENT_CIDR\"}" ;;
    *) v4="{\"CidrIp\":\"$CLIENT_CIDR\"}" ;;
  esac
  printf '[{"IpProtocol":"tcp","FromPort":%s,"ToPort":%s,"UserIdGroupPairs":[{"GroupId":"%s"}],' \
    "$FAST_API_PORT" "$FAST_API_PORT" "$ROUTER_GROUP_ID"
  printf '"IpRanges":[%s],"Ipv6Ranges":[%s],"PrefixListIds":[]}]' "$v4" "$v6"
}

# To FOUND, in the same shape.
rules() {
  look_up ec2 describe-security-groups --group-ids "$SERVER_GROUP_ID" --output json --query \
    'SecurityGroups[0].IpPermissions[].{IpProtocol:IpProtocol,FromPort:FromPort,ToPort:ToPort,
      UserIdGroupPairs:UserIdGroupPairs[].{GroupId:GroupId},IpRanges:IpRanges[].{CidrIp:CidrIp},
      Ipv6Ranges:Ipv6Ranges[].{CidrIpv6:CidrIpv6},PrefixListIds:PrefixListIds[].{PrefixListId:PrefixListId}}' || true
}

firewall() {
  local wanted before
  wanted=$(wanted_rules)
  rules
  before=${FOUND:-[]}
  if ! documents same "$wanted" "$before"; then
    documents same '[]' "$before" ||
      change ec2 revoke-security-group-ingress --group-id "$SERVER_GROUP_ID" --ip-permissions "$before" >/dev/null
    change ec2 authorize-security-group-ingress --group-id "$SERVER_GROUP_ID" --ip-permissions "$wanted" >/dev/null
  fi
  good "port $FAST_API_PORT is open to security group $ROUTER_GROUP${CLIENT_CIDR:+ and $CLIENT_CIDR}, to nobody else"
}

# Launch template ---------------------------------------------------------------------------------------------------

user_data() {
  printf '#!/usr/bin/env bash\n'
  printf '%s=%q\n' QUEUE_PREFIX "$QUEUE_PREFIX" REGION "$AWS_REGION" \
    IMAGE "$FAST_API_ECR_REPOSITORY_URI:$FAST_API_TAG" PORT "$FAST_API_PORT" \
    IDLE_TIMEOUT_MINUTES "$IDLE_TIMEOUT_MINUTES" MAX_INSTANCE_HOURS "$MAX_INSTANCE_HOURS"
  tail -n +2 "$SCRIPTS/../instance/user-data.sh"
}

# A version says in its description what it was made from: AWS may describe the data with more than was given.
launch_template() {
  local data version digest
  data=$(documents render "$POLICIES/launch-template.json" "IMAGE_ID=$IMAGE_ID" "ROOT_DEVICE=$ROOT_DEVICE" \
    "INSTANCE_ROLE=$INSTANCE_ROLE" "SERVER_GROUP_ID=$SERVER_GROUP_ID" "INSTANCES=$INSTANCES" \
    "QUEUE_PREFIX=$QUEUE_PREFIX" "USER_DATA=$(user_data | base64 | tr -d '\n')")
  digest=$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())' <<<"$data")
  printf '%s' "$data" >"$TEMPLATE"
  if ! found ec2 describe-launch-templates --launch-template-names "$LAUNCH_TEMPLATE" \
    --query "LaunchTemplates[].[LaunchTemplateName,Tags[?Key=='Project']|[0].Value]" --output text; then
    change ec2 create-launch-template --launch-template-name "$LAUNCH_TEMPLATE" --version-description "$digest" \
      --launch-template-data "file://$TEMPLATE" --tag-specifications \
      "ResourceType=launch-template,Tags=[{Key=Project,Value=$QUEUE_PREFIX}]" >/dev/null
    good "launch template $LAUNCH_TEMPLATE created"
    return
  fi
  ours "launch template $LAUNCH_TEMPLATE" "${FOUND##*$'\t'}"
  found ec2 describe-launch-template-versions --launch-template-name "$LAUNCH_TEMPLATE" --versions "\$Default" \
    --query 'LaunchTemplateVersions[].VersionDescription' --output text || true
  if [[ $FOUND == "$digest" ]]; then
    good "launch template $LAUNCH_TEMPLATE: unchanged"
    return
  fi
  version=$(change ec2 create-launch-template-version --launch-template-name "$LAUNCH_TEMPLATE" \
    --version-description "$digest" --launch-template-data "file://$TEMPLATE" \
    --query LaunchTemplateVersion.VersionNumber --output text)
  change ec2 modify-launch-template --launch-template-name "$LAUNCH_TEMPLATE" \
    --default-version "${version:-<new>}" >/dev/null
  good "launch template $LAUNCH_TEMPLATE: version ${version:-<new>}"
}

# Settings ----------------------------------------------------------------------------------------------------------

# Lines of NAME=value, unquoted, as containers read them. No secret: the instance gets the key by itself.
settings() {
  local name
  # shellcheck disable=SC2034  # by name, below
  AWS_DEFAULT_REGION=$AWS_REGION METRICS=emf
  for name in AWS_REGION AWS_DEFAULT_REGION AUDIO_BUCKET EVENT_BUS_NAME FAST_API_PORT METRICS QUEUE_PREFIX \
    EXPECTED_BUCKET_OWNER WHISPER_MODEL ENGINE DEVICE COMPUTE_TYPE THREADS BEAM_SIZE VAD LIVE_CONTEXT SESSION_FINISH \
    MAX_IN_FLIGHT MAX_UPLOAD_BYTES MAX_AUDIO_SECONDS DECODERS DECODE_TIMEOUT REQUEST_TIMEOUT DRAIN_TIMEOUT \
    ALLOW_URL_FETCH URL_FETCH_HOSTS URL_FETCH_TIMEOUT; do
    [[ -z ${!name:-} ]] || printf '%s=%s\n' "$name" "${!name}"
  done
}

server_settings() {
  save_parameter "$SERVER_ENV_PARAMETER" "$(settings)"
  good "the server's settings are in $SERVER_ENV_PARAMETER"
}

# Group -------------------------------------------------------------------------------------------------------------

tag() { printf 'ResourceId=%s,ResourceType=auto-scaling-group,PropagateAtLaunch=true,Key=%s,Value=%s' "$INSTANCES" "$@"; }

overrides() {
  local type list=''
  for type in ${TYPES//,/ }; do list="$list,{\"InstanceType\":\"$type\"}"; done
  printf '[%s]' "${list#,}"
}

# An existing group keeps the number of instances that it has.
group() {
  documents render "$POLICIES/instances.json" "INSTANCES=$INSTANCES" "MIN_INSTANCES=$MIN_INSTANCES" \
    "MAX_INSTANCES=$MAX_INSTANCES" "SUBNETS=$SUBNETS" "LAUNCH_TEMPLATE=$LAUNCH_TEMPLATE" \
    "ON_DEMAND_PERCENT=$ON_DEMAND_PERCENT" "INSTANCE_TYPES=$(overrides)" >"$GROUP"
  if ! found autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$INSTANCES" \
    --query "AutoScalingGroups[].[AutoScalingGroupName,Tags[?Key=='Project']|[0].Value]" --output text; then
    change autoscaling create-auto-scaling-group --cli-input-json "file://$GROUP" \
      --tags "$(tag Name "$INSTANCES")" "$(tag Project "$QUEUE_PREFIX")"
  else
    ours "Auto Scaling group $INSTANCES" "${FOUND##*$'\t'}"
    change autoscaling update-auto-scaling-group --cli-input-json "file://$GROUP"
  fi
  good "group $INSTANCES: $MIN_INSTANCES to $MAX_INSTANCES of $TYPES, $ON_DEMAND_PERCENT % on demand, the rest spot"
}

# Reading it back ---------------------------------------------------------------------------------------------------

check_firewall() {
  rules
  expect_document "security group $SERVER_GROUP: what may come in" "$(wanted_rules)" "$FOUND"
}

check_template() {
  expect "$LAUNCH_TEMPLATE: image, profile, IMDS, encryption, firewall, key pair" \
    "$IMAGE_ID $INSTANCE_ROLE required True $SERVER_GROUP_ID None" "$(
      aws ec2 describe-launch-template-versions --launch-template-name "$LAUNCH_TEMPLATE" --versions "\$Default" \
        --output text --query 'LaunchTemplateVersions[0].LaunchTemplateData.[ImageId,IamInstanceProfile.Name,
          MetadataOptions.HttpTokens,BlockDeviceMappings[0].Ebs.Encrypted,SecurityGroupIds[0],KeyName]' | tr '\t' ' '
    )"
}

check_group() {
  local smallest largest template share strategy types
  IFS=$'\t' read -r smallest largest template share strategy types < <(
    aws autoscaling describe-auto-scaling-groups --auto-scaling-group-names "$INSTANCES" --output text \
      --query "AutoScalingGroups[0].[MinSize,MaxSize,
        MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateName,
        MixedInstancesPolicy.InstancesDistribution.OnDemandPercentageAboveBaseCapacity,
        MixedInstancesPolicy.InstancesDistribution.SpotAllocationStrategy,
        join(',',MixedInstancesPolicy.LaunchTemplate.Overrides[].InstanceType)]" || true
  )
  expect "$INSTANCES: MinSize" "$MIN_INSTANCES" "$smallest"
  expect "$INSTANCES: MaxSize" "$MAX_INSTANCES" "$largest"
  expect "$INSTANCES: launch template" "$LAUNCH_TEMPLATE" "$template"
  expect "$INSTANCES: on-demand share" "$ON_DEMAND_PERCENT" "$share"
  expect "$INSTANCES: how spot instances are chosen" price-capacity-optimized "$strategy"
  expect "$INSTANCES: instance types" "$TYPES" "$types"
}

check_settings() {
  saved_parameter "$SERVER_ENV_PARAMETER" || true
  [[ $FOUND == "$(settings)" ]] || problem "$SERVER_ENV_PARAMETER is not what was written: ${FOUND:0:200}"
}

# All of it ---------------------------------------------------------------------------------------------------------

quotas=()
((ON_DEMAND_PERCENT == 0)) || quotas+=("quota L-DB2E81BA on-demand")
((ON_DEMAND_PERCENT == 100)) || quotas+=("quota L-3819A6DF spot")
in_parallel image profile machine_image network "${quotas[@]}"
read -r IMAGE_ID ROOT_DEVICE <"$SCRATCH/machine-image"
read -r VPC SUBNETS <"$SCRATCH/network"
security_groups
in_parallel server_settings "log_group $SERVER_LOG_GROUP" firewall launch_template
group # what it starts is complete by now
if [[ -z ${FAST_API_SERVER_URL:-}${GPU_SERVER_TAG:-} ]]; then
  save_setting GPU_SERVER_TAG "Name=$INSTANCES"
  note "the router finds the servers by this tag once infra/scripts/step-340-deploy-lambda-router.sh has run again"
fi
[[ -z $DRY_RUN ]] || exit 0

in_parallel check_firewall check_template check_group check_settings
verdict "firewall, launch template and group" "infra/scripts/$STEP.sh"
if ((MIN_INSTANCES == 0)); then
  note "nothing was started, and what does not run costs nothing. An instance starts with the schedule (step-351),"
  note "with step-352, or with MIN_INSTANCES=1 in $CONFIGURATION and this step again"
fi
if [[ -z $ROUTER_SUBNETS && -z ${FAST_API_SERVER_URL:-} ]]; then
  warn "the router cannot reach the instances' private addresses: all jobs go to the queue, and the batch does them"
  note "for live transcripts: ROUTER_SUBNETS in $CONFIGURATION (docs/deploy.md says what it costs), or the https address"
  note "of a server as FAST_API_SERVER_URL; then infra/scripts/step-340-deploy-lambda-router.sh"
fi
