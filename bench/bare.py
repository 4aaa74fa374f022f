"""Our engine in a process of its own, without HTTP, S3 and JSON: what the service's overhead is over."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from bench.children import Model, Recognize, child_main
from gpu_server.decode_pool import DecodePool
from gpu_server.decoding import Limits
from gpu_server.engines import load_engine
from gpu_server.engines.light import cores
from gpu_server.metrics import ServerMetrics
from gpu_server.track import whole
from gpu_server.transcriber import Transcriber
from shared.jobs import Options


@contextmanager
def load(model: Model) -> Iterator[Recognize]:
    """As `gpu_server.__main__` wires it. The function takes media files and is safe to call from many threads."""
    engine = load_engine(
        cast(Any, model.engine), model=model.path, device=cast(Any, model.device), compute_type=model.compute_type
    )
    decoders = DecodePool(workers=2, limits=Limits())
    decoders.warm_up()
    transcriber = Transcriber(engine, decoders, ServerMetrics(), detectors=cores(), on_fault=lambda: None)
    transcriber.listener.warm_up()
    options = Options(language="en")

    def recognize(file: Path) -> str:
        with TemporaryDirectory() as folder:
            pcm = Path(folder, "pcm")
            transcriber.decode(file, pcm)
            return " ".join(part.text for part in transcriber.listen(whole(pcm), options))

    yield recognize
    transcriber.close()


if __name__ == "__main__":
    child_main(load)
