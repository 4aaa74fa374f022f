#!/usr/bin/env bash
# Usage: infra/scripts/step-011-validate-iam-permissions.sh [--dry-run] [--yes] [--help]
# Summary: Read the roles back, and ask IAM what they may and may not do.
source "$(dirname "$0")/lib/common.sh"
begin "$@"
identify

NEXT="infra/scripts/step-010-setup-iam-permissions.sh"

documents_of() {
  local name=$1
  if ! look_up iam get-role --role-name "$name" --query Role.AssumeRolePolicyDocument --output json; then
    problem "role $name does not exist"
    return 0
  fi
  expect_document "$name: the trust policy" "$(render "$POLICIES/$2.json")" "$FOUND"
  look_up iam get-role-policy --role-name "$name" --policy-name least-privilege \
    --query PolicyDocument --output json || true
  expect_document "$name: the policy least-privilege" "$(render "$POLICIES/$3.json")" "$FOUND"
}

profile() {
  look_up iam get-instance-profile --instance-profile-name "$INSTANCE_ROLE" \
    --query 'InstanceProfile.Roles[].RoleName' --output text || true
  expect "$INSTANCE_ROLE: the role of the instance profile" "$INSTANCE_ROLE" "$FOUND"
}

# may ROLE RESOURCE ACTION=DECISION…: one question to IAM for one resource.
may() {
  local role=$1 resource=$2 pair answer action decision expected
  local actions=()
  shift 2
  for pair in "$@"; do actions+=("${pair%%=*}"); done
  answer=$(aws iam simulate-principal-policy --policy-source-arn "$(role_arn "$role")" \
    --resource-arns "$resource" --action-names "${actions[@]}" \
    --query 'EvaluationResults[].[EvalActionName,EvalDecision]' --output text)
  while read -r action decision; do
    for pair in "$@"; do
      [[ ${pair%%=*} == "$action" ]] || continue
      expected=${pair#*=}
      [[ $decision == allowed ]] || decision=denied # implicitDeny or explicitDeny
      expect "$role: $action on ${resource##*:}" "$expected" "$decision"
    done
  done <<<"$answer"
}

S3=arn:$PARTITION:s3:::$AUDIO_BUCKET
GROUPS_ARN=arn:$PARTITION:autoscaling:$AWS_REGION:$ACCOUNT:autoScalingGroup:00000000-0000-0000-0000-000000000000
in_parallel "documents_of $ROUTER trust-lambda router" "documents_of $INSTANCE_ROLE trust-ec2 gpu-instance" \
  "documents_of $LAUNCHER trust-lambda launcher" "documents_of $SCHEDULER_ROLE trust-scheduler scheduler" profile
verdict "the roles' documents" "$NEXT"

in_parallel \
  "may $ROUTER $S3/users/u/audio/sessions/s/chunk-1.webm s3:GetObject=allowed s3:PutObject=denied s3:DeleteObject=denied" \
  "may $ROUTER $S3/users/u/transcripts/s.json s3:GetObject=allowed s3:PutObject=allowed s3:DeleteObject=denied" \
  "may $ROUTER $JOBS_ARN sqs:SendMessage=allowed sqs:ReceiveMessage=denied sqs:PurgeQueue=denied" \
  "may $INSTANCE_ROLE $S3/users/u/audio/sessions/s/chunk-1.webm s3:GetObject=allowed s3:PutObject=denied s3:DeleteObject=denied" \
  "may $INSTANCE_ROLE $S3/users/u/transcripts/s.json s3:GetObject=allowed s3:PutObject=allowed s3:DeleteObject=denied" \
  "may $INSTANCE_ROLE $JOBS_ARN sqs:ReceiveMessage=allowed sqs:DeleteMessage=allowed sqs:PurgeQueue=denied" \
  "may $INSTANCE_ROLE $GROUPS_ARN:autoScalingGroupName/$INSTANCES autoscaling:TerminateInstanceInAutoScalingGroup=allowed autoscaling:SetDesiredCapacity=denied" \
  "may $LAUNCHER $GROUPS_ARN:autoScalingGroupName/$INSTANCES autoscaling:SetDesiredCapacity=allowed autoscaling:UpdateAutoScalingGroup=denied" \
  "may $LAUNCHER $GROUPS_ARN:autoScalingGroupName/another autoscaling:SetDesiredCapacity=denied" \
  "may $LAUNCHER $JOBS_ARN sqs:ReceiveMessage=allowed sqs:DeleteMessage=denied" \
  "may $SCHEDULER_ROLE $LAUNCHER_ARN lambda:InvokeFunction=allowed lambda:UpdateFunctionCode=denied" \
  "may $SCHEDULER_ROLE $ROUTER_ARN lambda:InvokeFunction=denied"
verdict "what the roles may do" "$NEXT"
