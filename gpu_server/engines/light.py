"""The light engine: faster-whisper with Silero's speech detector; no torch, at home on a laptop."""

import os
from typing import Literal

import ctranslate2
from faster_whisper import WhisperModel
from threadpoolctl import threadpool_limits

from gpu_server.engines import Engine, models
from gpu_server.engines.recognizer import Lanes, WhisperRecognizer, faults
from gpu_server.engines.silero import SileroDetector

NAME = "faster-whisper"
# On a CPU two half batches side by side are faster than one on twice the threads, by 1.1 to 1.3 (measured); a single
# window is slower by half, so the model is there twice.
CPU_LANES = 2


def load(
    *, model: str, device: Literal["auto", "cpu", "cuda"], compute_type: str, threads: int, beam_size: int
) -> Engine:
    """Load recognizer and detector; see :func:`engines.load_engine`."""
    return Engine(
        name=NAME,
        detector=SileroDetector(),
        recognizer=load_recognizer(
            WhisperModel, model=model, device=device, compute_type=compute_type, threads=threads, beam_size=beam_size
        ),
    )


def load_recognizer(
    factory: type[WhisperModel],
    *,
    model: str,
    device: Literal["auto", "cpu", "cuda"],
    compute_type: str,
    threads: int,
    beam_size: int,
) -> WhisperRecognizer:
    """The recognizer on a `factory` of faster-whisper's kind, WhisperX's included.

    Numpy's matrix products run in one thread from now on, in the whole process: features need a small one for each
    window, after which OpenBLAS's other threads would spin for ten times as long as it took.
    """
    threadpool_limits(1, user_api="blas")
    device = choose_device(device)
    threads = threads or cores()

    def load_model(threads: int, batches: int) -> WhisperModel:
        return factory(
            str(models.resolve(model)),
            device=device,
            compute_type=choose_compute_type(compute_type, device=device),
            cpu_threads=threads,
            num_workers=batches,
            local_files_only=True,
        )

    with faults():
        whisper = load_model(threads, 1)
        lanes = None
        if device == "cpu" and threads >= CPU_LANES:
            lanes = Lanes(load_model(threads // CPU_LANES, CPU_LANES), CPU_LANES)
    return WhisperRecognizer(whisper, model=models.display_name(model), beam_size=beam_size, lanes=lanes)


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """The GPU where there is one."""
    if device == "auto":
        return "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"
    return device


def choose_compute_type(compute_type: str, *, device: str) -> str:
    """CTranslate2's number format; "default" is the usual one of the device."""
    if compute_type == "default":
        return "float16" if device == "cuda" else "int8"
    return compute_type


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
