"""Auto Scaling: a group owns instances of EC2, within its limits, and replaces the ones that are lost."""

import math
from collections.abc import Mapping
from typing import Any

from ministack.core import iam_actions
from ministack.core.responses import new_uuid, now_iso
from ministack.services import autoscaling, ec2

from infra.local.emulator.ec2 import Template, check_launch, find_template, launch, terminate
from infra.local.emulator.patching import add_action, patch, patch_action
from infra.local.emulator.query import nested
from infra.local.emulator.refusals import Parameters, Refused, Response, answered_by

Group = dict[str, Any]
Member = dict[str, Any]

# https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_InstancesDistribution.html
DISTRIBUTION_DEFAULTS = {
    "OnDemandAllocationStrategy": "prioritized",
    "OnDemandBaseCapacity": "0",
    "OnDemandPercentageAboveBaseCapacity": "100",
    "SpotAllocationStrategy": "lowest-price",
}
ACTIVITIES_KEPT = 100

refusable = answered_by(autoscaling._error)

_create = autoscaling._create_asg
_update = autoscaling._update_asg
_describe = autoscaling._describe_asgs
_describe_instances = autoscaling._describe_asg_instances
_delete = autoscaling._delete_asg
_instance_xml = autoscaling._instance_member_xml
_resource_arn = iam_actions.extract_resource_arn


def install() -> None:
    patch(autoscaling, "_reconcile_instances", reconcile, because="a group had made-up instance ids, and no instances")
    patch(autoscaling, "_instance_member_xml", instance_xml, because="an instance had no type")
    patch(
        iam_actions,
        "extract_resource_arn",
        resource_arn,
        because="a policy that names the group denied what names only an instance of it",
    )
    lost = "the launch template's name and the MixedInstancesPolicy were lost, and the limits not held"
    patch_action(autoscaling, "CreateAutoScalingGroup", create, because=lost)
    patch_action(autoscaling, "UpdateAutoScalingGroup", update, because=lost)
    patch_action(
        autoscaling, "DescribeAutoScalingGroups", describe, because="the MixedInstancesPolicy was not described"
    )
    late = "an instance that had ended stayed in its group"
    patch_action(autoscaling, "DescribeAutoScalingInstances", describe_instances, because=late)
    patch_action(autoscaling, "DescribeScalingActivities", describe_activities, because="there were none")
    patch_action(autoscaling, "SetDesiredCapacity", set_desired_capacity, because="the limits were not held")
    patch_action(autoscaling, "DeleteAutoScalingGroup", delete, because="instances outlived their group")
    add_action(autoscaling, "TerminateInstanceInAutoScalingGroup", terminate_instance)
    add_action(autoscaling, "SetInstanceProtection", set_instance_protection)
    add_action(autoscaling, "SetInstanceHealth", set_instance_health)
    add_action(autoscaling, "EnableMetricsCollection", enable_metrics_collection)


# Requests -------------------------------------------------------------------------------------------------------


@refusable
def create(p: Parameters) -> Response:
    sizes = {"MinSize": int(p["MinSize"]), "MaxSize": int(p["MaxSize"])}
    sizes["DesiredCapacity"] = int(p.get("DesiredCapacity") or sizes["MinSize"])
    if not p.get("VPCZoneIdentifier") and not p.get("AvailabilityZones.member.1"):
        raise Refused("ValidationError", "At least one Availability Zone or VPC Subnet is required.")
    changes = {**sizes, **_settings(p, {})}
    _check(changes)
    # Empty at first: what its instances are like is not in MiniStack's own part of the group.
    answer = _create({**p, "MinSize": "0", "DesiredCapacity": "0"})
    if answer[0] == 200:
        group = autoscaling._asgs[p["AutoScalingGroupName"]]
        group.update(changes)
        reconcile(group)
    return answer


@refusable
def update(p: Parameters) -> Response:
    group = _group(p)
    low, high = (int(p.get(name) or group[name]) for name in ("MinSize", "MaxSize"))
    # Not asked for, it follows the limits.
    desired = int(p.get("DesiredCapacity") or min(max(group["DesiredCapacity"], low), high))
    changes = {"MinSize": low, "MaxSize": high, "DesiredCapacity": desired, **_settings(p, group)}
    _check({**group, **changes})
    group.update(changes)
    return _update(p)


