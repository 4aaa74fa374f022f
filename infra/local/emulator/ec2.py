"""EC2: a launch template applies to what is launched from it, and what AWS refuses is refused."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ministack.core.responses import get_account_id, get_region, new_uuid
from ministack.services import ec2, lambda_svc, ssm

from infra.local.emulator.patching import patch, patch_action
from infra.local.emulator.refusals import Parameters, Refused, Response, answered_by

refusable = answered_by(ec2._error)

METADATA_DEFAULTS = {
    "HttpTokens": "optional",
    "HttpPutResponseHopLimit": 1,
    "HttpEndpoint": "enabled",
    "InstanceMetadataTags": "disabled",
}

# The public parameters that name the newest image with NVIDIA's driver: the Deep Learning AMIs and that of ECS.
GPU_IMAGE_PARAMETER = re.compile(r"/aws/service/(deeplearning/ami|ecs/optimized-ami)/[\w./-]+/(ami-id|image_id)")
GPU_IMAGE = (
    "ami-0d15ea5e0f00ba12c",
    "Deep Learning Base OSS Nvidia Driver GPU AMI (Amazon Linux 2023) 20251101",
    "Supported EC2 instances: G4dn, G5, G6",
    "",
    "/dev/xvda",
    "898082745236",
    "amazon",
)

# What a rule of a security group may name as the other side, and where in its entry that is.
PEERS = {
    "IpRanges": "CidrIp",
    "Ipv6Ranges": "CidrIpv6",
    "PrefixListIds": "PrefixListId",
    "UserIdGroupPairs": "GroupId",
}

_parse_template = ec2._parse_lt_data
_template_xml = ec2._lt_data_xml
_instance_xml = ec2._instance_xml
_public_parameter = ssm._public_parameter
_terminate = ec2._terminate_instances
_describe_images = ec2._describe_images
_describe_templates = ec2._describe_launch_templates
_describe_instance_attribute = ec2._describe_instance_attribute
_authorize_ingress = ec2._authorize_sg_ingress
_authorize_egress = ec2._authorize_sg_egress
_delete_security_group = ec2._delete_security_group


def install() -> None:
    patch(ec2, "_parse_lt_data", parse_template, because="a template's market options were dropped")
    patch(ec2, "_lt_data_xml", template_xml, because="a template's market options were not described")
    patch(ec2, "_instance_xml", instance_xml, because="an instance's market and metadata options were not described")
    patch(ec2, "_STUB_AMIS", [*ec2._STUB_AMIS, GPU_IMAGE], because="there was no image with NVIDIA's driver")
    patch(ssm, "_public_parameter", public_parameter, because="no public parameter named an image with NVIDIA's driver")
    patch_action(
        ec2,
        "RunInstances",
        run_instances,
        because="the launch template, spot and metadata options were ignored, and a dry run launched",
    )
    patch_action(ec2, "TerminateInstances", terminate, because="the root volume of an instance outlived it")
    patch_action(ec2, "DescribeInstanceAttribute", describe_instance_attribute, because="user data was always empty")
    missing = "to ask for one that does not exist was no error"
    patch_action(ec2, "DescribeImages", describe_images, because=missing)
    patch_action(ec2, "DescribeLaunchTemplates", describe_templates, because=missing)
    twice = "a rule that was there already was accepted once more"
    patch_action(ec2, "AuthorizeSecurityGroupIngress", authorize_ingress, because=twice)
    patch_action(ec2, "AuthorizeSecurityGroupEgress", authorize_egress, because=twice)
    patch_action(ec2, "DeleteSecurityGroup", delete_security_group, because="a group that was in use could be deleted")


# Launch templates -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """One version of a launch template; without an id, that of a request which names none."""

    id: str = ""
    name: str = ""
    version: int = 0
    data: dict[str, Any] = field(default_factory=dict)


def find_template(spec: Parameters) -> Template:
    """The launch template that a LaunchTemplateSpecification means.

    Raises:
        Refused: there is no such template or version.
    """
    id, name = spec.get("LaunchTemplateId"), spec.get("LaunchTemplateName")
    wanted = spec.get("Version") or "$Default"
    for record in ec2._launch_templates.values():
        if record["LaunchTemplateId"] != id and record["LaunchTemplateName"] != name:
            continue
        aliases = {"$Default": record["DefaultVersionNumber"], "$Latest": record["LatestVersionNumber"]}
        number = str(aliases.get(wanted, wanted))
        for version in record["Versions"]:
            if str(version["VersionNumber"]) == number:
                return Template(
                    id=record["LaunchTemplateId"],
                    name=record["LaunchTemplateName"],
                    version=version["VersionNumber"],
                    data=version["LaunchTemplateData"],
                )
        raise Refused("InvalidLaunchTemplateId.VersionNotFound", f"Could not find launch template version {wanted}.")
    kind, named = ("Id", "launch template ID") if id else ("Name", "template name")
    raise Refused(
        f"InvalidLaunchTemplate{kind}.NotFoundException",
        f"The specified launch template, with {named} {id or name}, does not exist.",
    )


def parse_template(p: Parameters, prefix: str = "LaunchTemplateData") -> dict[str, Any]:
    data: dict[str, Any] = _parse_template(p, prefix)
    market = f"{prefix}.InstanceMarketOptions"
    if kind := ec2._p(p, f"{market}.MarketType"):
        data["InstanceMarketOptions"] = {"MarketType": kind}
        spot = {
            name: value
            for name in ("SpotInstanceType", "InstanceInterruptionBehavior", "MaxPrice")
            if (value := ec2._p(p, f"{market}.SpotOptions.{name}"))
        }
        if spot:
            data["InstanceMarketOptions"]["SpotOptions"] = spot
    return data


def template_xml(data: Mapping[str, Any]) -> str:
    market = data.get("InstanceMarketOptions")
    return str(_template_xml(data)) + (_element("InstanceMarketOptions", market) if market else "")


def _element(name: str, value: Any) -> str:
    tag = name[0].lower() + name[1:]
    inner = "".join(_element(*member) for member in value.items()) if isinstance(value, dict) else ec2._esc(str(value))
    return f"<{tag}>{inner}</{tag}>"


@refusable
def describe_templates(p: Parameters) -> Response:
    for kind in ("LaunchTemplateId", "LaunchTemplateName"):
        for wanted in ec2._parse_member_list(p, kind):
            find_template({kind: wanted})
    return _describe_templates(p)


# Instances ------------------------------------------------------------------------------------------------------


@refusable
def run_instances(p: Parameters) -> Response:
    token = ec2._p(p, "ClientToken")
    instances = [instance for instance in ec2._instances.values() if token and instance.get("ClientToken") == token]
    if not instances:
        keys = ("LaunchTemplateId", "LaunchTemplateName", "Version")
        named = {key: ec2._p(p, f"LaunchTemplate.{key}") for key in keys}
        template = find_template(named) if any(named.values()) else Template()
        # A request has the same parameters as a template, and wins over it; tags of both are given.
        request = parse_template({f"Request.{key}": value for key, value in p.items()}, "Request")
        tags = [*template.data.get("TagSpecifications", []), *request.get("TagSpecifications", [])]
        data = {**template.data, **request, "TagSpecifications": tags}
        subnet = ec2._p(p, "SubnetId")
        check_launch(data, subnet=subnet)
        if ec2._p(p, "DryRun") == "true":
            raise Refused("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", status=412)
        count = int(ec2._p(p, "MaxCount", "1"))
        instances = [launch(data, subnet=subnet, template=template) for _ in range(count)]
        for instance in instances:
            instance["ClientToken"] = token
    items = "".join(ec2._instance_xml(instance) for instance in instances)
    return ec2._xml(
        200,
        "RunInstancesResponse",
        f"<reservationId>r-{new_uuid().replace('-', '')[:17]}</reservationId><ownerId>{get_account_id()}</ownerId>"
        f"<groupSet/><instancesSet>{items}</instancesSet>",
    )


def check_launch(data: Mapping[str, Any], *, subnet: str = "") -> None:
    """All that a launch refers to must exist.

    Raises:
        Refused: something does not.
    """
    image = data.get("ImageId")
    if not image:
        raise Refused("MissingParameter", "The request must contain the parameter ImageId")
    _require_image(image)
    for group in _security_groups(data):
        if group not in ec2._security_groups:
            raise Refused("InvalidGroup.NotFound", f"The security group '{group}' does not exist")
    if subnet and subnet not in ec2._subnets:
        raise Refused("InvalidSubnetID.NotFound", f"The subnet ID '{subnet}' does not exist")
    profile = data.get("IamInstanceProfile", {})
    if profile and ec2._resolve_iam_instance_profile(profile.get("Arn", ""), profile.get("Name", ""))[1]:
        named = profile.get("Arn") or profile.get("Name")
        raise Refused("InvalidParameterValue", f"Value ({named}) for parameter iamInstanceProfile is invalid.")


def launch(
    data: Mapping[str, Any], *, subnet: str = "", template: Template, tags: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One running instance, as the data of a launch template says; `tags` win over those of the template."""
    slot = ec2._slot_from_lt_data({}, data)
    (instance,) = ec2._launch_instances_internal(
        image_id=slot["image_id"],
        instance_type=slot["instance_type"],
        subnet_id=subnet or ec2._DEFAULT_SUBNET_ID,
        count=1,
        key_name=slot["key_name"],
        user_data=slot["user_data"],
        sg_ids=_security_groups(data),
        iam_profile=slot["iam_profile"],
    )
    instance["Placement"]["AvailabilityZone"] = ec2._subnets[instance["SubnetId"]]["AvailabilityZone"]
    instance["MetadataOptions"] = {**METADATA_DEFAULTS, **data.get("MetadataOptions", {})}
    if data.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
        instance["InstanceLifecycle"] = "spot"
    all_tags = {tag["Key"]: tag["Value"] for tag in slot["instance_tags"]} | dict(tags or {})
    if template.id:
        all_tags |= {
            "aws:ec2launchtemplate:id": template.id,
            "aws:ec2launchtemplate:version": str(template.version),
        }
    ec2._tags[instance["InstanceId"]] = [{"Key": key, "Value": value} for key, value in all_tags.items()]
    _apply_root_volume(instance, data)
    return instance


