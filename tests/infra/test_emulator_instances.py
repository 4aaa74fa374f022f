"""Instances and groups of them in the project's emulator, as AWS's clients see them."""

import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.local import stack
from tests.infra.conftest import REGION, Aws

pytestmark = pytest.mark.integration

SUBNETS = "subnet-00000001,subnet-00000002"
IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"


def refusal(call: Callable[..., Any], **parameters: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**parameters)
    return str(refused.value.response["Error"]["Code"])


@pytest.fixture(scope="session")
def image(aws: Aws) -> str:
    return str(aws("ssm").get_parameter(Name=IMAGE_PARAMETER)["Parameter"]["Value"])


@pytest.fixture
def template(aws: Aws, image: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Data of a launch template that is named after the test, with a security group and a profile of that name."""
    name = request.node.name
    group = aws("ec2").create_security_group(GroupName=name, Description="test")["GroupId"]
    aws("iam").create_instance_profile(InstanceProfileName=name)
    data = {
        "ImageId": image,
        "InstanceType": "g5.xlarge",
        "UserData": "IyEvYmluL3No",
        "SecurityGroupIds": [group],
        "IamInstanceProfile": {"Name": name},
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 100, "VolumeType": "gp3", "Encrypted": True}}
        ],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": [{"Key": "Project", "Value": name}]} for kind in ("instance", "volume")
        ],
    }
    aws("ec2").create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
    return data


@pytest.fixture
def group(aws: Aws, template: dict[str, Any], request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """Describes the empty Auto Scaling group of at most 2 that is named after the test."""
    name = request.node.name
    scaling = aws("autoscaling")
    scaling.create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=2,
        DesiredCapacity=0,
        VPCZoneIdentifier=SUBNETS,
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {"LaunchTemplateName": name, "Version": "$Latest"},
                "Overrides": [{"InstanceType": "g4dn.xlarge"}, {"InstanceType": "g6.xlarge"}],
            },
            "InstancesDistribution": {
                "OnDemandPercentageAboveBaseCapacity": 50,
                "SpotAllocationStrategy": "capacity-optimized",
            },
        },
        Tags=[{"Key": "Name", "Value": name, "PropagateAtLaunch": True}, {"Key": "Kept", "Value": "here"}],
    )

    def describe() -> dict[str, Any]:
        (found,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        return dict(found)

    return describe


def test_an_instance_is_what_its_launch_template_says(
    aws: Aws, template: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    ec2, name = aws("ec2"), request.node.name
    market = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}
    ec2.create_launch_template_version(
        LaunchTemplateName=name, SourceVersion="1", LaunchTemplateData={"InstanceMarketOptions": market}
    )
    _, latest = sorted(
        ec2.describe_launch_template_versions(LaunchTemplateName=name)["LaunchTemplateVersions"],
        key=lambda version: version["VersionNumber"],
    )
    assert latest["LaunchTemplateData"]["InstanceMarketOptions"] == market
    request_ = {
        "LaunchTemplate": {"LaunchTemplateName": name, "Version": "$Latest"},
        "InstanceType": "g6.xlarge",
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": name,
        "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "Own", "Value": "tag"}]}],
    }

    launched = ec2.run_instances(**request_)["Instances"]
    again = ec2.run_instances(**request_)["Instances"]

    (reservation,) = ec2.describe_instances(Filters=[{"Name": "tag:Project", "Values": [name]}])["Reservations"]
    (instance,) = reservation["Instances"]
    id = instance["InstanceId"]
    assert [each["InstanceId"] for each in launched] == [each["InstanceId"] for each in again] == [id]
    assert instance["ImageId"] == template["ImageId"]
    assert instance["InstanceType"] == "g6.xlarge"
    assert instance["InstanceLifecycle"] == "spot"
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    assert [used["GroupId"] for used in instance["SecurityGroups"]] == template["SecurityGroupIds"]
    assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{name}")
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags["Own"] == "tag"
    assert tags["aws:ec2launchtemplate:version"] == "2"
    data = ec2.describe_instance_attribute(InstanceId=id, Attribute="userData")["UserData"]["Value"]
    assert data == template["UserData"]
    own = [{"Name": "tag:Project", "Values": [name]}]
    (volume,) = ec2.describe_volumes(Filters=own)["Volumes"]
    assert (volume["Size"], volume["Encrypted"], volume["Attachments"][0]["InstanceId"]) == (100, True, id)
    ec2.terminate_instances(InstanceIds=[id])
    assert ec2.describe_volumes(Filters=own)["Volumes"] == []


def test_what_does_not_exist_or_is_in_use_is_refused_as_on_aws(
    aws: Aws, image: str, template: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    ec2, name = aws("ec2"), request.node.name
    (guarded,) = template["SecurityGroupIds"]
    friend = ec2.create_security_group(GroupName=f"{name}-friend", Description="test")["GroupId"]
    port = {"IpProtocol": "tcp", "FromPort": 8000, "ToPort": 8000}
    from_friend = {**port, "UserIdGroupPairs": [{"GroupId": friend}]}
    ec2.authorize_security_group_ingress(
        GroupId=guarded, IpPermissions=[{**from_friend, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}]
    )
    one = {"MinCount": 1, "MaxCount": 1}

    assert "nvidia" in ec2.describe_images(ImageIds=[image])["Images"][0]["Name"].lower()
    assert refusal(ec2.describe_images, ImageIds=["ami-00000000000000bad"]) == "InvalidAMIID.NotFound"
    assert refusal(ec2.run_instances, ImageId="ami-00000000000000bad", **one) == "InvalidAMIID.NotFound"
    assert refusal(ec2.run_instances, ImageId=image, DryRun=True, **one) == "DryRunOperation"
    assert (
        refusal(ec2.run_instances, LaunchTemplate={"LaunchTemplateName": "none"}, **one)
        == refusal(ec2.describe_launch_templates, LaunchTemplateNames=["none"])
        == "InvalidLaunchTemplateName.NotFoundException"
    )
    assert (
        refusal(ec2.authorize_security_group_ingress, GroupId=guarded, IpPermissions=[from_friend])
        == "InvalidPermission.Duplicate"
    )
    assert refusal(ec2.delete_security_group, GroupId=friend) == "DependencyViolation"
    ec2.revoke_security_group_ingress(
        GroupId=guarded, IpPermissions=[{**from_friend, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}]
    )
    ec2.delete_security_group(GroupId=friend)
    assert refusal(aws("ssm").get_parameter, Name="/aws/service/deeplearning/ami/none") == "ParameterNotFound"


def test_a_group_owns_instances_within_its_limits(
    aws: Aws, group: Callable[[], dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    ec2, scaling, name = aws("ec2"), aws("autoscaling"), request.node.name
    scaling.enable_metrics_collection(
        AutoScalingGroupName=name, Granularity="1Minute", Metrics=["GroupDesiredCapacity"]
    )
    assert group()["EnabledMetrics"] == [{"Metric": "GroupDesiredCapacity", "Granularity": "1Minute"}]
    described = group()["MixedInstancesPolicy"]
    assert described["InstancesDistribution"]["SpotAllocationStrategy"] == "capacity-optimized"
    assert [override["InstanceType"] for override in described["LaunchTemplate"]["Overrides"]] == [
        "g4dn.xlarge",
        "g6.xlarge",
    ]
    assert described["LaunchTemplate"]["LaunchTemplateSpecification"]["LaunchTemplateName"] == name
    change = {"AutoScalingGroupName": name}
    assert refusal(scaling.set_desired_capacity, DesiredCapacity=3, **change) == "ValidationError"
    assert refusal(scaling.update_auto_scaling_group, MinSize=3, **change) == "ValidationError"

    scaling.set_desired_capacity(DesiredCapacity=2, **change)

    members = group()["Instances"]
    instances = [
        instance
        for reservation in ec2.describe_instances(InstanceIds=[member["InstanceId"] for member in members])[
            "Reservations"
        ]
        for instance in reservation["Instances"]
    ]
    assert {instance["InstanceType"] for instance in instances} == {"g4dn.xlarge"}
    assert [instance.get("InstanceLifecycle") for instance in instances] == [None, "spot"]
    assert len({instance["SubnetId"] for instance in instances}) == 2
    tags = {tag["Key"]: tag["Value"] for tag in instances[0]["Tags"]}
    assert (tags["Name"], tags["Project"], tags["aws:autoscaling:groupName"]) == (name, name, name)
    assert "Kept" not in tags

    first, second = (member["InstanceId"] for member in members)
    scaling.set_instance_protection(InstanceIds=[first], ProtectedFromScaleIn=True, **change)
    scaling.set_desired_capacity(DesiredCapacity=0, **change)
    assert [member["InstanceId"] for member in group()["Instances"]] == [first]

    scaling.set_desired_capacity(DesiredCapacity=1, **change)
    ec2.terminate_instances(InstanceIds=[first])
    (replacement,) = group()["Instances"]
    assert replacement["InstanceId"] not in (first, second)

    scaling.set_instance_health(InstanceId=replacement["InstanceId"], HealthStatus="Unhealthy")
    (another,) = group()["Instances"]
    assert another["InstanceId"] != replacement["InstanceId"]
    ended = [one for one in scaling.describe_scaling_activities(**change)["Activities"] if "Term" in one["Description"]]
    assert "taken out of service in response to a user health-check" in ended[0]["Cause"]
    assert "taken out of service in response to an EC2 health check" in ended[1]["Cause"]

    # A template that has gone shows where AWS shows it.
    ec2.delete_launch_template(LaunchTemplateName=name)
    ec2.terminate_instances(InstanceIds=[another["InstanceId"]])
    assert group()["Instances"] == []
    (activity, *_) = scaling.describe_scaling_activities(**change)["Activities"]
    assert activity["StatusCode"] == "Failed"
    assert "does not exist" in activity["StatusMessage"]


def as_role_that_may_end_instances_of(name: str, aws: Aws, emulator: stack.Emulator) -> Any:
    """Auto Scaling's client of a role whose policy names that group."""
    trust = {"Effect": "Allow", "Principal": {"AWS": stack.ACCOUNT}, "Action": "sts:AssumeRole"}
    policy = {
        "Effect": "Allow",
        "Action": "autoscaling:TerminateInstanceInAutoScalingGroup",
        "Resource": f"arn:aws:autoscaling:{REGION}:{stack.ACCOUNT}:autoScalingGroup:*:autoScalingGroupName/{name}",
    }
    role = aws("iam").create_role(RoleName=name[-60:], AssumeRolePolicyDocument=json.dumps({"Statement": trust}))[
        "Role"
    ]
    aws("iam").put_role_policy(
        RoleName=role["RoleName"], PolicyName="p", PolicyDocument=json.dumps({"Statement": policy})
    )
    session = aws("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
    return boto3.client(
        "autoscaling",
        region_name=REGION,
        endpoint_url=emulator.endpoint,
        aws_access_key_id=session["AccessKeyId"],
        aws_secret_access_key=session["SecretAccessKey"],
        aws_session_token=session["SessionToken"],
    )


def test_an_instance_that_ends_itself_or_whose_group_is_deleted_is_gone(
    aws: Aws, emulator: stack.Emulator, group: Callable[[], dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    ec2, scaling, name = aws("ec2"), aws("autoscaling"), request.node.name
    stranger = as_role_that_may_end_instances_of("another-group", aws, emulator)
    itself = as_role_that_may_end_instances_of(name, aws, emulator)
    scaling.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=1)
    (only,) = (member["InstanceId"] for member in group()["Instances"])
    end = {"InstanceId": only, "ShouldDecrementDesiredCapacity": True}
    assert refusal(stranger.terminate_instance_in_auto_scaling_group, **end) == "AccessDenied"
    assert refusal(itself.terminate_instance_in_auto_scaling_group, **end) == "ValidationError"
    scaling.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0)

    activity = itself.terminate_instance_in_auto_scaling_group(**end)["Activity"]

    assert only in activity["Description"]
    assert (group()["DesiredCapacity"], group()["Instances"]) == (0, [])
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
    (last,) = (member["InstanceId"] for member in group()["Instances"])
    assert refusal(scaling.delete_auto_scaling_group, AutoScalingGroupName=name) == "ResourceInUse"
    scaling.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
    states = {
        instance["State"]["Name"]
        for reservation in ec2.describe_instances(InstanceIds=[only, last])["Reservations"]
        for instance in reservation["Instances"]
    }
    assert states == {"terminated"}
    assert refusal(scaling.delete_auto_scaling_group, AutoScalingGroupName=name) == "ValidationError"
