"""How much waits: SQS's own counts, CloudWatch's age of the oldest job, and a few messages' seconds of audio."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

from batch_worker.capacity import Waiting
from shared.queues import AUDIO_SECONDS, MAX_RECEIVE, Message, Queue

CHUNK_SECONDS = 5.0  # of a job that does not say how long it is
DAY_SECONDS = 86_400.0  # nothing is longer, whatever a message says
SAMPLES = 3  # receives, of up to ten messages each
SAMPLE_VISIBILITY = 5  # seconds that a message is nobody else's since we look at it
WAIT_SECONDS = 1  # a receive that does not wait asks only some of SQS's servers
# SQS tells the age once a minute while a queue is in use: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/
# SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
AGE_PERIOD = 60
AGE_LOOK_BACK = timedelta(minutes=15)


@dataclass(frozen=True)
class Backlog:
    """`letters`: the dead letters and the router's failures, which a batch run gives a try too.

    `cloudwatch`: boto3's client, whose errors pass; the queues' are QueueUnavailable.
    """

    jobs: Queue
    letters: Sequence[Queue]
    cloudwatch: Any

    def waiting(self, now: datetime) -> Waiting:
        counts = [queue.backlog() for queue in (self.jobs, *self.letters)]
        jobs = sum(count.visible + count.in_flight + count.delayed for count in counts)
        return Waiting(jobs, self._oldest(now) if jobs else 0.0)

    def audio_seconds(self, waiting: Waiting) -> float:
        """Of all that waits, by the mean of what a few messages say."""
        sample: list[Message] = []
        for _ in range(SAMPLES):
            more = self.jobs.receive(most=MAX_RECEIVE, wait=WAIT_SECONDS, visibility=SAMPLE_VISIBILITY)
            if not more:
                break
            sample += more
        return waiting.jobs * (fmean(map(_seconds, sample)) if sample else CHUNK_SECONDS)

    def _oldest(self, now: datetime) -> float:
        """Seconds, as last told of the jobs queue; 0 when nothing was told of late."""
        metric = {
            "Namespace": "AWS/SQS",
            "MetricName": "ApproximateAgeOfOldestMessage",
            "Dimensions": [{"Name": "QueueName", "Value": self.jobs.url.rpartition("/")[2]}],
        }
        query = {"Id": "age", "MetricStat": {"Metric": metric, "Period": AGE_PERIOD, "Stat": "Maximum"}}
        [age] = self.cloudwatch.get_metric_data(
            MetricDataQueries=[query], StartTime=now - AGE_LOOK_BACK, EndTime=now, ScanBy="TimestampDescending"
        )["MetricDataResults"]
        newest = max(zip(age["Timestamps"], age["Values"], strict=True), default=(now, 0.0))
        return float(newest[1])


def _seconds(message: Message) -> float:
    try:
        return min(max(0.0, float(message.attributes[AUDIO_SECONDS])), DAY_SECONDS)
    except (KeyError, ValueError):
        return CHUNK_SECONDS