def _apply_root_volume(instance: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    root = instance["RootDeviceName"]
    wanted = next((m.get("Ebs", {}) for m in data.get("BlockDeviceMappings", []) if m["DeviceName"] == root), {})
    volume = ec2._volumes[_root_volume(instance)]
    tags = [spec["Tags"] for spec in data.get("TagSpecifications", []) if spec["ResourceType"] == "volume"]
    ec2._tags[volume["VolumeId"]] = [tag for some in tags for tag in some]
    volume.update(
        {
            ours: wanted[theirs]
            for theirs, ours in {"VolumeSize": "Size", "VolumeType": "VolumeType", "Encrypted": "Encrypted"}.items()
            if theirs in wanted
        }
    )


def _root_volume(instance: Mapping[str, Any]) -> str:
    return str(instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"])


def terminate(p: Parameters) -> Response:
    answer = _terminate(p)
    if answer[0] == 200:
        for name in ec2._parse_member_list(p, "InstanceId"):
            volume = _root_volume(ec2._instances[name])
            ec2._volumes.pop(volume, None)
            ec2._tags.pop(volume, None)
    return answer


def _security_groups(data: Mapping[str, Any]) -> list[str]:
    interfaces = data.get("NetworkInterfaces") or [{}]
    return data.get("SecurityGroupIds") or interfaces[0].get("Groups") or []


def instance_xml(instance: Mapping[str, Any]) -> str:
    extra = ""
    if lifecycle := instance.get("InstanceLifecycle"):
        extra += _element("InstanceLifecycle", lifecycle)
    if options := instance.get("MetadataOptions"):
        extra += _element("MetadataOptions", {"State": "applied", **options})
    return str(_instance_xml(instance)).removesuffix("</item>") + extra + "</item>"


def describe_instance_attribute(p: Parameters) -> Response:
    instance = ec2._instances.get(ec2._p(p, "InstanceId"))
    if not instance or ec2._p(p, "Attribute") != "userData":
        return _describe_instance_attribute(p)
    value = f"<value>{instance['UserData']}</value>" if instance["UserData"] else ""
    return ec2._xml(
        200,
        "DescribeInstanceAttributeResponse",
        f"<instanceId>{instance['InstanceId']}</instanceId><userData>{value}</userData>",
    )


# Images ---------------------------------------------------------------------------------------------------------


def public_parameter(name: str) -> dict[str, Any] | None:
    if not GPU_IMAGE_PARAMETER.fullmatch(name):
        return _public_parameter(name)
    return {
        "Name": name,
        "Type": "String",
        "Value": GPU_IMAGE[0],
        "Version": 1,
        "LastModifiedDate": 1762000000,
        "ARN": f"arn:aws:ssm:{get_region()}::parameter{name}",
    }


@refusable
def describe_images(p: Parameters) -> Response:
    for image in ec2._parse_member_list(p, "ImageId"):
        _require_image(image)
    return _describe_images(p)


def _require_image(image: str) -> None:
    if image not in ec2._images and image not in {stub[0] for stub in ec2._STUB_AMIS}:
        raise Refused("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")


# Security groups ------------------------------------------------------------------------------------------------


@refusable
def authorize_ingress(p: Parameters) -> Response:
    _refuse_duplicates(p, "IpPermissions")
    return _authorize_ingress(p)


@refusable
def authorize_egress(p: Parameters) -> Response:
    _refuse_duplicates(p, "IpPermissionsEgress")
    return _authorize_egress(p)


def _refuse_duplicates(p: Parameters, direction: str) -> None:
    """AWS counts a rule for each peer, however the permissions that named them were grouped."""
    group = ec2._security_groups.get(ec2._p(p, "GroupId"), {})
    known = {rule for permission in group.get(direction, []) for rule in _rules(permission)}
    for permission in ec2._parse_ip_permissions(p, "IpPermissions"):
        for rule in _rules(permission):
            if rule in known:
                protocol, first, last, peer = rule
                raise Refused(
                    "InvalidPermission.Duplicate",
                    f'the specified rule "peer: {peer}, {protocol.upper()}, from port: {first}, to port: {last}, '
                    'ALLOW" already exists',
                )


def _rules(permission: Mapping[str, Any]) -> Iterator[tuple[str, int | None, int | None, str]]:
    for kind, key in PEERS.items():
        for entry in permission.get(kind, []):
            yield permission["IpProtocol"], permission.get("FromPort"), permission.get("ToPort"), entry.get(key, "")


@refusable
def delete_security_group(p: Parameters) -> Response:
    group = ec2._p(p, "GroupId")
    if _is_in_use(group):
        raise Refused("DependencyViolation", f"resource {group} has a dependent object")
    return _delete_security_group(p)


def _is_in_use(group: str) -> bool:
    return (
        any(
            group == used["GroupId"]
            for instance in ec2._instances.values()
            if instance["State"]["Name"] != "terminated"
            for used in instance["SecurityGroups"]
        )
        or any(
            group == pair.get("GroupId")
            for other in ec2._security_groups.values()
            if other["GroupId"] != group
            for permission in (*other["IpPermissions"], *other["IpPermissionsEgress"])
            for pair in permission.get("UserIdGroupPairs", [])
        )
        or any(
            group in (function["config"].get("VpcConfig") or {}).get("SecurityGroupIds", [])
            for function in lambda_svc._functions.values()
        )
    )
