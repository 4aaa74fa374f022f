"""The same world on a local AWS, through the real boto3 clients: faults strike where botocore sends.

`before-send` is inside the SDK's retry loop. A call whose answer is lost is sent by a connection of our own, and then
`ConnectionClosedError` tells the SDK that there was no answer: what it does next is its own doing.
"""

import io
import json
import wave
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import boto3
import httpx
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from botocore.httpsession import URLLib3Session
from fastapi import FastAPI

from gpu_server.app import create_app
from gpu_server.service import Service
from gpu_server.settings import ServerSettings
from gpu_server.transcriber import Transcriber
from infra.local import stack
from shared.bus import publisher
from shared.combine import SessionTranscribed
from shared.queues import RECEIVE_CONFIG, SEND_CONFIG, Message, Queue
from shared.server import ServerClient
from shared.store import CLIENT_CONFIG, S3Store, StoredObject
from tests.faults.oracle import Found, Upload
from tests.faults.points.fleet import KEY_PARAMETER, SERVER_TAG, Clients, new_group, new_template
from tests.faults.points.house import House, serve
from tests.faults.points.plan import Kind, Life, Plan
from tests.faults.points.stage import NUMBERS
from tests.gpu_server.ears import SAMPLE_RATE, tagged

REGION = "us-east-2"
API_KEY = "correct horse"
SECONDS = 0.5  # of audio in a chunk
QUEUES = ("jobs", "failures", "dlq")
ACTORS = ("router", "launcher", "worker", "server")
MOST_RECEIVES = 5
BACK_AT_ONCE = 60  # seconds: nobody waits for a message that is given back
EMPTY_POLLS = 3  # in a row: nobody works on what is hidden, and it would come back some time


class Wire:
    """One actor's clients, which its lives have one after the other."""

    def __init__(self, session: boto3.Session, endpoint: str, receipts: "Receipts") -> None:
        self.life: Life | None = None
        self._receipts = receipts
        self._own = URLLib3Session()  # not the client's: that must not know of what was sent here
        self._struck: dict[str, Kind] = {}  # by the SDK's own id of a call, which all its tries have

        def client(service: str, config: Config) -> Any:
            made = session.client(service, endpoint_url=endpoint, config=config)
            made.meta.events.register(f"before-send.{service}", self._send)
            return made

        self.s3, self.events = client("s3", CLIENT_CONFIG), client("events", CLIENT_CONFIG)
        self.clients = Clients(*(client(service, CLIENT_CONFIG) for service in Clients._fields))
        self.sending, self.receiving = client("sqs", SEND_CONFIG), client("sqs", RECEIVE_CONFIG)

    def _send(self, request: AWSPreparedRequest, event_name: str, **_: Any) -> None:
        lost = ConnectionClosedError(endpoint_url=request.url)
        id = str(request.headers["amz-sdk-invocation-id"])
        if id in self._struck:
            if self._struck[id] is Kind.DONE_TWICE:
                return
            raise lost  # as often as the SDK tries
        assert self.life
        _, service, operation = event_name.split(".")
        kind = self.life.arrive(name_of(request, service, operation))
        if kind is None:
            return
        self._struck[id] = kind
        if kind is Kind.CRASH_BEFORE:
            self.life.end()
        if kind is not Kind.FAIL_BEFORE:
            answer = self._own.send(request)
            if operation == "ReceiveMessage":
                handles = [message["ReceiptHandle"] for message in json.loads(answer.content).get("Messages", ())]
                self._receipts.given(json.loads(request.body)["QueueUrl"], handles)
        if kind is Kind.CRASH_AFTER:
            self.life.end()
        raise lost


def name_of(request: AWSPreparedRequest, service: str, operation: str) -> str:
    """The call's name, as the in-memory ports give it."""
    url = urlsplit(request.url)
    match service, operation:
        case "s3", "ListObjectsV2":
            prefixes = parse_qs(url.query, keep_blank_values=True)["prefix"]
            return f"{operation} {prefixes[0]}"
        case "s3", _:
            return f"{operation} {unquote(url.path).lstrip('/').partition('/')[2]}"
        case "sqs", _:
            return f"{operation} {json.loads(request.body)['QueueUrl'].rpartition('-')[2]}"
    return operation


