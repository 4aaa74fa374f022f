"""Tells the rest of the world that a session transcript was written: an EventBridge event, so that nobody need poll."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from shared.combine import SessionTranscribed
from shared.errors import TransientError

SOURCE = "transcription.router"
DETAIL_TYPE = "Session Transcribed"


def publisher(client: Any, bus_name: str) -> Callable[[SessionTranscribed], None]:
    """A function that puts the event on the bus. It raises TransientError when the bus does not take it."""

    def publish(event: SessionTranscribed) -> None:
        entry = {
            "Source": SOURCE,
            "DetailType": DETAIL_TYPE,
            "Detail": json.dumps(asdict(event)),
            "EventBusName": bus_name,
        }
        try:
            answer = client.put_events(Entries=[entry])
        except (ClientError, BotoCoreError) as error:
            raise TransientError(f"the event bus did not take '{DETAIL_TYPE}': {error}") from error
        if answer["FailedEntryCount"]:  # put_events answers 200 for entries it refuses
            raise TransientError(f"the event bus refused '{DETAIL_TYPE}': {answer['Entries'][0].get('ErrorCode')}")

    return publish
