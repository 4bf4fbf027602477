"""Speech from a text: the delay pattern, sampling, and `generate()`, which writes delayed codebooks step by step."""

import copy
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList, logits_process
from transformers.utils import ModelOutput, logging

from .alignment_smalle import MAX_UNREAD, SHARP, STOPPED, Reading, monotonicity, token_positions
from .cache_smalle import GenerationState
from .configuration_smalle import AUDIO_BOS, AUDIO_EOS, AUDIO_PAD, NUM_AUDIO_SPECIALS, SmallEConfig
from .native_smalle import Sampler
from .runtime_smalle import NativeSteps, encode_speakers, encode_text, start_steps
from .saving_smalle import PER_CODEBOOK, REPLACED, check_settings
from .validation_smalle import (
    FLOATS,
    SamplingSettings,
    check_callables,
    check_initial_state,
    check_pieces,
    check_recording,
    check_seed,
    check_tensor,
    check_text,
    sampling_settings,
)

logger = logging.get_logger(__name__)

REPETITION_WINDOW = 50  # frames that a repetition penalty looks back
UNKNOWN = -1  # entry of a delayed grid that the model has to fill in
NO_CODE = -1  # fills `sequences` after the end of a row


# Delay pattern (MusicGen, Copet et al. 2023): codebook q is written q + 1 steps late.


def delay(codes: Tensor, end: int = AUDIO_EOS) -> Tensor:
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


def undelay(grid: Tensor) -> Tensor:
    """Inverse of `delay`: grid (B, T + Q, Q) -> codes (B, T, Q). Special tokens come out negative."""
    return undelay_steps(grid[:, 1:]) - NUM_AUDIO_SPECIALS


def undelay_steps(steps: Tensor) -> Tensor:
    """Groups what each step predicted by frame: (B, S, Q, ...) -> (B, S - Q + 1, Q, ...).

    steps[:, s, q] belongs to codebook q of frame s - q.
    """
    num_codebooks = steps.shape[2]
    length = max(0, steps.shape[1] - num_codebooks + 1)
    return torch.stack([steps[:, q : q + length, q] for q in range(num_codebooks)], 2)


# Sampling: each codebook has its own settings.


