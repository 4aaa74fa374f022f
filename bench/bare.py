"""Our engine in a process of its own, without HTTP, S3 and JSON: what the service's overhead is over."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from gpu_server.track import join, whole
from gpu_server.transcriber import Transcriber
from shared.jobs import Options

DECODERS = 2  # as many as the server has


@contextmanager
def load(model: Model) -> Iterator[Recognize]:
    """As `gpu_server.__main__` wires it. The function takes a media file, or a folder with the chunks of a session,
    which are heard together, and is safe to call from many threads.
    """
    engine = load_engine(
        cast(Any, model.engine), model=model.path, device=cast(Any, model.device), compute_type=model.compute_type
    )
    decoders = DecodePool(workers=DECODERS, limits=Limits())
    decoders.warm_up()
    transcriber = Transcriber(engine, decoders, ServerMetrics(), detectors=cores(), on_fault=lambda: None)
    transcriber.listener.warm_up()
    options = Options(language="en")

    def recognize(media: Path) -> str:
        with TemporaryDirectory() as folder:
            pcm = Path(folder, "pcm")
            if media.is_dir():
                parts = {chunk: Path(folder, chunk.name) for chunk in sorted(media.iterdir())}
                with ThreadPoolExecutor(DECODERS) as pool:
                    list(pool.map(transcriber.decode, parts.keys(), parts.values()))
                track = join(pcm, list(parts.values()))
            else:
                transcriber.decode(media, pcm)
                track = whole(pcm)
            return " ".join(part.text for part in transcriber.listen(track, options))

    yield recognize
    transcriber.close()


if __name__ == "__main__":
    child_main(load)
