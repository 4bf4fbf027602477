"""Speech from a text: the delay pattern, sampling, and `generate()`, which writes delayed codebooks step by step."""

import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode, LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList
from transformers.utils import ModelOutput

from .alignment_smalle import monotonicity
from .configuration_smalle import AUDIO_BOS, AUDIO_EOS, AUDIO_PAD, NUM_AUDIO_SPECIALS
from .runtime_smalle import encode_text, start_steps
from .validation_smalle import FLOATS, check_initial_state, check_recording, check_seed, check_tensor, check_text

REPETITION_WINDOW = 50  # frames that a repetition penalty looks back
UNKNOWN = -1  # entry of a delayed grid that the model has to fill in
NO_CODE = -1  # fills `sequences` after the end of a row


# Delay pattern (MusicGen, Copet et al. 2023): codebook q is written q + 1 steps late.


def delay(codes: torch.Tensor, end: int = AUDIO_EOS) -> torch.Tensor:
    """Delayed grid of undelayed codes: (T, Q) -> (T + Q, Q).

    Codes are shifted by the number of special tokens. AUDIO_BOS stands before the first code of each codebook, `end`
    after its last.
    """
    length, num_codebooks = codes.shape
    grid = codes.new_full((length + num_codebooks, num_codebooks), end)
    for q in range(num_codebooks):
        grid[: q + 1, q] = AUDIO_BOS
        grid[q + 1 : q + 1 + length, q] = codes[:, q] + NUM_AUDIO_SPECIALS
    return grid


def undelay(grid: torch.Tensor) -> torch.Tensor:
    """Inverse of `delay`: grid (B, T + Q, Q) -> codes (B, T, Q). Special tokens come out negative."""
    return undelay_steps(grid[:, 1:]) - NUM_AUDIO_SPECIALS


def undelay_steps(steps: torch.Tensor) -> torch.Tensor:
    """Groups what each step predicted by frame: (B, S, Q, ...) -> (B, S - Q + 1, Q, ...).

    steps[:, s, q] belongs to codebook q of frame s - q.
    """
    num_codebooks = steps.shape[2]
    length = max(0, steps.shape[1] - num_codebooks + 1)
    return torch.stack([steps[:, q : q + length, q] for q in range(num_codebooks)], 2)


# Sampling: each codebook has its own settings.


@dataclass(frozen=True)
class SamplingSettings:
    """How one codebook is sampled.

    top_k: number of most likely tokens that are kept, 0: all, 1: greedy; temperature; top_p: the most likely tokens are
    kept until their probabilities add up to it; min_p: tokens are kept that have at least this share of the highest
    probability; repetition_penalty: divides positive scores of the last 50 frames' tokens and multiplies negative ones.
    """

    top_k: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        right = self.top_k >= 0 and 1e-3 <= self.temperature <= 1e3 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1
        if not right or not 1e-2 <= self.repetition_penalty <= 1e2:
            raise ValueError(
                f"{self}: expected top_k >= 0 (0: no limit), temperature of 0.001..1000 (do_sample=False is greedy), "
                "0 < top_p <= 1, 0 <= min_p <= 1 and repetition_penalty of 0.01..100 (1: none)."
            )

    @property
    def top_k_only(self) -> bool:
        """Whether top_k and temperature alone decide: what the fast path of an exported step can draw by."""
        return (self.top_p, self.min_p, self.repetition_penalty) == (1, 0, 1)


GREEDY = SamplingSettings()
PER_CODEBOOK = "temperature", "top_k", "top_p", "min_p", "repetition_penalty"  # a number, or a list


def seeded(seed: int | torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """A new generator for an integer seed. A generator, or None for the global one, is returned as it is."""
    check_seed(seed)
    return seed if seed is None or isinstance(seed, torch.Generator) else torch.Generator(device).manual_seed(seed)


def per_codebook(name: str, value: Any, num_codebooks: int, default: Any) -> list:
    """A setting for every codebook: a number sets the first and leaves `default` to the others; a list sets each."""
    if not isinstance(value, (list, tuple)):
        return [value] + [default] * (num_codebooks - 1)
    if len(value) != num_codebooks:
        raise ValueError(f"{name}={value!r}: expected one number or a list of {num_codebooks}, one for each codebook.")
    return list(value)


def sampling_settings(config: GenerationConfig, num_codebooks: int) -> list[SamplingSettings]:
    """Settings of each codebook; all are greedy with do_sample=False."""
    names = PER_CODEBOOK if config.do_sample else ("repetition_penalty",)
    values = {name: getattr(config, name) for name in names}
    if any(isinstance(values.get(name), (list, tuple)) for name in ("temperature", "top_p", "min_p")):
        top_k = values["top_k"]  # a list of these samples every codebook, also where top_k is one number
        values["top_k"] = top_k if isinstance(top_k, (list, tuple)) else [top_k] * num_codebooks
    columns = [per_codebook(name, value, num_codebooks, getattr(GREEDY, name)) for name, value in values.items()]
    return [SamplingSettings(**dict(zip(names, row))) for row in zip(*columns)]


def penalise_repetition(logits: torch.Tensor, recent: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits (B, V) after a penalty on recent tokens (B, W), special ones excepted (Keskar et al. 2019)."""
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, recent.clamp(min=0), True)
    seen[:, :NUM_AUDIO_SPECIALS] = False
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def warp(logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Logits (B, V) of one codebook after temperature, top_k, top_p and min_p: -inf for tokens that are cut off."""
    if settings.top_k == 1:
        return logits
    logits = logits if settings.temperature == 1 else logits / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(settings.top_k, -1).values[:, -1:], -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        beyond = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= settings.top_p
        beyond[:, 0] = False  # however small top_p is
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)
    if settings.min_p > 0:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < settings.min_p * probs.max(-1, keepdim=True).values, -torch.inf)
    return logits


