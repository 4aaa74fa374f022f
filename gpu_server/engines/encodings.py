"""What Whisper's encoder makes of windows: arrays of shape (windows, positions, width), 50 positions a second."""

from collections.abc import Sequence
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.transcribe import get_ctranslate2_storage
from numpy.typing import NDArray

from gpu_server.engines import FULL_FRAMES

# Log-mel features of silence beside speech: they are kept within 2 (8 decades over 4) of the peak, and speech's is 1.1.
SILENCE = -0.9
END_POSITIONS = 100  # 2 s


class SilentEnd:
    """The end of Whisper's 30 s, when nobody speaks there; encoded once, it stands behind every short window.

    Whisper was trained on windows that are silent up to their 30th second, and repeats itself where that is missing: it
    never sees the speech end. Silence that the encoder computes anew for every window is most of the work on a short
    one. The decoder is as content with the same silence every time (docs/performance.md has the numbers).
    """

    def __init__(self, whisper: WhisperModel) -> None:
        silence = np.full((1, whisper.model.n_mels, FULL_FRAMES), SILENCE, dtype=np.float32)
        self._positions = _on_host(whisper.encode(silence))[:, -END_POSITIONS:]

    def after(self, encoded: Any) -> Any:
        """The windows with the end behind them."""
        windows = _on_host(encoded)
        end = np.broadcast_to(self._positions, (len(windows), *self._positions.shape[1:]))
        return get_ctranslate2_storage(np.concatenate([windows, end], axis=1))


def rows(encoded: Any, places: Sequence[int]) -> Any:
    """Some of the windows."""
    return get_ctranslate2_storage(np.ascontiguousarray(_on_host(encoded)[list(places)]))


def _on_host(encoded: Any) -> NDArray[np.float32]:
    """NumPy does not know all of CTranslate2's types; the decoder takes any."""
    return np.array(encoded.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32))