class Receipts:
    """Every receipt that was given, so that a lease can end without anybody waiting for it.

    `waited`: seconds that polls which brought nothing would have taken.
    """

    def __init__(self, sqs: Any) -> None:
        self.waited = 0.0
        self._sqs = sqs
        self._handles: defaultdict[str, list[str]] = defaultdict(list)
        self._empty: Counter[str] = Counter()

    def given(self, url: str, handles: list[str]) -> None:
        self._handles[url] += handles

    def received(self, url: str, messages: list[Message], *, wait: int) -> None:
        self.given(url, [message.receipt for message in messages])
        self.waited += 0 if messages else wait
        self._empty[url] = 0 if messages else self._empty[url] + 1
        if self._empty[url] == EMPTY_POLLS:
            self._end(url)

    def end(self) -> None:
        for url in list(self._handles):
            self._end(url)

    def _end(self, url: str) -> None:
        self._empty[url] = 0
        for handle in self._handles.pop(url, ()):
            with suppress(ClientError):  # deleted, or received once more
                self._sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)


class PromptQueue(Queue):
    """`Queue`, but for the waiting."""

    def __init__(self, client: Any, url: str, receipts: Receipts) -> None:
        super().__init__(client, url)
        self._receipts = receipts

    def receive(self, *, most: int, wait: int, visibility: int) -> list[Message]:
        messages = super().receive(most=most, wait=0, visibility=visibility)
        self._receipts.received(self.url, messages, wait=wait)
        return messages

    def extend(self, message: Message, seconds: int) -> None:
        super().extend(message, 0 if seconds <= BACK_AT_ONCE else seconds)


class Doorway(httpx.AsyncBaseTransport):
    """HTTP to the house's application; faults strike between client and server."""

    def __init__(self, world: "AwsWorld", life: Life) -> None:
        self._world = world
        self._life = life

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async def question(service: Service) -> httpx.Response:
            response = await self._world.application.handle_async_request(request)
            return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

        # The loop here is this one call's own: it may stand still.
        name = f"{request.method} {request.url.path}"
        return self._life.call(name, lambda: self._world.house.ask(question), ConnectionError)


def start_server(endpoint: str) -> str:
    """The instance whose address the routers of all lanes find, and its key; the name of its launch template."""
    ec2, ssm = (_session().client(service, endpoint_url=endpoint) for service in ("ec2", "ssm"))
    ssm.put_parameter(Name=KEY_PARAMETER, Value=API_KEY, Type="SecureString", Overwrite=True)
    template = new_template(ec2)
    key, _, value = SERVER_TAG.partition("=")
    tags = [{"ResourceType": "instance", "Tags": [{"Key": key, "Value": value}]}]
    ec2.run_instances(LaunchTemplate={"LaunchTemplateName": template}, MinCount=1, MaxCount=1, TagSpecifications=tags)
    return template


def _session() -> boto3.Session:
    return boto3.Session(stack.ACCOUNT, stack.SECRET, region_name=REGION, botocore_session=None)


class Lane:
    """Clients of all actors, for one run after the other; several lanes run side by side.

    `template`: that of their groups' instances.
    """

    def __init__(self, endpoint: str, template: str, transcriber: Transcriber, workspace: Path) -> None:
        session = _session()
        quick = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        self.s3, self.sqs, self.scaling = (
            session.client(service, endpoint_url=endpoint, config=quick) for service in ("s3", "sqs", "autoscaling")
        )
        self.receipts = Receipts(self.sqs)
        self.wires = {actor: Wire(session, endpoint, self.receipts) for actor in ACTORS}
        self.template = template
        self.transcriber = transcriber
        self.workspace = workspace