def sample(scores: torch.Tensor, settings: SamplingSettings, generator: torch.Generator | None = None) -> torch.Tensor:
    """One token of each row of warped scores: (B, V) -> (B,)."""
    if settings.top_k == 1:
        return scores.argmax(-1)
    probs = scores.softmax(-1)
    waits = torch.empty_like(probs).exponential_(generator=generator)
    return (probs / waits).argmax(-1)  # the draw of torch.multinomial without its checks, which cost more


def draw(
    logits: torch.Tensor, settings: list[SamplingSettings], generator: torch.Generator | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Samples logits (B, Q, V): a token of each codebook (B, Q), and the warped scores, Q times (B, V)."""
    tokens, scores = logits.argmax(-1), list(logits.unbind(1))
    for q, setting in enumerate(settings):
        if setting.top_k != 1:
            scores[q] = warp(scores[q], setting)
            tokens[:, q] = sample(scores[q], setting, generator)
    return tokens, scores


def guide(logits: torch.Tensor, scales: tuple[float, ...] | list[float]) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): logits (G·B, Q, V), the conditional rows first -> (B, Q, V).

    Moves the first B rows away from each branch behind them, by (scale - 1) times their difference.
    """
    if not scales:
        return logits
    conditional, *branches = logits.chunk(1 + len(scales))
    return conditional + sum((scale - 1) * (conditional - other) for scale, other in zip(scales, branches))


def banned_tokens(num_codebooks: int, vocab_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that are never sampled, (Q, V) bool: while a row may end, and while it may not.

    A row ends when its first codebook is AUDIO_EOS; codebook q follows q steps later, see `force_tails`.
    """
    tokens = torch.zeros(2, num_codebooks, vocab_size, dtype=torch.bool)
    tokens[..., [AUDIO_PAD, AUDIO_BOS, AUDIO_EOS]] = True
    tokens[0, 0, AUDIO_EOS] = False
    return tokens.to(device).unbind()


def force_tails(logits: torch.Tensor, remaining: torch.Tensor) -> torch.Tensor:
    """Leaves AUDIO_EOS alone in the codebooks that have ended: logits (B, Q, V), remaining (B,) steps of each row."""
    num_codebooks = logits.shape[1]
    since_end = torch.where(remaining < 0, -1, num_codebooks - remaining)
    ended = torch.arange(num_codebooks, device=logits.device) <= since_end[:, None]
    logits[..., AUDIO_EOS] = logits[..., AUDIO_EOS].masked_fill((remaining >= 0)[:, None], -torch.inf)
    only_eos = torch.full_like(logits, -torch.inf)
    only_eos[..., AUDIO_EOS] = 0
    return torch.where(ended[..., None], only_eos, logits)


# Generation configuration: what one call takes and refuses.

NUMBERS = *PER_CODEBOOK, "guidance_scale", "max_time"
INTEGERS = "top_k", "max_new_tokens", "min_new_tokens", "num_return_sequences", "best_of"
FLAGS = "do_sample", "output_scores", "return_dict_in_generate"
REPLACED = {  # settings of other models -> what does it here
    "max_length": "max_new_tokens, which counts new frames",
    "min_length": "min_new_tokens, which counts new frames",
    "output_attentions": "output_alignments",
    "streamer": "stream()",
}
UNSUPPORTED = (  # None or 0: off
    *("top_h", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "watermarking_config"),
    *("exponential_decay_length_penalty", "renormalize_logits", "stop_strings", "cache_implementation"),
    *("forced_bos_token_id", "forced_eos_token_id", "output_logits", "output_hidden_states"),
)
UNSUPPORTED_FACTORS = "typical_p", "encoder_repetition_penalty"  # None or 1: off


def check_setting(name: str, value: Any):
    """ValueError unless the value of a setting of `generate()` is of the right type."""

    def right(x):
        number = isinstance(x, numbers.Integral if name in INTEGERS else numbers.Real)
        return number and not isinstance(x, bool) and math.isfinite(x)

    if name in FLAGS and not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: expected True or False.")
    if name in (*NUMBERS, *INTEGERS):
        several = name in PER_CODEBOOK and isinstance(value, (list, tuple))
        if not all(map(right, value if several else [value])):
            lists = " or a list of them, one for each codebook" if name in PER_CODEBOOK else ""
            raise ValueError(f"{name}={value!r}: expected {'an integer' if name in INTEGERS else 'a number'}{lists}.")


def check_mode(config: GenerationConfig):
    """ValueError for beam search, assisted decoding and other settings that it would be wrong to ignore."""
    mode = config.get_generation_mode()
    asked = [] if mode in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH) else [mode.value]
    for names, off in ((UNSUPPORTED, 0), (UNSUPPORTED_FACTORS, 1)):
        values = {name: getattr(config, name, None) for name in names}
        asked += [f"{name}={value!r}" for name, value in values.items() if value not in (None, off)]
    if asked:
        raise ValueError(
            f"{', '.join(asked)}: generate() is greedy (do_sample=False) or samples ({', '.join(PER_CODEBOOK)}), with "
            "guidance_scale, num_return_sequences and best_of; for more, give logits_processor= or stopping_criteria= "
            "of transformers."
        )


def check_ranges(config: GenerationConfig):
    """ValueError for numbers of frames and speeches, or a guidance scale, that make no sense."""
    if config.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={config.max_new_tokens}: expected at least one frame.")
    if config.num_return_sequences < 1 or config.best_of < 1 or 1 < config.best_of < config.num_return_sequences:
        raise ValueError(
            f"num_return_sequences={config.num_return_sequences}, best_of={config.best_of}: expected 1 or more, and "
            "best_of, where it is given, at least num_return_sequences."
        )
    if not 0 <= config.guidance_scale <= 100:
        raise ValueError(f"guidance_scale={config.guidance_scale}: expected 0..100; 1 is no guidance.")


# What generate() returns, and the state in which it stopped.


@dataclass
class GenerationState:
    """Where generate() stopped; `generate(cache=)` goes on from it. A value, never changed in place.

    B rows of speech; with guidance B unconditional rows stand behind them, G·B in all.

    model: the model's state, G·B rows.
    grid (G·B, W, Q): the last delayed steps; the model has not read the newest yet.
    forced (G·B, F, Q): coming steps as far as a prompt determines them, else UNKNOWN.
    remaining (B,): steps until a row is complete: 0 when finished, -1 before its end is known.
    history (B, H, Q): steps before the grid, for repetition penalties.
    alignments, scores: (B, N) and (B, Q, V) of the steps whose frames are not complete.
    guided: whether there are unconditional rows.
    """

    model: object
    grid: torch.LongTensor
    forced: torch.LongTensor
    remaining: torch.LongTensor
    history: torch.LongTensor
    alignments: tuple[torch.FloatTensor, ...] = ()
    scores: tuple[torch.FloatTensor, ...] = ()
    guided: bool = False

    def select(self, rows: torch.LongTensor) -> "GenerationState":
        """The state of these rows (B',), each of 0..B-1 any number of times."""
        every = torch.cat((rows, rows + len(self.remaining))) if self.guided else rows
        return replace(
            self,
            model=self.model.map(lambda x: x[every]),
            grid=self.grid[every],
            forced=self.forced[every],
            remaining=self.remaining[rows],
            history=self.history[rows],
            alignments=tuple(x[rows] for x in self.alignments),
            scores=tuple(x[rows] for x in self.scores),
        )

    def __getitem__(self, row: int) -> "GenerationState":
        """The state of one row; pipelines of transformers before 5.24 index every output."""
        return self.select(torch.tensor([row]))


@dataclass
class SmallEGenerateOutput(ModelOutput):
    """Output of `generate()`.

    sequences (B, T, Q): new codes, undelayed, -1 after the end of a row.
    lengths (B,): new frames of each row.
    alignments (B, T, N): weights of the text's tokens for each new frame, with output_alignments=True.
    scores (B, T, Q, V): scores that each code was sampled from, -inf for impossible ones, with output_scores=True.
    cache: `GenerationState` to go on from.
    """

    sequences: torch.LongTensor = None
    lengths: torch.LongTensor = None
    alignments: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    cache: GenerationState | None = None

    def select(self, rows: torch.LongTensor) -> "SmallEGenerateOutput":
        """The output of these rows (B',), cut to the longest of them."""
        longest = int(self.lengths[rows].max())
        cut = {name: self[name][rows, :longest] for name in ("sequences", "alignments", "scores") if name in self}
        return SmallEGenerateOutput(lengths=self.lengths[rows], cache=self.cache.select(rows), **cut)


def best_rows(scores: torch.Tensor, candidates: int, kept: int) -> torch.LongTensor:
    """Indices of the rows to keep of each text, best first: scores (B * candidates,) -> (B * kept,)."""
    order = scores.view(-1, candidates).argsort(dim=1, descending=True, stable=True)[:, :kept]
    return (order + candidates * torch.arange(len(order), device=order.device)[:, None]).flatten()


@dataclass(frozen=True)
class Conditioning:
    """What each of B rows is conditioned on.

    input_ids, attention_mask (B, N): texts; prompts: B of undelayed codes (P, Q); initial_state (B, S) or None;
    speaker_embeddings (B, D) or None.
    """

    input_ids: torch.LongTensor
    attention_mask: torch.Tensor
    prompts: list[torch.LongTensor]
    initial_state: torch.Tensor | None = None
    speaker_embeddings: torch.Tensor | None = None

    def with_unconditional(self, config: Any) -> "Conditioning":
        """Adds B rows behind for classifier-free guidance: without texts, as training drops them, and without
        speakers, unless a prompt has the voice."""
        padding = max(0, 2 - self.input_ids.shape[1]), 0  # a dropped text is [BOS][EOS]
        ids, mask = F.pad(self.input_ids, padding, value=config.pad_token_id), F.pad(self.attention_mask, padding)
        empty, empty_mask = torch.full_like(ids, config.pad_token_id), torch.zeros_like(mask)
        empty[:, -2:], empty_mask[:, -2:] = ids.new_tensor([config.bos_token_id, config.eos_token_id]), 1
        state, speakers = self.initial_state, self.speaker_embeddings
        if speakers is not None:
            prompted = speakers.new_tensor([[len(prompt) > 0] for prompt in self.prompts])
            speakers = torch.cat((speakers, speakers * prompted))
        state = None if state is None else state.repeat(2, 1)
        return Conditioning(torch.cat((ids, empty)), torch.cat((mask, empty_mask)), self.prompts * 2, state, speakers)


class DecodingLoop:
    """Writes step after step from a `GenerationState`.

    window: delayed steps (G·B, Q), those of the state's grid and the new ones. alignments, scores: (B, N) and
    (B, Q, V) of the steps since the window's first. num_active: rows whose end is not known yet. unfinished: whether
    any row is not complete.
    """

    def __init__(
        self,
        model: "SmallEGenerationMixin",
        state: GenerationState,
        config: GenerationConfig,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        generator: torch.Generator | None,
        output_alignments: bool,
    ):
        self.steps = start_steps(model, state.model, output_alignments, unchanged=True)
        self.start, self.config, self.generator, self.output_alignments = state, config, generator, output_alignments
        self.processors, self.criteria = processors, criteria
        self.num_codebooks, self.batch = model.config.num_codebooks, len(state.remaining)
        self.settings = sampling_settings(config, self.num_codebooks)
        self.scales = (config.guidance_scale,) if state.guided else ()
        self.banned = banned_tokens(self.num_codebooks, model.config.audio_vocab_size, state.grid.device)
        self.fast = self.steps.draws and not processors and not config.output_scores
        self.fast = self.fast and all(setting.top_k_only for setting in self.settings)
        self.window, self.forced = list(state.grid.unbind(1)), state.forced
        self.alignments, self.scores = list(state.alignments), list(state.scores)
        self._set_remaining(state.remaining)

    @property
    def num_frames(self) -> int:
        """New frames that are complete."""
        return len(self.window) - self.num_codebooks

    def step(self):
        """Writes one step."""
        logits, alignment = self.steps(self.window[-1][:, None], self.mask)
        tokens = self._next_tokens(logits).repeat(1 + len(self.scales), 1)
        if self.forced.shape[1]:
            tokens = torch.where(self.forced[:, 0] == UNKNOWN, tokens, self.forced[:, 0])
            self.forced = self.forced[:, 1:]
        self.window.append(tokens)
        if self.output_alignments:
            self.alignments.append(alignment[: self.batch, -1])
        self._update_remaining(tokens[: self.batch, 0])

    def _next_tokens(self, logits: torch.Tensor) -> torch.LongTensor:
        """Tokens (B, Q) of logits (G·B, 1, Q, V)."""
        banned = self.banned[len(self.window) - 1 < self.config.min_new_tokens]
        if self.fast and self.num_active == self.batch:
            return self.steps.draw(self.scales, banned, self.settings, self.generator)
        logits = self._process(guide(logits[:, -1].float(), self.scales)).masked_fill(banned, -torch.inf)
        if self.num_active < self.batch:
            logits = force_tails(logits, self.remaining)
        tokens, scores = draw(logits, self.settings, self.generator)
        if self.config.output_scores:
            self.scores.append(torch.stack(scores, 1))
        return tokens

    def _process(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, Q, V) after the repetition penalties, and the caller's processors on the first codebook."""
        if any(setting.repetition_penalty != 1 for setting in self.settings):
            steps = [*self.start.history.unbind(1), *(step[: self.batch] for step in self.window)]
            recent = torch.stack(steps[-REPETITION_WINDOW:], 1)
            penalties = [setting.repetition_penalty for setting in self.settings]
            columns = [penalise_repetition(logits[:, q], recent[..., q], p) for q, p in enumerate(penalties)]
            logits = torch.stack(columns, 1)
        if self.processors:
            first = self.processors(self._first_codebook(), logits[:, 0])
            logits = torch.cat((first[:, None], logits[:, 1:]), 1)
        return logits

    def _first_codebook(self) -> torch.LongTensor:
        """New tokens (B, T) of the first codebook, as transformers' processors and criteria see them."""
        new = [step[: self.batch, 0] for step in self.window[1:]]
        return torch.stack(new, 1) if new else self.window[0].new_zeros(self.batch, 0)

    def _update_remaining(self, first: torch.LongTensor):
        """Counts down the rows that have ended, by the newest tokens (B,) of the first codebook or a criterion."""
        remaining = self.remaining
        if self.num_active < self.batch or AUDIO_EOS in first.tolist():
            ends = (remaining < 0) & (first == AUDIO_EOS)
            remaining = torch.where(remaining > 0, remaining - 1, remaining)
            remaining = torch.where(ends, self.num_codebooks - 1, remaining)
        if self.criteria:
            stopped = self.criteria(self._first_codebook(), tuple(x[:, 0] for x in self.scores) or None)
            remaining = torch.where((remaining < 0) & stopped, self.num_codebooks, remaining)  # AUDIO_EOS comes next
        if remaining is not self.remaining:
            self._set_remaining(remaining)

    def _set_remaining(self, remaining: torch.LongTensor):
        unfinished = remaining != 0
        self.remaining, self.unfinished = remaining, bool(unfinished.any())
        self.num_active = int((remaining < 0).sum())
        self.mask = unfinished.repeat(1 + len(self.scales))[:, None]

    def state(self) -> GenerationState:
        """Where the loop stands."""
        pending = max(0, self.num_frames)
        done = [step[: self.batch] for step in self.window[:pending]]
        history = torch.cat((self.start.history, *(step[:, None] for step in done)), 1)[:, -REPETITION_WINDOW:]
        return replace(
            self.start,
            model=self.steps.state,
            grid=torch.stack(self.window[-self.num_codebooks :], 1),
            forced=self.forced,
            remaining=self.remaining,
            history=history,
            alignments=tuple(self.alignments[pending:]),
            scores=tuple(self.scores[pending:]),
        )

    def output(self) -> SmallEGenerateOutput:
        """The complete frames, undelayed, each row up to its end."""
        grid = torch.stack([step[: self.batch] for step in self.window], 1)
        codes, ended = undelay(grid), grid[:, 1:, 0] == AUDIO_EOS
        lengths = torch.where(ended.any(1), ended.int().argmax(1), ended.shape[1]).clamp(max=codes.shape[1])
        longest = int(lengths.max())
        inside = torch.arange(longest, device=grid.device) < lengths[:, None]
        codes = codes[:, :longest].masked_fill(~inside[..., None], NO_CODE)
        output = SmallEGenerateOutput(sequences=codes, lengths=lengths, cache=self.state())
        if self.output_alignments:
            empty = torch.zeros(len(grid), 0, output.cache.model.text_mask.shape[1], device=grid.device)
            output.alignments = torch.stack(self.alignments, 1)[:, :longest] if self.alignments else empty
        if self.config.output_scores and self.scores:
            output.scores = undelay_steps(torch.stack(self.scores, 1))[:, :longest]
        return output


INPUTS = (  # of generate(), where the others are settings
    *("input_ids", "attention_mask", "audio_codes", "audio_attention_mask", "cache", "initial_state"),
    *("speaker_codes", "speaker_attention_mask", "speaker_embeddings"),
)


class SmallEGenerationMixin(GenerationMixin):
    """`generate()` and `stream()` of a model that reads a text once and writes delayed codebooks.

    Overrides the hooks of `transformers.GenerationMixin` that fit; what differs is marked "Small-E specific".

    step_runtime: "auto" runs the native runtime (C, 8 bits) on a CPU where it can, "torch" PyTorch, "native" the native
    runtime or raises. native_weights: what the native runtime packed of the model's weights, see `runtime_smalle`.
    """

    step_runtime = "auto"
    native_weights = None

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_codes: torch.LongTensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        cache: GenerationState | None = None,
        generation_config: GenerationConfig | None = None,
        seed: int | torch.Generator | None = None,
        output_alignments: bool = False,
        progress: Callable[[int], Any] | None = None,
        logits_processor: LogitsProcessorList | list | None = None,
        stopping_criteria: StoppingCriteriaList | list | None = None,
        initial_state: torch.Tensor | None = None,
        speaker_codes: torch.LongTensor | None = None,
        speaker_attention_mask: torch.Tensor | None = None,
        speaker_embeddings: torch.Tensor | None = None,
        **kwargs,
    ) -> SmallEGenerateOutput | torch.LongTensor:
        """Generates codes of speech: samples, or is greedy with do_sample=False.

        Args:
            input_ids (B, N), attention_mask (B, N): texts; with a prompt, its transcript followed by the text.
            audio_codes (B, P, Q): undelayed codes of a prompt to continue; audio_attention_mask (B, P): 1 on its
                frames, 0 on padding, on either side.
            cache: that of an earlier output, in place of all inputs above: continues where that stopped.
            generation_config, **kwargs: settings. do_sample; temperature, top_k, top_p, min_p and repetition_penalty
                (over the last 50 frames, those of the prompt included): a number is for the first codebook and leaves
                the others greedy, a list has one for each codebook and samples all of them; max_new_tokens and
                min_new_tokens (frames), max_time (seconds); num_return_sequences: speeches of each text, next to each
                other; best_of: speeches that are generated of each text, of which the most monotonic ones
                (`alignment_smalle.monotonicity`) are returned; guidance_scale: above 1, moves away from speech without
                the text, and without the speaker unless a prompt has that voice; return_dict_in_generate;
                output_scores.
            seed: integer or torch.Generator for reproducible speech; None: the global random state.
            output_alignments: also return where in the text each frame was read.
            progress: called after each step with the number of rows whose end is not known yet.
            logits_processor, stopping_criteria: of transformers. They get the new tokens of the first codebook (B, T),
                codes + 3 and AUDIO_EOS from the end of a row on; and its scores (B, V) before sampling, or the scores
                so far. A row that a criterion stops has as many frames as the criterion saw tokens.
            initial_state (B, S): a tuned voice, the recurrent state in which speech begins (`cache_smalle`).
            speaker_codes (B, P, Q), speaker_attention_mask (B, P): undelayed codes of reference recordings of the
                speakers, for models with a speaker encoder. A row without one has the speaker of its prompt.
            speaker_embeddings (B, D): what `encode_speaker` gives, in place of speaker_codes.

        Returns:
            codes (B, T, Q), undelayed, or `SmallEGenerateOutput` with return_dict_in_generate=True.

        Raises:
            ValueError: inputs or settings are wrong or unknown, or ask for beam search and the like.
        """
        config, _ = self._prepare_generation_config(generation_config, **kwargs)
        generator = seeded(seed, self.device)
        criteria = self._get_stopping_criteria(config, stopping_criteria)
        state = cache
        if state is None:
            recordings = (audio_codes, audio_attention_mask), (speaker_codes, speaker_attention_mask)
            rows = self._conditioning(input_ids, attention_mask, *recordings, speaker_embeddings, initial_state)
            state = self._prefill(rows, guided=config.guidance_scale != 1)
        elif any(x is not None for x in (input_ids, audio_codes, initial_state, speaker_codes, speaker_embeddings)):
            raise ValueError("cache= goes on with an earlier text: give that, or input_ids and a voice.")
        elif not isinstance(state, GenerationState):
            raise ValueError(f"cache is {type(state).__name__}: expected that of an output of generate().")
        candidates = max(config.best_of, config.num_return_sequences)
        if candidates > 1:
            state = state.select(torch.arange(len(state.remaining), device=self.device).repeat_interleave(candidates))
        output_alignments = output_alignments or config.best_of > 1
        self._check_state(state, config, output_alignments)
        processors = LogitsProcessorList(logits_processor or [])
        output = self._sample(state, processors, criteria, config, generator, output_alignments, progress)
        if config.best_of > 1:
            scores = monotonicity(output.alignments, output.lengths, state.model.text_mask[: len(output.lengths)])
            output = output.select(best_rows(scores, candidates, config.num_return_sequences))
        return output if config.return_dict_in_generate else output.sequences

    def stream(
        self,
        chunk_frames: int | Iterator[int] = 16,
        seed: int | torch.Generator | None = None,
        generation_config: GenerationConfig | None = None,
        output_alignments: bool = False,
        progress: Callable[[int], Any] | None = None,
        **kwargs,
    ) -> Iterator[SmallEGenerateOutput]:
        """`generate()` in chunks: yields a `SmallEGenerateOutput` with the next `chunk_frames` frames at a time.

        Joined, the chunks equal what generate() returns for the same seed, whatever their sizes; memory does not grow.
        Nothing is generated before the next chunk is asked for. Closing the generator cancels generation.

        Args:
            chunk_frames: frames of a chunk, or an endless iterator of the sizes of one chunk after the other.
            **kwargs: inputs and settings of `generate()`, except num_return_sequences, best_of and max_time, which
                need the whole speech; a best_of of the checkpoint's generation configuration is ignored.
        """
        inputs = {name: kwargs.pop(name) for name in INPUTS if name in kwargs}
        if getattr(generation_config, "best_of", None) is None:
            kwargs.setdefault("best_of", 1)
        config, _ = self._prepare_generation_config(generation_config, **kwargs)
        if isinstance(chunk_frames, int) and chunk_frames < 1:
            raise ValueError(f"chunk_frames={chunk_frames}: expected at least one frame.")
        if config.num_return_sequences > 1 or config.best_of > 1 or config.max_time is not None:
            raise ValueError(
                "A stream has one speech of each text and no max_time: use generate(), or close the stream in time."
            )
        sizes = itertools.repeat(chunk_frames) if isinstance(chunk_frames, int) else chunk_frames
        generator, left = seeded(seed, self.device), config.max_new_tokens
        config.return_dict_in_generate = True
        while left > 0:
            config.max_new_tokens = min(next(sizes), left)
            options = {"output_alignments": output_alignments, "progress": progress}
            output = self.generate(**inputs, generation_config=config, seed=generator, **options)
            left -= config.max_new_tokens
            config.min_new_tokens = max(0, config.min_new_tokens - config.max_new_tokens)
            inputs = {"cache": output.cache}
            yield output
            if not inputs["cache"].remaining.any():
                return

    @torch.no_grad()
    def encode_speaker(
        self, speaker_codes: torch.LongTensor, speaker_attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Speaker embeddings of reference recordings, for `generate(speaker_embeddings=)`.

        Args:
            speaker_codes (B, P, Q): undelayed codes; speaker_attention_mask (B, P): 1 on frames, 0 on padding.

        Returns:
            (B, D); zeros for a recording without a frame.

        Raises:
            ValueError: these are no recordings, or the model has no speaker encoder.
        """
        recordings = self._recordings(len(speaker_codes), speaker_codes, speaker_attention_mask, "speaker")
        return self._encode_speakers(recordings)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """The configuration of one call.

        Small-E specific: unknown, unsupported and wrong settings raise ValueError, so nothing is left for the model;
        sampling settings may be lists; best_of; lengths count frames.
        """
        for name, instead in REPLACED.items():
            if kwargs.get(name) not in (None, False):
                raise ValueError(f"{name}={kwargs[name]!r}: generate() does not take that here; use {instead}.")
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        for name, value in kwargs.items():
            check_setting(name, value)
        own = {name: kwargs.pop(name) for name in ("num_return_sequences", "best_of") if name in kwargs}
        config, _ = super()._prepare_generation_config(generation_config)
        unknown = sorted(name for name, value in config.update(**kwargs).items() if value is not False)
        if unknown:
            raise ValueError(f"generate() does not know {unknown}: expected what its documentation names.")
        defaults = {"max_new_tokens": int(60 * self.config.frame_rate), "min_new_tokens": 1, "min_p": 0.0}
        defaults |= {"guidance_scale": 1.0, "num_return_sequences": 1, "best_of": 1}
        for name, default in defaults.items():  # not by update(), which would refuse several greedy speeches
            setattr(
                config, name, own.get(name, default if getattr(config, name, None) is None else getattr(config, name))
            )
        check_mode(config)
        check_ranges(config)
        return config, {}

    def _get_stopping_criteria(
        self, generation_config: GenerationConfig, stopping_criteria: StoppingCriteriaList | list | None, **kwargs: Any
    ) -> StoppingCriteriaList:
        """Small-E specific: max_time and the caller's criteria alone; `_sample` itself ends rows and counts frames."""
        criteria = StoppingCriteriaList(stopping_criteria or [])
        if generation_config.max_time is not None:
            criteria.append(MaxTimeCriteria(generation_config.max_time))
        return criteria

    def _sample(
        self,
        state: GenerationState,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        generator: torch.Generator | None = None,
        output_alignments: bool = False,
        progress: Callable[[int], Any] | None = None,
    ) -> SmallEGenerateOutput:
        """Small-E specific: goes on from a state, writes delayed codebooks, and ends each row by itself."""
        inputs = logits_processor, stopping_criteria, generator, output_alignments
        loop = DecodingLoop(self, state, generation_config, *inputs)
        while loop.unfinished and loop.num_frames < generation_config.max_new_tokens:
            loop.step()
            if progress is not None:
                progress(loop.num_active)
        return loop.output()

    def _check_state(self, state: GenerationState, config: GenerationConfig, output_alignments: bool):
        """ValueError where a call goes on with what the earlier one did not begin."""
        steps = state.grid.shape[1] - 1
        begun = {
            "guidance_scale": config.guidance_scale == 1 or state.guided,
            "output_alignments (and best_of)": not output_alignments or len(state.alignments) == steps,
            "output_scores": not config.output_scores or len(state.scores) == steps,
        }
        for name, right in begun.items():
            if not right:
                raise ValueError(f"{name}: the call that cache comes from did not ask for it; ask there too.")

    def _conditioning(
        self, input_ids, attention_mask, prompts, references, speaker_embeddings, initial_state
    ) -> Conditioning:
        """Checks the inputs of new texts. prompts, references: codes (B, P, Q) and mask (B, P)."""
        if input_ids is None:
            raise ValueError("generate() needs input_ids (a text) or cache (of an earlier output).")
        check_text(input_ids, attention_mask, self.config)
        batch = len(input_ids)
        recordings = self._recordings(batch, *prompts)
        if speaker_embeddings is None:
            speaker_embeddings = self._speakers_of(recordings, *references)
        elif not self.config.speaker_layers or references[0] is not None:
            raise ValueError(
                "speaker_embeddings: expected a model with a speaker encoder, and no speaker_codes beside them; leave "
                "one of the two out."
            )
        else:
            shape, meaning = (batch, self.config.hidden_size), "what encode_speaker() gives"
            check_tensor("speaker_embeddings", speaker_embeddings, shape, FLOATS, meaning, "")
        check_initial_state(initial_state, batch)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return Conditioning(input_ids, attention_mask, recordings, initial_state, speaker_embeddings)

    def _prefill(self, rows: Conditioning, guided: bool) -> GenerationState:
        """Reads texts and all but the last step of prompts. guided: adds unconditional rows."""
        rows = rows.with_unconditional(self.config) if guided else rows
        grids = [delay(prompt, UNKNOWN) for prompt in rows.prompts]
        longest = max(len(grid) for grid in grids)
        padding = [(0, 0, longest - len(grid), 0) for grid in grids]
        grid = torch.stack([F.pad(x, pad, value=AUDIO_PAD) for x, pad in zip(grids, padding)])
        newest = longest - self.config.num_codebooks  # the same for every row, as padding is on the left
        start = torch.tensor([longest - len(x) for x in grids], device=grid.device)
        mask = torch.arange(newest, device=grid.device) >= start[:, None]
        state = encode_text(self, rows.input_ids, rows.attention_mask, rows.initial_state)
        state = self.model.add_speaker(state, rows.speaker_embeddings)
        if newest:
            steps = start_steps(self, state, False, unchanged=True)
            steps.read(grid[:, :newest], mask)
            state = steps.state
        batch = len(grid) // (1 + guided)
        remaining, history = start.new_full((batch,), -1), grid[:batch, :newest][:, -REPETITION_WINDOW:]
        unread, forced = grid[:, newest : newest + 1], grid[:, newest + 1 :]
        return GenerationState(state, unread, forced, remaining, history, guided=guided)

    def _speakers_of(self, prompts, codes, mask) -> torch.Tensor | None:
        """Speaker embeddings (B, D) of the reference of each row, else of its prompt; None without speaker encoder."""
        if not self.config.speaker_layers and codes is None:
            return None
        references = self._recordings(len(prompts), codes, mask, "speaker")
        return self._encode_speakers([x if len(x) else prompt for x, prompt in zip(references, prompts)])

    def _encode_speakers(self, recordings: list[torch.LongTensor]) -> torch.Tensor:
        """Speaker embeddings (B, D) of recordings (P, Q)."""
        padded = torch.nn.utils.rnn.pad_sequence(recordings, batch_first=True, padding_value=UNKNOWN)
        return self.model.encode_speaker(padded.clamp(min=0), padded[..., 0] != UNKNOWN)

    def _recordings(self, batch: int, codes, mask, prefix: str = "audio") -> list[torch.LongTensor]:
        """Codes (B, P, Q) without their padding: a recording (P, Q) for each row, of no frames without codes."""
        if codes is None:
            codes = torch.zeros(batch, 0, self.config.num_codebooks, dtype=torch.long, device=self.device)
        check_recording(codes, mask, batch, self.config, prefix)
        mask = torch.ones_like(codes[..., 0]) if mask is None else mask
        return [row[keep.bool()].long() for row, keep in zip(codes, mask)]
