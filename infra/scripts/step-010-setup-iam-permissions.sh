#!/usr/bin/env bash
# Usage: infra/scripts/step-010-setup-iam-permissions.sh [--dry-run] [--yes] [--help]
# Summary: Create the roles of router, GPU instance, launcher and scheduler, each with one least-privilege policy.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

# role NAME TRUST POLICY: creates it or brings it back to what infra/policies says.
role() {
  local name=$1 trust policy
  trust=$(render "$POLICIES/$2.json")
  policy=$(render "$POLICIES/$3.json")
  if look_up iam get-role --role-name "$name"; then
    change iam update-assume-role-policy --role-name "$name" --policy-document "$trust"
  else
    change iam create-role --role-name "$name" --assume-role-policy-document "$trust" \
      --description "Smart Transcription Router: $3" --tags "Key=Project,Value=$QUEUE_PREFIX" >/dev/null
    [[ -n $DRY_RUN ]] || aws iam wait role-exists --role-name "$name"
  fi
  change iam put-role-policy --role-name "$name" --policy-name least-privilege --policy-document "$policy"
  good "role $name"
}

instance_profile() {
  local name=$INSTANCE_ROLE
  look_up iam get-instance-profile --instance-profile-name "$name" \
    --query 'InstanceProfile.Roles[].RoleName' --output text ||
    change iam create-instance-profile --instance-profile-name "$name" --tags "Key=Project,Value=$QUEUE_PREFIX" >/dev/null
  [[ $FOUND == "$name" ]] || change iam add-role-to-instance-profile --instance-profile-name "$name" --role-name "$name"
  good "instance profile $name"
}

gpu_instance() {
  role "$INSTANCE_ROLE" trust-ec2 gpu-instance
  instance_profile
}

in_parallel "role $ROUTER trust-lambda router" gpu_instance "role $LAUNCHER trust-lambda launcher" \
  "role $SCHEDULER_ROLE trust-scheduler scheduler"