@refusable
def set_desired_capacity(p: Parameters) -> Response:
    group, wanted = _group(p), int(p["DesiredCapacity"])
    if wanted < group["MinSize"]:
        raise _beyond(wanted, f"below min value {group['MinSize']}")
    if wanted > group["MaxSize"]:
        raise _beyond(wanted, f"above max value {group['MaxSize']}")
    group["DesiredCapacity"] = wanted
    reconcile(group)
    return autoscaling._xml(200, "SetDesiredCapacityResponse", "")


def _beyond(wanted: int, limit: str) -> Refused:
    return Refused("ValidationError", f"New SetDesiredCapacity value {wanted} is {limit} for the AutoScalingGroup.")


@refusable
def terminate_instance(p: Parameters) -> Response:
    group, member = _owned(p["InstanceId"])
    if p.get("ShouldDecrementDesiredCapacity") == "true":
        if group["DesiredCapacity"] <= group["MinSize"]:
            raise Refused(
                "ValidationError",
                f"Currently, desiredSize equals minSize ({group['MinSize']}). Terminating instance without "
                "replacement will violate group's min size constraint.",
            )
        group["DesiredCapacity"] -= 1
    activity = _end(group, member, cause="it was asked for by a user request")
    reconcile(group)
    action = "TerminateInstanceInAutoScalingGroup"
    inner = f"<Activity>{autoscaling._member_xml(activity)}</Activity>"
    return autoscaling._xml(200, f"{action}Response", f"<{action}Result>{inner}</{action}Result>")


@refusable
def set_instance_protection(p: Parameters) -> Response:
    group = _group(p)
    members = {member["InstanceId"]: member for member in group["Instances"]}
    wanted = autoscaling._parse_member_list(p, "InstanceIds")
    for instance in wanted:
        if instance not in members:
            name = group["AutoScalingGroupName"]
            raise Refused("ValidationError", f"The instance {instance} is not part of Auto Scaling group {name}.")
    for instance in wanted:
        members[instance]["ProtectedFromScaleIn"] = p["ProtectedFromScaleIn"] == "true"
    reconcile(group)
    return autoscaling._xml(200, "SetInstanceProtectionResponse", "<SetInstanceProtectionResult/>")


@refusable
def set_instance_health(p: Parameters) -> Response:
    """As with ShouldRespectGracePeriod=false: a group's grace period is not kept here."""
    group, member = _owned(p["InstanceId"])
    if p["HealthStatus"] not in ("Healthy", "Unhealthy"):
        raise Refused("ValidationError", f"{p['HealthStatus']} is not a valid health status.")
    member["HealthStatus"] = p["HealthStatus"]
    reconcile(group)
    return autoscaling._xml(200, "SetInstanceHealthResponse", "")


@refusable
def enable_metrics_collection(p: Parameters) -> Response:
    group, names = _group(p), autoscaling._parse_member_list(p, "Metrics")
    if not names:
        raise Refused("ValidationError", "The emulator enables no metrics but those that are named.")
    enabled = {metric["Metric"]: metric for metric in group.get("EnabledMetrics", [])}
    enabled |= {name: {"Metric": name, "Granularity": p["Granularity"]} for name in names}
    group["EnabledMetrics"] = list(enabled.values())
    return autoscaling._xml(200, "EnableMetricsCollectionResponse", "")


@refusable
def delete(p: Parameters) -> Response:
    group = _group(p)
    if group["Instances"] and p.get("ForceDelete") != "true":
        raise Refused(
            "ResourceInUse",
            "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance request(s) "
            "still in the group.",
        )
    for member in list(group["Instances"]):
        _end(group, member, cause="the group was deleted")
    return _delete(p)


def describe(p: Parameters) -> Response:
    _reconcile_all()
    status, headers, body = _describe(p)
    for group in autoscaling._asgs.values():
        arn = f"<AutoScalingGroupARN>{group['AutoScalingGroupARN']}</AutoScalingGroupARN>"
        more = "".join(
            f"<{name}>{autoscaling._member_xml(group[name])}</{name}>"
            for name in ("MixedInstancesPolicy", "EnabledMetrics")
            if group.get(name)
        )
        body = body.replace(arn.encode(), (arn + more).encode())
    return status, headers, body


def describe_instances(p: Parameters) -> Response:
    _reconcile_all()
    return _describe_instances(p)


def describe_activities(p: Parameters) -> Response:
    name = p.get("AutoScalingGroupName")
    found = [
        activity
        for group in autoscaling._asgs.values()
        if name in (None, group["AutoScalingGroupName"])
        for activity in group.get("Activities", [])
    ]
    action = "DescribeScalingActivities"
    inner = f"<Activities>{autoscaling._member_xml(found)}</Activities>"
    return autoscaling._xml(200, f"{action}Response", f"<{action}Result>{inner}</{action}Result>")


