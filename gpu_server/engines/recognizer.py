"""The recognizer of both engines: Whisper on CTranslate2, in batches of windows from anywhere.

WhisperX's own batches share one prompt and one language, and are 30 s a window. Here every window brings its own
language, task, prompt and hotwords, and is padded only as far as it needs: Whisper's encoder pays for every frame.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_compression_ratio

from gpu_server.engines import (
    FRAME_RATE,
    SAMPLE_RATE,
    SHORT_FRAMES,
    UNDETERMINED,
    EngineFault,
    Features,
    Heard,
    Options,
    OutOfMemory,
    Window,
    Word,
)
from gpu_server.engines.encodings import SilentEnd, rows
from gpu_server.engines.word_times import timed

LOOPING_RATIO = 2.4  # text that compresses better than this repeats itself: the Whisper paper's threshold
LOOPING_WORDS = 4  # words in a row that say the same, this often: "thank you thank you thank you thank you"
# English speech has some 4 tokens a second; whoever needs more than this is in a loop, and holds up its whole batch.
TOKENS_PER_SECOND = 15
SPARE_TOKENS = 20
MOST_TOKENS = 224  # of a text: half of the decoder's 448 positions
SURE_LOGPROB = -0.5  # mean of a token: a greedy search that reaches it is about as good as the beam's (measured)
SAMPLES = 5  # texts sampled at a temperature above 0, of which the likeliest is taken: Whisper's best_of
STFT_SAMPLES = 400
SILENCE_BELOW_PEAK = 2.0  # log-mel features end this far under their peak (8 decades over 4)
SPECIAL_TOKEN = re.compile(r"<\|.*?\|>")
PLACEHOLDER = " a"  # aligned in the place of an empty text, and forgotten


class Lanes:
    """A model that runs `count` batches side by side, each on its share of the threads."""

    def __init__(self, whisper: WhisperModel, count: int) -> None:
        self.whisper = whisper
        self.count = count
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="lane")


@dataclass(frozen=True)
class _Text:
    """What the decoder found; see `Heard`."""

    tokens: list[int]
    text: str
    logprob: float
    no_speech_prob: float


class WhisperRecognizer:
    """One model in memory; see :class:`engines.Recognizer`.

    whisper: with all threads for one batch. lanes: the same model, for so many batches side by side, to which the
    windows of one are dealt out; None where one batch is as fast.
    """

    def __init__(self, whisper: WhisperModel, *, model: str, beam_size: int, lanes: "Lanes | None" = None) -> None:
        self.model = model
        self.device: str = whisper.model.device
        self._whisper = whisper
        self._beam_size = beam_size
        self._greedy_first = self.device == "cpu"  # there it saves a third of the time
        self._languages = frozenset(whisper.supported_languages)
        self._lanes = lanes
        self._end = SilentEnd(whisper)
        self._tokenizers: dict[tuple[str, str], Tokenizer] = {}

    @property
    def languages(self) -> frozenset[str]:
        return self._languages

    def key(self, window: Window) -> Hashable:
        """CTranslate2 wants one temperature and prompts of one length in a batch."""
        return window.temperature, len(self._prompt(window.options, self._any_language(window.options)))

    def prepare(self, window: Window) -> Features:
        """Log-mel features of the audio, then silence: it need not be computed."""
        features = self._whisper.feature_extractor(np.pad(window.audio, (0, STFT_SAMPLES)), padding=0)
        features = features[:, : window.frames].astype(np.float32)
        return _pad(features, window.frames)

    def recognize(self, windows: Sequence[Window], features: Sequence[Features]) -> list[Heard]:
        if self._lanes is None or len(windows) == 1:
            return self._batch(windows, features, self._whisper)
        share = -(-len(windows) // self._lanes.count)
        whisper = self._lanes.whisper

        def batch(start: int) -> list[Heard]:
            return self._batch(windows[start : start + share], features[start : start + share], whisper)

        return list(chain.from_iterable(self._lanes.threads.map(batch, range(0, len(windows), share))))

    def _batch(self, windows: Sequence[Window], features: Sequence[Features], whisper: WhisperModel) -> list[Heard]:
        frames = max(window.frames for window in windows)
        with faults():
            encoded = whisper.encode(np.stack([_pad(one, frames) for one in features]))
            if frames <= SHORT_FRAMES:
                encoded = self._end.after(encoded)
            ranked = self._languages_of(windows, encoded, whisper)
            languages = [language for language, _ in ranked]
            found = self._generate(windows, languages, encoded, whisper)
            words = self._words(windows, languages, [text.tokens for text in found], encoded, whisper)
        return [
            Heard(
                text=text.text,
                words=timed,
                language=language,
                language_probability=probability,
                avg_logprob=text.logprob,
                no_speech_prob=text.no_speech_prob,
                looping=is_looping(text.text) or len(text.tokens) >= _most_tokens(window),
            )
            for window, (language, probability), text, timed in zip(windows, ranked, found, words, strict=True)
        ]

    def _generate(
        self, windows: Sequence[Window], languages: list[str], encoded: Any, whisper: WhisperModel
    ) -> list[_Text]:
        """Per window what it says. A greedy search goes first; where that is unsure, the beam looks again."""
        temperature = windows[0].temperature
        if temperature:
            sampling = {"num_hypotheses": SAMPLES, "sampling_topk": 0, "sampling_temperature": temperature}
            return self._search(windows, languages, encoded, whisper, beam_size=1, **sampling)
        if not self._greedy_first:
            return self._search(windows, languages, encoded, whisper, beam_size=self._beam_size)
        texts = self._search(windows, languages, encoded, whisper, beam_size=1)
        unsure = [place for place, text in enumerate(texts) if text.logprob < SURE_LOGPROB]
        if unsure:
            some, theirs = [windows[place] for place in unsure], [languages[place] for place in unsure]
            careful = self._search(some, theirs, rows(encoded, unsure), whisper, beam_size=self._beam_size)
            for place, text in zip(unsure, careful, strict=True):
                texts[place] = text
        return texts

    def _search(
        self, windows: Sequence[Window], languages: list[str], encoded: Any, whisper: WhisperModel, **search: Any
    ) -> list[_Text]:
        prompts = [self._prompt(window.options, language) for window, language in zip(windows, languages, strict=True)]
        results = whisper.model.generate(
            encoded,
            prompts,
            max_length=self._max_length(len(prompts[0]), max(map(_most_tokens, windows))),
            return_scores=True,
            return_no_speech_prob=True,
            **search,
        )
        found = []
        for language, window, result in zip(languages, windows, results, strict=True):
            tokenizer = self._tokenizer(language, window.options.task)
            generated = result.sequences_ids[0]
            tokens = [token for token in generated if token < tokenizer.eot]
            logprob = result.scores[0] * len(generated) / (len(generated) + 1)  # the end token counts too
            found.append(_Text(tokens, tokenizer.decode(tokens), logprob, result.no_speech_prob))
        return found

    def _words(
        self,
        windows: Sequence[Window],
        languages: list[str],
        texts: list[list[int]],
        encoded: Any,
        whisper: WhisperModel,
    ) -> list[tuple[Word, ...]]:
        """Every text's words with times, from the decoder's attention: no second pass through the encoder."""
        words: list[tuple[Word, ...]] = [()] * len(windows)
        groups = defaultdict(list)
        for place, (window, language) in enumerate(zip(windows, languages, strict=True)):
            groups[language, window.options.task].append(place)
        for (language, task), places in groups.items():
            if not any(texts[place] for place in places):
                continue
            tokenizer = self._tokenizer(language, task)
            alignments = whisper.find_alignment(
                tokenizer,
                [texts[place] or tokenizer.encode(PLACEHOLDER) for place in places],
                encoded if len(places) == len(windows) else rows(encoded, places),
                [max(1, len(windows[place].audio) * FRAME_RATE // SAMPLE_RATE) for place in places],
            )
            for place, alignment in zip(places, alignments, strict=True):
                words[place] = timed(alignment) if texts[place] else ()
        return words

    def _languages_of(self, windows: Sequence[Window], encoded: Any, whisper: WhisperModel) -> list[tuple[str, float]]:
        """The language of each window, as asked for or as heard, and its probability."""
        if self._languages == {"en"}:
            return [("en", 1.0)] * len(windows)
        wanted = [window.options.language for window in windows]
        if all(wanted):
            return [(language, 1.0) for language in wanted if language]
        rankings = whisper.model.detect_language(encoded)
        return [
            (language, 1.0) if language else (ranking[0][0].strip("<|>"), ranking[0][1])
            for language, ranking in zip(wanted, rankings, strict=True)
        ]

    def _max_length(self, prompt: int, tokens: int) -> int:
        """CTranslate2 ends a text at half of this length, or where prompt and text together have it."""
        return min(2 * MOST_TOKENS, max(2 * tokens, prompt + tokens))

    def _prompt(self, options: Options, language: str) -> list[int]:
        tokenizer = self._tokenizer(language, options.task)
        prompt = clean_prompt(options.initial_prompt)
        previous = tokenizer.encode(" " + prompt) if prompt else []
        found: list[int] = self._whisper.get_prompt(
            tokenizer, previous, without_timestamps=True, hotwords=clean_prompt(options.hotwords)
        )
        most = MOST_TOKENS  # the other half of the positions is the text's
        return found if len(found) <= most else found[:1] + found[1 - most :]

    def _any_language(self, options: Options) -> str:
        """Prompts of all languages have one length."""
        return options.language or "en"

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        if (language, task) not in self._tokenizers:
            self._tokenizers[language, task] = Tokenizer(
                self._whisper.hf_tokenizer, self._whisper.model.is_multilingual, task=task, language=language
            )
        return self._tokenizers[language, task]


def is_looping(text: str) -> bool:
    """Whether text repeats itself as speech does not."""
    if get_compression_ratio(text) > LOOPING_RATIO:
        return True
    words = text.lower().split()
    return any(_repeats(words, length) >= LOOPING_WORDS for length in (2, 3, 4, 5))


def _repeats(words: list[str], length: int) -> int:
    """How often in a row some `length` words say the same."""
    most = run = 1
    grams = [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
    for start in range(length):
        run = 1
        for before, after in pairwise(grams[start::length]):
            run = run + 1 if before == after else 1
            most = max(most, run)
    return most


def silent_language(languages: frozenset[str], options: Options) -> str:
    """What to call the language when nothing was said."""
    return options.language or ("en" if languages == {"en"} else UNDETERMINED)


def clean_prompt(prompt: str | None) -> str | None:
    """A prompt without the model's control tokens, which its tokenizer obeys; None if empty."""
    return SPECIAL_TOKEN.sub("", prompt or "").strip() or None


@contextlib.contextmanager
def faults() -> Iterator[None]:
    """Tell a device that is full or broken from an error of this batch."""
    try:
        yield
    except RuntimeError as error:
        if re.search(r"out of memory|failed to allocate|alloc_failed", str(error), re.IGNORECASE):
            raise OutOfMemory("The GPU has no memory left for this.") from error
        if re.search(r"cuda|cublas|cudnn", str(error), re.IGNORECASE):
            raise EngineFault("The GPU failed.") from error
        raise


def _most_tokens(window: Window) -> int:
    return min(MOST_TOKENS, len(window.audio) * TOKENS_PER_SECOND // SAMPLE_RATE + SPARE_TOKENS)


def _pad(features: Features, frames: int) -> Features:
    missing = frames - features.shape[1]
    if missing <= 0:
        return features
    silence = features.max() - SILENCE_BELOW_PEAK if features.size else -1.5
    return np.pad(features, ((0, 0), (0, missing)), constant_values=silence)