def seeded(seed: int | torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """A new generator for an integer seed. A generator, or None for the global one, is returned as it is."""
    check_seed(seed)
    return seed if seed is None or isinstance(seed, torch.Generator) else torch.Generator(device).manual_seed(seed)


def penalise_repetition(logits: Tensor, recent: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) after a penalty on recent tokens (B, W), special ones excepted (Keskar et al. 2019)."""
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, recent.clamp(min=0), True)
    seen[:, :NUM_AUDIO_SPECIALS] = False
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def warp(logits: Tensor, settings: SamplingSettings, ids: Any = None) -> Tensor:
    """Logits (B, V) of one codebook after temperature, top_k, top_p and min_p: -inf for tokens that are cut off."""
    logits = logits / settings.temperature
    if settings.top_k > 0:
        logits = logits_process.TopKLogitsWarper(int(settings.top_k))(ids, logits)
    if settings.top_p < 1:
        logits = logits_process.TopPLogitsWarper(settings.top_p)(ids, logits)
    if settings.min_p > 0:
        logits = logits_process.MinPLogitsWarper(settings.min_p)(ids, logits)
    return logits


def draw(
    logits: Tensor, settings: list[SamplingSettings], generator: torch.Generator | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Samples logits (B, Q, V): a token of each codebook (B, Q), and the warped scores, Q times (B, V)."""
    tokens, scores = logits.argmax(-1), list(logits.unbind(1))
    for q, setting in enumerate(settings):
        if setting.top_k != 1:
            scores[q] = warp(scores[q], setting)
            probs = scores[q].softmax(-1)  # below, the draw of torch.multinomial without its checks, which cost more
            tokens[:, q] = (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)
    return tokens, scores


def guide(logits: Tensor, scale: float | None) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): logits (2·B, Q, V), the conditional rows first -> (B, Q, V).

    None: no guidance, the logits as they are.
    """
    if scale is None:
        return logits
    conditional, unconditional = logits.chunk(2)
    return conditional + (scale - 1) * (conditional - unconditional)


def force_tails(logits: Tensor, remaining: Tensor) -> Tensor:
    """Leaves AUDIO_EOS alone in the codebooks that have ended: logits (B, Q, V), remaining (B,) steps of each row."""
    num_codebooks = logits.shape[1]
    since_end = torch.where(remaining < 0, -1, num_codebooks - remaining)
    ended = torch.arange(num_codebooks, device=logits.device) <= since_end[:, None]
    logits[..., AUDIO_EOS] = logits[..., AUDIO_EOS].masked_fill((remaining >= 0)[:, None], -torch.inf)
    only_eos = torch.full_like(logits, -torch.inf)
    only_eos[..., AUDIO_EOS] = 0
    return torch.where(ended[..., None], only_eos, logits)


def check_state(state: GenerationState, config: Any, output_alignments: bool):
    """ValueError where a call goes on with what the earlier one did not begin."""
    steps = state.grid.shape[1] - 1
    begun = {
        "guidance_scale": config.guidance_scale == 1 or state.guided,
        "output_alignments (and best_of)": not output_alignments or len(state.alignments) == steps,
        "output_scores": not config.output_scores or len(state.scores) == steps,
    }
    missing = [name for name, right in begun.items() if not right]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not set in the call that returned `cache`; set it there as well.")


# What generate() returns.


@dataclass
class SmallEGenerateOutput(ModelOutput):
    """Output of `generate()`.

    sequences (B, T, Q): new codes, undelayed, -1 after the end of a row.
    lengths (B,): new frames of each row.
    finish_reason: of each row, why it ended: "stop", the model ended it; "length", max_new_tokens; "criteria", a
        stopping criterion or max_time; "text_end", it was stopped after its last word; "looped", "stalled", "too_long",
        "skipped", "incomplete", the reading failed (`alignment_smalle.FAILURES`). None: a stream goes on.
    alignments (B, T, N): weights of the text's tokens for each new frame, with output_alignments=True.
    scores (B, T, Q, V): scores that each code was sampled from, -inf for impossible ones, with output_scores=True.
    cache: `GenerationState` to go on from.
    """

    sequences: Tensor = None  # type: ignore[assignment]
    lengths: Tensor = None  # type: ignore[assignment]
    alignments: Tensor | None = None
    scores: Tensor | None = None
    cache: GenerationState | None = None
    finish_reason: list[str | None] = None  # type: ignore[assignment]

    def select(self, rows: Tensor) -> "SmallEGenerateOutput":
        """The output of these rows (B',), cut to the longest of them."""
        longest = int(self.lengths[rows].max())
        cut = {name: self[name][rows, :longest] for name in ("sequences", "alignments", "scores") if name in self}
        reasons = [self.finish_reason[row] for row in rows.tolist()]
        cache = None if self.cache is None else self.cache.select(rows)
        return SmallEGenerateOutput(lengths=self.lengths[rows], cache=cache, finish_reason=reasons, **cut)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """How each row read its text; nothing is known where there is no state."""
        return () if self.cache is None else self.cache.readings

    def replace_rows(self, rows: list[int], other: "SmallEGenerateOutput") -> "SmallEGenerateOutput":
        """The output with these rows, which have ended, in the place of them the rows of another, which have, too."""
        assert self.cache is not None
        longest = max(self.sequences.shape[1], other.sequences.shape[1])
        index, whole = torch.tensor(rows, device=self.lengths.device), {}
        for name, padding in PADDING.items():
            if name in self:
                mine, others = (pad_frames(x[name], longest, padding) for x in (self, other))
                whole[name] = mine.index_copy(0, index, others)
        readings, reasons = list(self.readings), list(self.finish_reason)
        for row, reading in zip(rows, other.readings):
            readings[row], reasons[row] = reading, reading.finish
        lengths = self.lengths.index_copy(0, index, other.lengths)
        cache = replace(self.cache, readings=tuple(readings))
        output = SmallEGenerateOutput(lengths=lengths, cache=cache, finish_reason=reasons, **whole)
        return output.select(torch.arange(len(lengths)))


PADDING = {"sequences": NO_CODE, "alignments": 0, "scores": -torch.inf}  # after the end of a row


def pad_frames(x: Tensor, frames: int, value: float) -> Tensor:
    """(B, T, ...) -> (B, frames, ...)."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, frames - x.shape[1]), value=value)


def best_rows(scores: Tensor, candidates: int, kept: int) -> Tensor:
    """Indices of the rows to keep of each text, best first: scores (B * candidates,) -> (B * kept,)."""
    order = scores.view(-1, candidates).argsort(dim=1, descending=True, stable=True)[:, :kept]
    return (order + candidates * torch.arange(len(order), device=order.device)[:, None]).flatten()


class DecodingLoop:
    """Writes step after step from a `GenerationState`. Arguments: see `SmallEGenerationMixin._call`.

    window: delayed steps (G·B, Q), those of the state's grid and the new ones. alignments, scores: (B, N) and
    (B, Q, V) of the steps since the window's first. num_active: rows whose end is not known yet. unfinished: whether
    any row is not complete.
    """

    def __init__(
        self,
        model: "SmallEGenerationMixin",
        state: GenerationState,
        logits_processor: Any,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        progress: Callable[[int], Any] | None,
        generator: torch.Generator | None,
        output_alignments: bool,
    ):
        config = generation_config
        self.watches = model.config.architecture == "small-e" and model.config.cross_attention == "paca"
        self.steps = start_steps(model, state.model, output_alignments or self.watches, unchanged=True)
        self.config, self.generator, self.output_alignments = config, generator, output_alignments
        self.processors, self.criteria, self.progress = logits_processor, stopping_criteria, progress
        self.num_codebooks, self.batch = model.config.num_codebooks, len(state.remaining)
        self.settings = sampling_settings(config, self.num_codebooks)
        self.scale = config.guidance_scale if state.guided else None
        shape = 2, self.num_codebooks, model.config.audio_vocab_size
        self.banned = torch.zeros(shape, dtype=torch.bool, device=state.grid.device)  # while a row may not end, may
        self.banned[..., [AUDIO_PAD, AUDIO_BOS, AUDIO_EOS]] = True
        self.banned[1, 0, AUDIO_EOS] = False  # ends the row; codebook q follows q steps later, see `force_tails`
        self.sample = self._sampling(model.config, state.model.text_mask[: self.batch])
        self.token_positions = token_positions(state.model.text_mask[: self.batch])
        self.readings, self.frame_rate = list(state.readings), model.config.frame_rate
        self.steps_before = 0  # the window
        self._set_window(state)
        self._set_remaining(state.remaining.tolist())

    def _set_window(self, state: GenerationState):
        self.start, self.window, self.forced = state, list(state.grid.unbind(1)), state.forced
        self.alignments, self.scores = list(state.alignments), list(state.scores)

    @torch.no_grad()
    def run(self, frames: int) -> "SmallEGenerateOutput":
        """Writes the next frames, at most so many."""
        while self.unfinished and len(self.window) < frames + self.num_codebooks:
            self._step()
            if self.progress is not None:
                self.progress(self.num_active)
        return self._output()

    def go_on(self, output: "SmallEGenerateOutput"):
        """Begins a new window behind an output, whose state further steps leave alone."""
        assert output.cache is not None
        self.steps.keep()
        self.steps_before += max(0, len(self.window) - self.num_codebooks)
        self._set_window(output.cache)

    @property
    def may_end(self) -> bool:
        """Whether there are `min_new_tokens` frames."""
        return self.steps_before + len(self.window) > self.config.min_new_tokens

    def _sampling(self, config: SmallEConfig, mask: Tensor) -> Callable | None:
        """A step by the library, which draws the tokens, too; None where PyTorch has to draw them."""
        simple = all((x.top_p, x.min_p, x.repetition_penalty) == (1, 0, 1) for x in self.settings)
        if not simple or self.processors or self.config.output_scores or not isinstance(self.steps, NativeSteps):
            return None
        top_k, temperature = [int(x.top_k) for x in self.settings], [x.temperature for x in self.settings]
        sampler = Sampler(self.steps.library, config, mask.numpy(), top_k, temperature, self.scale)
        return functools.partial(self.steps.sample, sampler, self.generator)

    def _step(self):
        """Writes one step."""
        codes, may_end = self.window[-1], self.may_end
        positions: list = [None] * self.batch
        if self.sample is not None:
            tokens, alignment, positions = self.sample(codes, may_end, self.remaining)
        else:
            logits, alignment = self.steps(codes[:, None], self.mask)
            tokens = self._next_tokens(logits, may_end).repeat(1 + self.start.guided, 1)
            if self.watches:
                positions = (alignment[: self.batch, -1].float() * self.token_positions).sum(1).tolist()
        if self.forced.shape[1]:
            tokens = torch.where(self.forced[:, 0] == UNKNOWN, tokens, self.forced[:, 0])
            self.forced = self.forced[:, 1:]
        self.window.append(tokens)
        if self.output_alignments:
            self.alignments.append(alignment[: self.batch, -1].clone())
        if self.watches and len(self.window) == 2:
            self._check_prompts(alignment[:, -1], positions)
        self._update_remaining(tokens[: self.batch, 0].tolist(), positions)

    def _next_tokens(self, logits: Tensor, may_end: bool) -> Tensor:
        """Tokens (B, Q) of logits (G·B, 1, Q, V)."""
        logits = self._process(guide(logits[:, -1].float(), self.scale))
        logits = logits.masked_fill(self.banned[int(may_end)], -torch.inf)
        if self.num_active < self.batch:
            logits = force_tails(logits, torch.tensor(self.remaining, device=logits.device))
        tokens, scores = draw(logits, self.settings, self.generator)
        if self.config.output_scores:
            self.scores.append(torch.stack(scores, 1))
        return tokens

    def _process(self, logits: Tensor) -> Tensor:
        """Logits (B, Q, V) after the repetition penalties, and the caller's processors on the first codebook."""
        if any(setting.repetition_penalty != 1 for setting in self.settings):
            steps = [*self.start.history.unbind(1), *(step[: self.batch] for step in self.window)]
            recent = torch.stack(steps[-REPETITION_WINDOW:], 1)
            columns = zip(logits.unbind(1), recent.unbind(2), self.settings)
            logits = torch.stack([penalise_repetition(x, seen, s.repetition_penalty) for x, seen, s in columns], 1)
        if self.processors:
            first = self.processors(self._first_codebook(), logits[:, 0])
            logits = torch.cat((first[:, None], logits[:, 1:]), 1)
        return logits

    def _first_codebook(self) -> Tensor:
        """New tokens (B, T) of the first codebook, as transformers' processors and criteria see them."""
        new = [step[: self.batch, 0] for step in self.window[1:]]
        return torch.stack(new, 1) if new else self.window[0].new_zeros(self.batch, 0)

    def _update_remaining(self, first: list[int], positions: list[float | None]):
        """Counts down the rows that have ended: by the newest tokens (B,) of the first codebook, a criterion, or where
        they read (B,)."""
        stopped = [False] * self.batch
        if self.criteria:
            stopped = self.criteria(self._first_codebook(), tuple(x[:, 0] for x in self.scores) or None).tolist()
        self._follow(first, stopped, positions)
        remaining = [max(0, steps - 1) if steps >= 0 else steps for steps in self.remaining]
        for row, (steps, reading) in enumerate(zip(self.remaining, self.readings)):
            if steps < 0 and reading.finish:  # AUDIO_EOS came, or comes next
                remaining[row] = self.num_codebooks - (first[row] == AUDIO_EOS)
        if remaining != self.remaining:
            self._set_remaining(remaining)

    def _check_prompts(self, alignment: Tensor, positions: list[float]):
        """ValueError where a prompt's recording ends before its transcript, which would be spoken."""
        for row, (reading, position) in enumerate(zip(self.readings, positions)):
            unread = 0 if reading.first is None else reading.first - position
            if not reading.frames and unread > MAX_UNREAD and alignment[row].max() > SHARP:
                raise ValueError(
                    f"Text {row}: the transcript of its prompt (audio_text) goes on after the recording, by about "
                    f"{unread:.0f} tokens of {reading.first}: give what is said in the recording, no more."
                )

    def _follow(self, tokens: list[int], stopped: list[bool], positions: list[float | None]):
        """Follows the readings of the rows whose end is not known yet by one frame."""
        may_stop = self.may_end
        for row, reading in enumerate(self.readings):
            if reading.finish:
                continue
            if tokens[row] == AUDIO_EOS:
                reading = reading.end()
            else:
                reading = reading.follow(positions[row], self.frame_rate, may_stop)
                reading = reading._replace(finish="criteria") if stopped[row] else reading
            self.readings[row] = reading

    def _set_remaining(self, remaining: list[int]):
        self.remaining, self.unfinished, self.num_active = remaining, any(remaining), sum(x < 0 for x in remaining)
        unfinished = [x != 0 for x in remaining] * (1 + self.start.guided)
        self.mask = torch.tensor(unfinished, device=self.banned.device)[:, None]

    def _state(self) -> GenerationState:
        """Where the loop stands."""
        pending = max(0, len(self.window) - self.num_codebooks)  # the first step whose frame is not complete
        done = [step[: self.batch] for step in self.window[:pending]]
        history = torch.cat((self.start.history, *(step[:, None] for step in done)), 1)[:, -REPETITION_WINDOW:]
        grid = torch.stack(self.window[-self.num_codebooks :], 1)
        unfinished = tuple(self.alignments[pending:]), tuple(self.scores[pending:])
        readings, remaining = tuple(self.readings), torch.tensor(self.remaining, device=grid.device)
        return GenerationState(self.steps.state, grid, self.forced, remaining, history, readings, *unfinished)

    def _output(self) -> SmallEGenerateOutput:
        """The complete frames, undelayed, each row up to its end."""
        grid = torch.stack([step[: self.batch] for step in self.window], 1)
        codes, ended = undelay(grid), grid[:, 1:, 0] == AUDIO_EOS
        lengths = torch.where(ended.any(1), ended.int().argmax(1), ended.shape[1]).clamp(max=codes.shape[1])
        longest = int(lengths.max())
        inside = torch.arange(longest, device=grid.device) < lengths[:, None]
        codes = codes[:, :longest].masked_fill(~inside[..., None], NO_CODE)
        reasons, state = [reading.finish or None for reading in self.readings], self._state()
        output = SmallEGenerateOutput(sequences=codes, lengths=lengths, cache=state, finish_reason=reasons)
        if self.output_alignments:
            empty = torch.zeros(len(grid), 0, state.model.text_mask.shape[1], device=grid.device)
            output.alignments = torch.stack(self.alignments, 1)[:, :longest] if self.alignments else empty
        if self.config.output_scores and self.scores:
            output.scores = undelay_steps(torch.stack(self.scores, 1))[:, :longest]
        return output


def add_empty_texts(ids: Tensor, mask: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Texts (B, N) and their mask -> (2·B, N): the texts, followed by empty ones, as training drops texts."""
    padding = max(0, 2 - ids.shape[1]), 0  # an empty text is [BOS][EOS]
    ids, mask = F.pad(ids, padding, value=config.pad_token_id), F.pad(mask, padding)
    empty, empty_mask = torch.full_like(ids, config.pad_token_id), torch.zeros_like(mask)
    empty[:, -2:], empty_mask[:, -2:] = ids.new_tensor([config.bos_token_id, config.eos_token_id]), 1
    return torch.cat((ids, empty)), torch.cat((mask, empty_mask))


# Long texts: models are trained on utterances, so a text is read piece by piece.

INPUTS = (  # of generate(), where the others are settings
    *("cache", "input_ids", "attention_mask", "piece_ids", "audio_codes", "audio_attention_mask", "initial_state"),
    *("speaker_codes", "speaker_attention_mask", "speaker_embeddings"),
)


def number_of_pieces(inputs: dict[str, Any]) -> int:
    """How many pieces the longest text of a call has."""
    ids = inputs.get("piece_ids")
    return int(ids.max()) if torch.is_tensor(ids) and ids.numel() else 1


def given_limit(generation_config: Any, settings: dict[str, Any]) -> int:
    """The max_new_tokens that a call gives, and not the model's configuration."""
    return settings.get("max_new_tokens") or getattr(generation_config, "max_new_tokens", None) or sys.maxsize


def start_readings(mask: Tensor, piece_ids: Tensor | None, limits: list[int] | None) -> tuple[Reading, ...]:
    """Readings of texts with these masks (B, N) that have not begun."""
    lasts, firsts = mask.long().sum(1) - 1, [None] * len(mask)
    if piece_ids is not None:
        before = (mask.bool() & (piece_ids == 0)).sum(1)
        firsts = (before - 1).clamp(min=0).tolist()  # [EOS] belongs to no piece and stands behind
    most = [sys.maxsize] * len(mask) if limits is None else limits
    return tuple(Reading(*row) for row in zip(firsts, lasts.tolist(), most))


def warn(reasons: list[str | None], piece: "Piece | None" = None):
    """Says which texts of a call were not read as they stand."""
    for row, reason in zip(range(len(reasons)) if piece is None else piece.rows, reasons):
        if reason in STOPPED:
            name = f"Text {row}" if piece is None else f"Text {row}, piece {piece.number}"
            logger.warning(f"{name}: the reading {STOPPED[reason]}. Try another seed, or other words.")


@dataclass
class Piece:
    """A piece of some texts. rows: of the call, which have it; columns: of each, the tokens that are read, its prompt's
    included; inputs: of `_prefill`."""

    number: int
    rows: list[int]
    columns: list[Tensor]
    inputs: dict[str, Any]


class Pieces:
    """Reads the texts of a call piece by piece: yields each piece, and makes one speech of what was written.

    All pieces of a text are read behind the same prompt, so that the voice does not drift. A row without a voice has
    its first piece as the prompt of the others.

    inputs: of generate(), by name. prompts: codes (P, Q) of each row. limit: frames that a row may have in all.
    count: pieces of the longest text.
    """

    def __init__(self, inputs: dict[str, Any], prompts: list[Tensor], limit: int):
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        self.mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        self.piece_ids = torch.where(self.mask, inputs["piece_ids"].to(ids), -1)
        self.count = int(self.piece_ids.max())
        self.inputs, self.prompts, self.left = inputs, list(prompts), [limit] * len(ids)
        voices = [x for name, x in inputs.items() if name in ("speaker_codes", "speaker_embeddings", "initial_state")]
        self.voiceless = [
            row for row, prompt in enumerate(prompts) if not len(prompt) and not any(x[row].any() for x in voices)
        ]

    def __iter__(self) -> Iterator[Piece]:
        for number in range(1, self.count + 1):
            has = (self.piece_ids == number).any(1).tolist()
            rows = [row for row, left in enumerate(self.left) if has[row] and left > 0]
            if rows:
                yield self._piece(number, rows)
            if number == 1:
                for row in self.voiceless:
                    self.piece_ids[row, self.piece_ids[row] == 1] = 0

    def _piece(self, number: int, rows: list[int]) -> Piece:
        read = (self.piece_ids == 0) | (self.piece_ids == number)
        columns = [read[row].nonzero()[:, 0] for row in rows]

        def padded(x: Tensor) -> Tensor:
            kept = [x[row, n] for row, n in zip(rows, columns)]
            return pad_sequence(kept, batch_first=True, padding_side="left")

        inputs = {name: x[rows] for name, x in self.inputs.items() if not name.startswith("audio")}
        inputs["input_ids"], inputs["attention_mask"] = padded(self.inputs["input_ids"]), padded(self.mask.long())
        inputs["piece_ids"] = padded((self.piece_ids > 0).long())
        inputs["prompts"], inputs["limits"] = [self.prompts[row] for row in rows], [self.left[row] for row in rows]
        return Piece(number, rows, columns, inputs)

    def spread(self, piece: Piece, output: SmallEGenerateOutput) -> SmallEGenerateOutput:
        """What was written of a piece, as the output of all rows, with the alignments of their whole texts."""
        self._remember(piece, output)
        rows, batch, (_, frames, *_) = piece.rows, len(self.mask), output.sequences.shape
        whole = SmallEGenerateOutput(
            sequences=output.sequences.new_full((batch, *output.sequences.shape[1:]), NO_CODE),
            lengths=output.lengths.new_zeros(batch),
            finish_reason=[dict(zip(rows, output.finish_reason)).get(row) for row in range(batch)],
        )
        whole.sequences[rows], whole.lengths[rows] = output.sequences, output.lengths
        if output.scores is not None:
            whole.scores = output.scores.new_full((batch, *output.scores.shape[1:]), -torch.inf)
            whole.scores[rows] = output.scores
        if output.alignments is not None:
            whole.alignments = output.alignments.new_zeros(batch, frames, self.mask.shape[1])
            for row, columns, alignment in zip(rows, piece.columns, output.alignments):
                whole.alignments[row, :, columns] = alignment[:, -len(columns) :]
        return whole

    def _remember(self, piece: Piece, output: SmallEGenerateOutput):
        for row, codes, length, reason in zip(
            piece.rows, output.sequences, output.lengths.tolist(), output.finish_reason
        ):
            self.left[row] = 0 if reason == "criteria" else self.left[row] - length
            if row in self.voiceless and piece.number == 1:
                self.prompts[row] = torch.cat((self.prompts[row], codes[:length]))

    @staticmethod
    def join(outputs: list[SmallEGenerateOutput]) -> SmallEGenerateOutput:
        """What was written of each text, one piece behind the other."""
        joined = SmallEGenerateOutput(lengths=torch.stack([output.lengths for output in outputs]).sum(0))
        for name, padding in PADDING.items():
            if name in outputs[0]:
                parts = ([x[name][row, : x.lengths[row]] for x in outputs] for row in range(len(joined.lengths)))
                rows = [torch.cat(part) for part in parts]
                joined[name] = pad_sequence(rows, batch_first=True, padding_value=padding)
        reasons = zip(*(output.finish_reason for output in outputs))
        joined.finish_reason = [next((x for x in row if x not in ("stop", None)), "stop") for row in reasons]
        return joined


class SmallEGenerationMixin(GenerationMixin):
    """`generate()` and `stream()` of a model that reads a text once and writes delayed codebooks.

    Overrides the hooks of `transformers.GenerationMixin` that fit; their docstrings say what differs.

    step_runtime: "auto" runs the native runtime (C, 8 bits) on a CPU where it can, "torch" PyTorch, "native" the native
    runtime or raises. native_weights: what the native runtime packed of the model's weights, see `runtime_smalle`.
    """

    config: SmallEConfig
    device: torch.device
    model: Any
    step_runtime = "auto"
    native_weights = None

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_codes: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        cache: GenerationState | None = None,
        generation_config: GenerationConfig | None = None,
        seed: int | torch.Generator | None = None,
        output_alignments: bool = False,
        progress: Callable[[int], Any] | None = None,
        logits_processor: LogitsProcessorList | list | None = None,
        stopping_criteria: StoppingCriteriaList | list | None = None,
        initial_state: Tensor | None = None,
        speaker_codes: Tensor | None = None,
        speaker_attention_mask: Tensor | None = None,
        speaker_embeddings: Tensor | None = None,
        piece_ids: Tensor | None = None,
        **kwargs,
    ) -> SmallEGenerateOutput | Tensor:
        """Generates codes of speech: samples, or is greedy with do_sample=False.

        A text ends by itself, or when its alignment says that its last word was read, that the reading goes wrong
        (`alignment_smalle.Reading`), or when it took more time than such a text can need: see `finish_reason`.

        Args:
            input_ids (B, N), attention_mask (B, N): texts; with a prompt, its transcript followed by the text.
            piece_ids (B, N): the piece of a long text that each token belongs to, 1, 2, ...; 0 for tokens that are read
                before or behind every piece: those of the transcript and special ones. Pieces are spoken one after the
                other; the output is of the whole text. None: one piece.
            audio_codes (B, P, Q): undelayed codes of a prompt to continue; audio_attention_mask (B, P): 1 on its
                frames, 0 on padding, on either side.
            cache: that of an earlier output, in place of all inputs above: continues where that stopped. The output of
                a text of several pieces has none.
            generation_config, **kwargs: do_sample; temperature, top_k, top_p, min_p and repetition_penalty (over the
                last 50 frames, those of the prompt included): a list has one for each codebook; a number is for the
                first, and the others keep those of the configuration's list, or are greedy; max_new_tokens (frames of a
                speech; if it is not given here, there is no limit but that of the text and, for each piece, that of the
                model's configuration); min_new_tokens (frames of each piece); max_time (seconds); max_retries: a
                reading that failed is generated again at most so many times, and the best is kept;
                num_return_sequences of each text, next to each other; best_of: of so many candidates of each text the
                most monotonic ones (`alignment_smalle.monotonicity`) are returned; guidance_scale: above 1, moves away
                from speech without the text, and without the speaker unless a prompt has that voice;
                return_dict_in_generate; output_scores.
            seed: integer or torch.Generator for reproducible speech; None: the global random state.
            output_alignments: also return where in the text each frame was read.
            progress: called after each step with the number of rows whose end is not known yet.
            logits_processor, stopping_criteria: of transformers. They get the new tokens of the first codebook (B, T),
                codes + 3 and AUDIO_EOS from the end of a row on, and its scores (B, V) before sampling, or those so
                far. A row that a criterion stops has as many frames as the criterion saw tokens.
            initial_state (B, S): a tuned voice, the recurrent state in which speech begins (`cache_smalle`).
            speaker_codes (B, P, Q), speaker_attention_mask (B, P): undelayed codes of reference recordings of the
                speakers, for models with a speaker encoder. A row without one has the speaker of its prompt.
            speaker_embeddings (B, D): what `encode_speaker` gives, in place of speaker_codes.

        Returns:
            codes (B, T, Q), undelayed, or `SmallEGenerateOutput` with return_dict_in_generate=True.

        Raises:
            ValueError: inputs or settings are wrong or unknown, or ask for beam search and the like.
        """
        limit = given_limit(generation_config, kwargs)
        config, _ = self._prepare_generation_config(generation_config, **kwargs)
        voice = audio_codes, audio_attention_mask, initial_state, speaker_codes, speaker_attention_mask
        values = cache, input_ids, attention_mask, piece_ids, *voice, speaker_embeddings
        inputs = {name: x for name, x in zip(INPUTS, values, strict=True) if x is not None}
        call = self._call(config, logits_processor, stopping_criteria, progress, seed, output_alignments)
        if number_of_pieces(inputs) == 1:
            state = self._start(inputs, call)
            output = self._read(state, call, 0 if cache else config.max_retries)
            output.finish_reason = [reason or "length" for reason in output.finish_reason]
            warn(output.finish_reason)
        else:
            output = self._generate_pieces(inputs, limit, call)
        return output if config.return_dict_in_generate else output.sequences

    def _call(
        self, config: Any, processors: Any, criteria: Any, progress: Any, seed: Any, output_alignments: bool
    ) -> dict[str, Any]:
        """The arguments of `DecodingLoop` in one call of generate() or stream()."""
        check_callables("logits_processor", processors)
        check_callables("stopping_criteria", criteria)
        return {
            "logits_processor": LogitsProcessorList(processors or []),
            "stopping_criteria": self._get_stopping_criteria(config, criteria),
            "generation_config": config,
            "progress": progress,
            "generator": seeded(seed, self.device),
            "output_alignments": output_alignments or config.best_of > 1,
        }

    def _generate_pieces(self, inputs: dict[str, Any], limit: int, call: dict[str, Any]) -> SmallEGenerateOutput:
        """`generate()` of texts of which some have several pieces, with at most `limit` frames each."""
        config, outputs = copy.copy(call["generation_config"]), []
        if config.num_return_sequences > 1:  # each has its own rows, as it may go on from its own first piece
            inputs = {name: x.repeat_interleave(config.num_return_sequences, 0) for name, x in inputs.items()}
            config.best_of, config.num_return_sequences = -(-config.best_of // config.num_return_sequences), 1
        pieces = self._pieces(inputs, limit)
        for piece in pieces:
            state = self._prefill(**piece.inputs, guided=config.guidance_scale != 1)
            output = self._read(state, {**call, "generation_config": config}, config.max_retries)
            output.finish_reason = [reason or "length" for reason in output.finish_reason]
            warn(output.finish_reason, piece)
            outputs.append(pieces.spread(piece, output))
        return pieces.join(outputs)

    def _read(self, state: GenerationState, call: dict[str, Any], retries: int) -> SmallEGenerateOutput:
        """The best readings from a state; one that failed is read again, at most `retries` times."""
        config = call["generation_config"]
        kept = config.num_return_sequences
        output = self._read_once(state, max(config.best_of, kept), kept, call)
        for _ in range(retries if config.do_sample else 0):
            readings = output.readings
            failed = [row for row, reading in enumerate(readings) if reading.failed]
            if not failed:
                break
            again = self._read_once(state.select(torch.tensor(failed) // kept), config.best_of, 1, call)
            pairs = zip(failed, again.readings, strict=True)
            better = [n for n, (row, x) in enumerate(pairs) if x.finish and x.score > readings[row].score]
            if better:
                output = output.replace_rows([failed[n] for n in better], again.select(torch.tensor(better)))
        return output

    def _read_once(self, state: GenerationState, candidates: int, kept: int, call: dict[str, Any]) -> Any:
        """Of so many candidates of each text the most monotonic ones."""
        if candidates > 1:
            state = state.select(torch.arange(len(state.remaining), device=self.device).repeat_interleave(candidates))
        output = DecodingLoop(self, state, **call).run(call["generation_config"].max_new_tokens)
        if output.alignments is None or candidates == 1 or call["generation_config"].best_of == 1:
            return output
        scores = monotonicity(output.alignments, output.lengths, state.model.text_mask[: len(output.lengths)])
        return output.select(best_rows(scores, candidates, kept))

    def _start(self, inputs: dict[str, Any], call: dict[str, Any]) -> GenerationState:
        """The state from which texts of one piece are read, or are read on."""
        config, state = call["generation_config"], inputs.get("cache")
        if state is None:
            if "piece_ids" in inputs:
                check_pieces(inputs.get("input_ids"), inputs.get("attention_mask"), inputs["piece_ids"])
            state = self._prefill(**inputs, guided=config.guidance_scale != 1)
        elif len(inputs) > 1:
            raise ValueError("cache= goes on with an earlier text: give that, or input_ids and a voice.")
        elif not isinstance(state, GenerationState):
            raise ValueError(f"cache is {type(state).__name__}: expected that of an output of generate().")
        check_state(state, config, call["output_alignments"])
        return state

    def _pieces(self, inputs: dict[str, Any], limit: int) -> Pieces:
        """The pieces of texts, whose inputs are checked."""
        check_pieces(inputs.get("input_ids"), inputs.get("attention_mask"), inputs["piece_ids"])
        if "cache" in inputs:
            raise ValueError("cache= goes on with an earlier text: give that, or input_ids and a voice.")
        prompts = self._recordings(
            len(inputs["input_ids"]), inputs.get("audio_codes"), inputs.get("audio_attention_mask")
        )
        return Pieces(inputs, prompts, limit)

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
            **kwargs: inputs and settings of `generate()`, except num_return_sequences, best_of, max_retries and
                max_time, which need the whole speech; best_of and max_retries of the checkpoint's generation
                configuration are ignored.
        """
        inputs = {name: x for name in INPUTS if (x := kwargs.pop(name, None)) is not None}
        limit = given_limit(generation_config, kwargs)
        for name, off in {"best_of": 1, "max_retries": 0}.items():
            if getattr(generation_config, name, None) is None:
                kwargs.setdefault(name, off)
        logits_processor, stopping_criteria = (
            kwargs.pop("logits_processor", None),
            kwargs.pop("stopping_criteria", None),
        )
        config, _ = self._prepare_generation_config(generation_config, **kwargs)
        if isinstance(chunk_frames, int) and chunk_frames < 1:
            raise ValueError(f"chunk_frames={chunk_frames}: expected at least one frame.")
        if config.num_return_sequences > 1 or config.best_of > 1 or config.max_time is not None or config.max_retries:
            raise ValueError(
                "A stream has one speech of each text, read once, and no max_time: use generate(), or close the stream "
                "in time."
            )
        sizes = itertools.repeat(chunk_frames) if isinstance(chunk_frames, int) else chunk_frames
        call = self._call(config, logits_processor, stopping_criteria, progress, seed, output_alignments)
        if number_of_pieces(inputs) == 1:
            yield from self._stream(self._start(inputs, call), call, sizes)
            return
        pieces = self._pieces(inputs, limit)
        for piece in pieces:
            start = functools.partial(self._prefill, **piece.inputs, guided=config.guidance_scale != 1)
            for output in self._stream(start(), call, sizes, piece):  # which alone holds the state
                yield pieces.spread(piece, output)

    def _stream(
        self, state: GenerationState, call: dict[str, Any], sizes: Iterator[int], piece: Piece | None = None
    ) -> Iterator[SmallEGenerateOutput]:
        """Speech from a state, in chunks."""
        loop, left = DecodingLoop(self, state, **call), call["generation_config"].max_new_tokens
        del state
        while left > 0:
            frames = min(next(sizes), left)
            left -= frames
            output = loop.run(frames)
            if left == 0 or not loop.unfinished:
                output.finish_reason = [reason or "length" for reason in output.finish_reason]
                warn(output.finish_reason, piece)
                left = 0
            yield output
            if left > 0:
                loop.go_on(output)

    @torch.no_grad()
    def encode_speaker(self, speaker_codes: Tensor, speaker_attention_mask: Tensor | None = None) -> Tensor:
        """Speaker embeddings of reference recordings, for `generate(speaker_embeddings=)`.

        Args:
            speaker_codes (B, P, Q): undelayed codes; speaker_attention_mask (B, P): 1 on frames, 0 on padding.

        Returns:
            (B, D); zeros for a recording without a frame.

        Raises:
            ValueError: these are no recordings, or the model has no speaker encoder.
        """
        recordings = self._recordings(len(speaker_codes), speaker_codes, speaker_attention_mask, "speaker")
        return encode_speakers(self, recordings)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The configuration of one call. Unknown, unsupported and wrong settings raise ValueError, so nothing is left
        for the model; sampling settings may be lists; best_of; lengths count frames."""
        for name, instead in REPLACED.items():
            if kwargs.get(name) not in (None, False):
                raise ValueError(f"{name}={kwargs[name]!r}: generate() does not take that here; use {instead}.")
        if not isinstance(generation_config, (GenerationConfig, type(None))):
            raise ValueError(f"generation_config={generation_config!r}: expected a GenerationConfig, or None.")
        config, _ = super()._prepare_generation_config(generation_config)
        defaults = {"max_new_tokens": int(60 * self.config.frame_rate), "min_new_tokens": 1, "min_p": 0.0}
        defaults |= {"guidance_scale": 1.0, "num_return_sequences": 1, "best_of": 1, "max_retries": 0}
        given = {name: value for name, value in kwargs.items() if value is not None}
        unknown = sorted(given.keys() - vars(config).keys() - defaults.keys())
        if any(given.pop(name) is not False for name in unknown):
            raise ValueError(f"generate() does not know {unknown}: expected what its documentation names.")
        unset = {name: value for name, value in defaults.items() if getattr(config, name, None) is None}
        before = {name: getattr(config, name, None) for name in PER_CODEBOOK}
        for name, value in {**unset, **given}.items():  # config.update() would refuse several greedy readings
            setattr(config, name, value)
        check_settings(config)
        for name, value in before.items():  # a number is for the first codebook; the others keep theirs
            if isinstance(value, (list, tuple)) and isinstance(given.get(name), Real):
                setattr(config, name, [given[name], *value[1:]])
        return config, {}

    def _get_stopping_criteria(self, generation_config: Any, stopping_criteria: Any) -> StoppingCriteriaList:
        """max_time and the caller's criteria alone, as `DecodingLoop` itself ends rows and counts frames."""
        criteria = StoppingCriteriaList(stopping_criteria or [])
        if generation_config.max_time is not None:
            criteria.append(MaxTimeCriteria(generation_config.max_time))
        return criteria

    @torch.no_grad()
    def _prefill(
        self,
        guided: bool,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        piece_ids: Tensor | None = None,
        audio_codes: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        initial_state: Tensor | None = None,
        speaker_codes: Tensor | None = None,
        speaker_attention_mask: Tensor | None = None,
        speaker_embeddings: Tensor | None = None,
        prompts: list[Tensor] | None = None,
        limits: list[int] | None = None,
    ) -> GenerationState:
        """Checks the inputs of new texts; reads the texts and all but the last step of their prompts.

        guided: adds unconditional rows behind, without texts, and without speakers unless a prompt has the voice.
        prompts: codes (P, Q), in place of audio_codes. limits: frames that each row may have.
        """
        if input_ids is None:
            raise ValueError("generate() needs input_ids (a text) or cache (of an earlier output).")
        check_text(input_ids, attention_mask, self.config)
        check_initial_state(initial_state, len(input_ids))
        if prompts is None:
            prompts = self._recordings(len(input_ids), audio_codes, audio_attention_mask)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        batch, readings = len(prompts), start_readings(mask, piece_ids, limits)
        if guided:
            input_ids, mask = add_empty_texts(input_ids, mask, self.config)
            initial_state = None if initial_state is None else initial_state.repeat(2, 1)
        state = encode_text(self, input_ids, mask, initial_state)
        speakers = self._speakers(prompts, speaker_codes, speaker_attention_mask, speaker_embeddings)
        if guided:
            if speakers is not None:
                prompted = speakers.new_tensor([[len(prompt) > 0] for prompt in prompts])
                speakers = torch.cat((speakers, speakers * prompted))
            prompts = prompts * 2
        grids = [delay(prompt, UNKNOWN) for prompt in prompts]
        longest = max(len(grid) for grid in grids)
        grid = torch.stack([F.pad(x, (0, 0, longest - len(x), 0), value=AUDIO_PAD) for x in grids])
        newest = longest - self.config.num_codebooks  # the same for every row, as padding is on the left
        start = torch.tensor([longest - len(x) for x in grids], device=grid.device)
        state = self.model.add_speaker(state, speakers)
        if newest:
            steps = start_steps(self, state, False, unchanged=True)
            steps.read(grid[:, :newest], torch.arange(newest, device=grid.device) >= start[:, None])
            state = steps.state
        unread, forced = grid[:, newest : newest + 1], grid[:, newest + 1 :]
        history = grid[:batch, :newest][:, -REPETITION_WINDOW:]
        return GenerationState(state, unread, forced, start.new_full((batch,), -1), history, readings)

    def _speakers(
        self, prompts: list[Tensor], codes: Tensor | None, mask: Tensor | None, embeddings: Tensor | None
    ) -> Tensor | None:
        """Speaker embeddings (B, D): those that are given, else of the reference of each row, else of its prompt. None
        without speaker encoder."""
        if embeddings is not None:
            if not self.config.speaker_layers or codes is not None:
                raise ValueError(
                    "speaker_embeddings: expected a model with a speaker encoder, and no speaker_codes beside them; "
                    "leave one of the two out."
                )
            shape, meaning = (len(prompts), self.config.hidden_size), "what encode_speaker() gives"
            check_tensor("speaker_embeddings", embeddings, shape, FLOATS, meaning, "")
            if not embeddings.isfinite().all():
                raise ValueError("speaker_embeddings holds NaN or infinity: expected what encode_speaker() gives.")
            return embeddings
        if not self.config.speaker_layers and codes is None:
            return None
        references = self._recordings(len(prompts), codes, mask, "speaker")
        voices = [x if len(x) else prompt for x, prompt in zip(references, prompts)]
        return encode_speakers(self, voices, unchanged=True)

    def _recordings(self, batch: int, codes: Tensor | None, mask: Tensor | None, prefix: str = "audio") -> list[Tensor]:
        """Codes (B, P, Q) without their padding: a recording (P, Q) for each row, of no frames without codes."""
        if codes is None:
            codes = torch.zeros(batch, 0, self.config.num_codebooks, dtype=torch.long, device=self.device)
        check_recording(codes, mask, batch, self.config, prefix)
        mask = torch.ones_like(codes[..., 0]) if mask is None else mask
        return [row[keep.bool()].long() for row, keep in zip(codes, mask)]