class AwsWorld:
    """A bucket and three queues of one run's own."""

    def __init__(self, plan: Plan, lane: Lane) -> None:
        self._lane = lane
        self.house = House(plan, self._serve)
        self.application: httpx.AsyncBaseTransport
        name = f"points-{uuid4().hex}"
        self.bucket = name
        self.group = new_group(lane.scaling, lane.template)
        self.uploads: list[Upload] = []
        self.wrong: list[str] = []
        lane.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        self._urls: dict[str, str] = {}
        for queue in reversed(QUEUES):
            attributes = {}
            if queue == "jobs":
                arn = self._attributes("dlq")["QueueArn"]
                policy = {"deadLetterTargetArn": arn, "maxReceiveCount": MOST_RECEIVES}
                attributes = {"RedrivePolicy": json.dumps(policy)}
            self._urls[queue] = lane.sqs.create_queue(QueueName=f"{name}-{queue}", Attributes=attributes)["QueueUrl"]

    def audio_of(self, chunk: int) -> bytes:
        content = io.BytesIO()
        with wave.open(content, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes((tagged(NUMBERS[chunk], SECONDS) * 32767).astype("<i2").tobytes())
        return content.getvalue()

    def put(self, key: str, body: bytes) -> str:
        return str(self._lane.s3.put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"]).strip('"')

    def send(self, name: str, body: str) -> None:
        self._lane.sqs.send_message(QueueUrl=self._urls[name], MessageBody=body)

    def found(self) -> Found:
        self.let_leases_end()
        listed = self._lane.s3.list_objects_v2(Bucket=self.bucket).get("Contents", ())
        answers = {item["Key"]: self._lane.s3.get_object(Bucket=self.bucket, Key=item["Key"]) for item in listed}
        objects = {
            key: StoredObject(answer["Body"].read(), answer["ETag"].strip('"')) for key, answer in answers.items()
        }
        return Found(self.bucket, objects, [body for name in QUEUES for body in self._bodies(name)])

    def _bodies(self, name: str) -> list[str]:
        """Of all messages. Looking counts as a receive, so it looks only where there are some."""
        attributes = self._attributes(name)
        count = sum(int(attributes[f"ApproximateNumberOfMessages{which}"]) for which in ("", "NotVisible"))
        if not count:
            return []
        ask = {"QueueUrl": self._urls[name], "MaxNumberOfMessages": 10, "VisibilityTimeout": 0}
        messages = self._lane.sqs.receive_message(**ask).get("Messages", ())
        assert len(messages) == count
        return [message["Body"] for message in messages]

    def let_leases_end(self) -> None:
        self._lane.receipts.end()

    def store_for(self, life: Life) -> S3Store:
        return S3Store(self._wire(life).s3, self.bucket)

    def queue_for(self, life: Life, name: str) -> Queue:
        wire = self._wire(life)
        client = wire.sending if life.actor == "router" else wire.receiving
        return PromptQueue(client, self._urls[name], self._lane.receipts)

    def publisher_for(self, life: Life) -> Callable[[SessionTranscribed], None]:
        return publisher(self._wire(life).events, "default")

    def server_for(self, life: Life) -> ServerClient:
        return ServerClient("http://server", api_key=API_KEY, transport=Doorway(self, life))

    def clients_for(self, life: Life) -> Clients:
        return self._wire(life).clients

    def instances(self) -> list[str]:
        answer = self._lane.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.group])
        return [one["InstanceId"] for one in answer["AutoScalingGroups"][0]["Instances"]]

    def finish(self, instance: str) -> None:
        self._lane.scaling.terminate_instance_in_auto_scaling_group(
            InstanceId=instance, ShouldDecrementDesiredCapacity=True
        )

    def clock(self) -> float:
        return self._lane.receipts.waited

    def _wire(self, life: Life) -> Wire:
        wire = self._lane.wires[life.actor]
        wire.life = life
        return wire

    def _attributes(self, name: str) -> dict[str, str]:
        answer = self._lane.sqs.get_queue_attributes(QueueUrl=self._urls[name], AttributeNames=["All"])
        return dict(answer["Attributes"])

    def _serve(self, life: Life) -> Service:
        lane = self._lane
        service = serve(self.store_for(life), self.publisher_for(life), lane.transcriber, lane.workspace)
        settings = ServerSettings(api_key=API_KEY, audio_bucket=self.bucket, aws_region=REGION)
        app = create_app(service, settings, lifespan=_no_lifespan)
        self.application = httpx.ASGITransport(app, raise_app_exceptions=False)
        return service


@asynccontextmanager
async def _no_lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


@contextmanager
def no_backoff() -> Iterator[None]:
    """The SDK tries again at once: the tries are what is tested, not the pauses."""
    with mock.patch("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: None)):
        yield