def instance_xml(member: Member, include_group_name: str = "") -> str:
    xml = str(_instance_xml(member, include_group_name))
    return xml.removesuffix("</member>") + f"<InstanceType>{member['InstanceType']}</InstanceType></member>"


def resource_arn(
    service: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    query_params: Mapping[str, Any],
    region: str,
    account_id: str,
) -> str:
    if service == "autoscaling" and (instance := iam_actions._query_param(query_params, "InstanceId")):
        for group in autoscaling._asgs.values():
            if any(member["InstanceId"] == instance for member in group["Instances"]):
                return str(group["AutoScalingGroupARN"])
    return str(_resource_arn(service, method, path, headers, body, query_params, region, account_id))


# Groups ---------------------------------------------------------------------------------------------------------


def _group(p: Parameters) -> Group:
    name = p.get("AutoScalingGroupName")
    if name not in autoscaling._asgs:
        raise Refused("ValidationError", f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
    found: Group = autoscaling._asgs[name]
    return found


def _owned(instance: str) -> tuple[Group, Member]:
    for group in autoscaling._asgs.values():
        for member in group["Instances"]:
            if member["InstanceId"] == instance:
                return group, member
    raise Refused("ValidationError", f"Instance Id not found - No managed instance found for instance ID: {instance}")


def _settings(p: Parameters, group: Group) -> Group:
    """What a request says about the group's instances, in the shape in which AWS describes it."""
    settings: Group = {}
    if spec := nested(p, "LaunchTemplate"):
        settings = {"LaunchTemplate": _complete(spec), "MixedInstancesPolicy": {}}
    elif policy := nested(p, "MixedInstancesPolicy"):
        old = group.get("MixedInstancesPolicy") or {}
        template = {**old.get("LaunchTemplate", {}), **policy.get("LaunchTemplate", {})}
        template["LaunchTemplateSpecification"] = _complete(template["LaunchTemplateSpecification"])
        distribution = {
            **DISTRIBUTION_DEFAULTS,
            **old.get("InstancesDistribution", {}),
            **policy.get("InstancesDistribution", {}),
        }
        settings = {
            "LaunchTemplate": {},
            "MixedInstancesPolicy": {"LaunchTemplate": template, "InstancesDistribution": distribution},
        }
    if protected := p.get("NewInstancesProtectedFromScaleIn"):
        settings["NewInstancesProtectedFromScaleIn"] = protected == "true"
    if subnets := p.get("VPCZoneIdentifier"):
        settings["VPCZoneIdentifier"] = subnets
        settings["AvailabilityZones"] = sorted({_subnet(name)["AvailabilityZone"] for name in subnets.split(",")})
    return settings


def _complete(spec: Parameters) -> dict[str, str]:
    try:
        template = find_template(spec)
    except Refused as refusal:
        raise _not_fully_formed(refusal) from refusal
    version = spec.get("Version") or "$Default"
    return {"LaunchTemplateId": template.id, "LaunchTemplateName": template.name, "Version": version}


def _not_fully_formed(reason: Refused) -> Refused:
    return Refused("ValidationError", f"You must use a valid fully-formed launch template. {reason}")


def _subnet(name: str) -> Mapping[str, Any]:
    if name not in ec2._subnets:
        raise Refused("ValidationError", f"The subnet ID '{name}' does not exist")
    found: Mapping[str, Any] = ec2._subnets[name]
    return found


def _check(group: Group) -> None:
    low, high, desired = group["MinSize"], group["MaxSize"], group["DesiredCapacity"]
    if low > high:
        raise Refused("ValidationError", f"Max bound, {high}, must be greater than or equal to min bound, {low}")
    if not low <= desired <= high:
        raise Refused(
            "ValidationError",
            f"Desired capacity:{desired} must be between the specified min size:{low} and max size:{high}",
        )
    if not group.get("LaunchTemplate") and not group.get("MixedInstancesPolicy"):
        raise Refused(
            "ValidationError",
            "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or "
            "MixedInstancesPolicy parameter.",
        )
    try:
        _next_launch({**group, "Instances": []})
    except Refused as refusal:
        raise _not_fully_formed(refusal) from refusal


# Instances ------------------------------------------------------------------------------------------------------


def _reconcile_all() -> None:
    for group in list(autoscaling._asgs.values()):
        reconcile(group)


def reconcile(group: Group) -> None:
    """End what is ill or too much, start what is missing; what cannot be started is a failed activity, as on AWS."""
    members = group["Instances"]
    for member in [member for member in members if not _is_alive(member)]:
        _end(group, member, cause="an instance was taken out of service in response to an EC2 health check")
    for member in [member for member in members if member["HealthStatus"] == "Unhealthy"]:
        _end(group, member, cause="an instance was taken out of service in response to a user health-check")
    while len(members) > group["DesiredCapacity"]:
        victim = next((member for member in members if not member["ProtectedFromScaleIn"]), None)
        if not victim:
            break
        _end(group, victim, cause="the desired capacity is lower")
    while len(members) < group["DesiredCapacity"]:
        try:
            members.append(_start(group))
        except Refused as refusal:
            _note(group, "Launching a new EC2 instance.", failure=str(refusal), cause="the desired capacity is higher")
            break


def _is_alive(member: Member) -> bool:
    instance = ec2._instances.get(member["InstanceId"])
    return bool(instance) and instance["State"]["Name"] in ("pending", "running")


def _start(group: Group) -> Member:
    template, data = _next_launch(group)
    ec2._ensure_defaults_initialized()
    subnets = [name for name in group["VPCZoneIdentifier"].split(",") if name]
    tags = {tag["Key"]: tag["Value"] for tag in group["Tags"] if tag["PropagateAtLaunch"]}
    instance = launch(
        data,
        template=template,
        subnet=subnets[len(group["Instances"]) % len(subnets)] if subnets else "",
        tags={**tags, "aws:autoscaling:groupName": group["AutoScalingGroupName"]},
    )
    _note(group, f"Launching a new EC2 instance: {instance['InstanceId']}", cause="the desired capacity is higher")
    return {
        "InstanceId": instance["InstanceId"],
        "InstanceType": instance["InstanceType"],
        "AvailabilityZone": instance["Placement"]["AvailabilityZone"],
        "LifecycleState": "InService",
        "HealthStatus": "Healthy",
        "ProtectedFromScaleIn": group["NewInstancesProtectedFromScaleIn"],
        "LaunchTemplate": {
            "LaunchTemplateId": template.id,
            "LaunchTemplateName": template.name,
            "Version": str(template.version),
        },
    }


def _next_launch(group: Group) -> tuple[Template, dict[str, Any]]:
    """What the group's next instance is launched from: with a choice of types the first, as if all had capacity."""
    policy = group.get("MixedInstancesPolicy")
    spec = policy["LaunchTemplate"]["LaunchTemplateSpecification"] if policy else group["LaunchTemplate"]
    template = find_template(spec)
    data = dict(template.data)
    if policy:
        if "InstanceMarketOptions" in data:
            raise Refused("ValidationError", "A MixedInstancesPolicy allows no InstanceMarketOptions in the template.")
        if overrides := policy["LaunchTemplate"].get("Overrides"):
            data["InstanceType"] = overrides[0]["InstanceType"]
        if _is_spot_next(group):
            data["InstanceMarketOptions"] = {"MarketType": "spot"}
    check_launch(data)
    return template, data


def _is_spot_next(group: Group) -> bool:
    distribution = group["MixedInstancesPolicy"]["InstancesDistribution"]
    base = int(distribution["OnDemandBaseCapacity"])
    above = max(group["DesiredCapacity"] - base, 0)
    wanted = base + math.ceil(above * int(distribution["OnDemandPercentageAboveBaseCapacity"]) / 100)
    instances = [ec2._instances[member["InstanceId"]] for member in group["Instances"]]
    return sum("InstanceLifecycle" not in instance for instance in instances) >= wanted


def _end(group: Group, member: Member, *, cause: str) -> dict[str, Any]:
    group["Instances"].remove(member)
    if member["InstanceId"] in ec2._instances:
        terminate({"InstanceId.1": [member["InstanceId"]]})
    return _note(group, f"Terminating EC2 instance: {member['InstanceId']}", cause=cause)


def _note(group: Group, description: str, *, cause: str, failure: str = "") -> dict[str, Any]:
    now = now_iso()
    activity = {
        "ActivityId": new_uuid(),
        "AutoScalingGroupName": group["AutoScalingGroupName"],
        "Description": description,
        "Cause": f"At {now} {cause}.",
        "StartTime": now,
        "EndTime": now,
        "StatusCode": "Failed" if failure else "Successful",
        "Progress": 100,
        **({"StatusMessage": failure} if failure else {}),
    }
    group["Activities"] = [activity, *group.get("Activities", [])][:ACTIVITIES_KEPT]
    return activity
