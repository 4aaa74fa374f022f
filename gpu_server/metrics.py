"""What Prometheus reads."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class ServerMetrics:
    """One set per server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter("transcription_jobs", "Jobs ended, by result", ["source", "result"], registry=self.registry)
        self.started = Counter("transcriptions_started", "Audio given to the recognizer", registry=self.registry)
        self.audio_seconds = Counter("transcription_audio_seconds", "Decoded audio", registry=self.registry)
        self.recognizer_seconds = Counter(
            "recognizer_busy_seconds", "Time the recognizer worked; its rate is its busy share", registry=self.registry
        )
        self.job_seconds = Histogram(
            "transcription_job_seconds", "From taking a job to its end", buckets=SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("transcription_jobs_in_flight", "Jobs taken and not ended", registry=self.registry)
