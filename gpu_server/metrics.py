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
        self.windows = Counter("recognizer_windows", "Windows recognised", registry=self.registry)
        self.batches = Counter("recognizer_batches", "Batches of windows recognised", registry=self.registry)
        self.shared = Counter(
            "recognizer_shared_chunks", "Chunks that went into a window of another's", registry=self.registry
        )
        self.waiting = Gauge("recognizer_waiting", "Windows that wait for the recognizer", registry=self.registry)
        self.stage_seconds = Counter(
            "stage_seconds", "Time spent in the other stages, which overlap", ["stage"], registry=self.registry
        )
        self.job_seconds = Histogram(
            "transcription_job_seconds", "From taking a job to its end", buckets=SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("transcription_jobs_in_flight", "Jobs taken and not ended", registry=self.registry)

    def recognized(self, seconds: float, windows: int, chunks: int) -> None:
        """One batch: how long the recognizer took for `windows`, in which `chunks` had a part."""
        self.recognizer_seconds.inc(seconds)
        self.batches.inc()
        self.windows.inc(windows)
        self.shared.inc(chunks - windows)
