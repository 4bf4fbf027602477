"""generate(): a text that is read once, delayed codebooks that are written step by step."""

import copy
import itertools
import math
import numbers
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from transformers import GenerationMixin
from transformers.generation import LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList
from transformers.utils import ModelOutput

from .alignment_smalle import monotonicity
from .configuration_smalle import AUDIO_BOS, AUDIO_EOS, AUDIO_PAD, NUM_AUDIO_SPECIALS
from .runtime_smalle import encode_text, start_steps
from .validation_smalle import FLOATS, check_initial_state, check_recording, check_seed, check_tensor, check_text

# --- delay: The delay pattern of codebooks (MusicGen's, Copet et al. 2023): codebook q is written q + 1 steps late.


def delay(codes, end=AUDIO_EOS):
    """Delayed grid of codes (T, Q): (T + Q, Q), codebook q delayed by q + 1 steps.

    Codes are shifted by the number of special tokens; AUDIO_BOS stands before a codebook's first code, `end` after
    its last.
    """
    length, num_codebooks = codes.shape
    grid = codes.new_full((length + num_codebooks, num_codebooks), end)
    for q in range(num_codebooks):
        grid[: q + 1, q] = AUDIO_BOS
        grid[q + 1 : q + 1 + length, q] = codes[:, q] + NUM_AUDIO_SPECIALS
    return grid


def undelay(grid):
    """Inverse of `delay`: grid (B, T + Q, Q) -> codes (B, T, Q). Special tokens come out negative."""
    num_codebooks = grid.shape[-1]
    length = max(0, grid.shape[1] - num_codebooks)
    return torch.stack([grid[:, q + 1 : q + 1 + length, q] for q in range(num_codebooks)], -1) - NUM_AUDIO_SPECIALS


def undelay_steps(steps):
    """What belongs to each frame, of what belongs to each step: (B, S, Q, ...) -> (B, S - Q + 1, Q, ...).

    steps[:, s, q] led to codebook q of frame s - q.
    """
    num_codebooks = steps.shape[2]
    length = max(0, steps.shape[1] - num_codebooks + 1)
    return torch.stack([steps[:, q : q + length, q] for q in range(num_codebooks)], 2)


# --- sampling: Sampling: which of the scored tokens comes next, with settings for each codebook.


REPETITION_WINDOW = 50  # frames that a repetition penalty looks back


@dataclass(frozen=True)
class SamplingSettings:
    """How one codebook is sampled.

    top_k: the most likely tokens that stay, 0: all, 1: greedy; temperature; top_p: tokens stay until their
    probabilities add up to it; min_p: a token needs this share of the most likely one's probability;
    repetition_penalty: positive scores of the last 50 frames' tokens are divided by it, negative ones multiplied.
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


GREEDY = SamplingSettings()


def seeded(seed, device):
    """A torch.Generator of a seed; one that is given, or None for the global one, stays as it is."""
    check_seed(seed)
    given = seed is None or isinstance(seed, torch.Generator)
    return seed if given else torch.Generator(device).manual_seed(seed)


def only_choose(settings):
    """Whether tokens are drawn from their scores by top-k and temperature alone."""
    return all((s.top_p, s.min_p, s.repetition_penalty) == (1, 0, 1) for s in settings)


def per_codebook(name, value, num_codebooks, default):
    """A setting for every codebook: a number sets the first and leaves `default` for the rest; a list sets each."""
    if not isinstance(value, (list, tuple)):
        return [value] + [default] * (num_codebooks - 1)
    if len(value) != num_codebooks:
        raise ValueError(f"{name}={value!r}: expected one number or a list of {num_codebooks}, one for each codebook.")
    return list(value)


def sampling_settings(config, num_codebooks):
    """`SamplingSettings` of each codebook, of a generation configuration; do_sample=False is greedy on all of them."""
    first = {"top_k": 100, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    names = ["repetition_penalty"] if config.do_sample is False else list(first)
    values = {name: first[name] if getattr(config, name, None) is None else getattr(config, name) for name in names}
    if any(isinstance(values.get(name), (list, tuple)) for name in ("temperature", "top_p", "min_p")):
        top_k = values["top_k"]  # a list of these samples every codebook, also where top_k is a number
        values["top_k"] = top_k if isinstance(top_k, (list, tuple)) else [top_k] * num_codebooks
    columns = [per_codebook(name, value, num_codebooks, getattr(GREEDY, name)) for name, value in values.items()]
    return [SamplingSettings(**dict(zip(names, row))) for row in zip(*columns)]


def penalise_repetition(logits, recent, penalty):
    """Makes recent tokens (B, W) less likely (Keskar et al. 2019), special ones excepted: logits (B, V)."""
    codes = recent.clamp(min=0)
    said = torch.zeros_like(logits, dtype=torch.bool).scatter(1, codes, True)
    said[:, :NUM_AUDIO_SPECIALS] = False
    return torch.where(said, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def warp(logits, settings):
    """Scores of one codebook (B, V) after temperature and limits: -inf where a token cannot come."""
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


def sample(scores, settings, generator=None):
    """One token of each row of warped scores (B, V) -> (B,)."""
    if settings.top_k == 1:
        return scores.argmax(-1)
    probs = scores.softmax(-1)
    waits = torch.empty_like(probs).exponential_(generator=generator)
    return (probs / waits).argmax(-1)  # what torch.multinomial draws, which checks more than it draws


def draw(logits, settings, generator=None):
    """A token of each codebook (B, Q) and the warped scores, (B, V) each, that it was drawn from: logits (B, Q, V)."""
    tokens, scores = logits.argmax(-1), list(logits.unbind(1))
    for q, setting in enumerate(settings):
        if setting.top_k != 1:
            scores[q] = warp(scores[q], setting)
            tokens[:, q] = sample(scores[q], setting, generator)
    return tokens, scores


# --- generation config: The generation configuration of one call of generate(): what is taken, what is refused.


OWN = ("num_return_sequences", "best_of", "guidance_scale", "voice_guidance_scale")  # 1: off
REFUSED = {  # settings of other ways to generate, with the value that switches each off
    "num_beams": 1,
    "num_beam_groups": 1,
    "constraints": None,
    "force_words_ids": None,
    "diversity_penalty": 0,
    "penalty_alpha": 0,
    "dola_layers": None,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "use_mtp": None,
    "typical_p": 1,
    "top_h": None,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "watermarking_config": None,
    "exponential_decay_length_penalty": None,
    "stop_strings": None,
    "streamer": None,
    "length_penalty": 1,
    "early_stopping": False,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    "cache_implementation": None,
}

INSTEAD = {  # settings that other models take, and what says it here
    "max_length": "max_new_tokens, which counts new frames",
    "min_length": "min_new_tokens, which counts new frames",
    "output_attentions": "output_alignments",
    "output_logits": "output_scores",
    "output_hidden_states": "the model's forward with what was generated",
    "forced_eos_token_id": "max_new_tokens",
    "forced_bos_token_id": "audio_codes, a prompt",
}


def refuse_other_modes(config, kwargs):
    """ValueError for beam search, assisted decoding and whatever else it would be wrong to ignore."""
    for name, ours in INSTEAD.items():
        if kwargs.get(name) not in (None, False):
            raise ValueError(f"{name}={kwargs[name]!r}: generate() does not take that here; use {ours}.")
    for name, off in REFUSED.items():
        value = kwargs.get(name, getattr(config, name, None))
        if value is not None and value is not False and value != off:
            raise ValueError(
                f"{name}={value!r}: this model is greedy (do_sample=False) or samples (temperature, top_k, top_p, "
                "min_p, repetition_penalty, guidance_scale, num_return_sequences, best_of), nothing else; for more, "
                "give logits_processor= or stopping_criteria= of transformers."
            )


PER_CODEBOOK = "temperature", "top_k", "top_p", "min_p", "repetition_penalty"  # one number, or a list
AMOUNTS = *PER_CODEBOOK, "guidance_scale", "voice_guidance_scale", "max_time"
COUNTS = "top_k", "max_new_tokens", "min_new_tokens", "num_return_sequences", "best_of"
FLAGS = "do_sample", "output_scores", "return_dict_in_generate"


def is_number(value, whole):
    """Whether value is a finite number, and an integer where it has to be one."""
    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def check_kinds(settings):
    """ValueError where a setting is not the kind of thing that it should be."""
    for name, value in settings.items():
        if value is None:
            continue
        whole, several = name in COUNTS, name in PER_CODEBOOK and isinstance(value, (list, tuple))
        if name in (*AMOUNTS, *COUNTS) and not all(is_number(x, whole) for x in (value if several else [value])):
            lists = " or a list of them, one for each codebook" if name in PER_CODEBOOK else ""
            raise ValueError(f"{name}={value!r}: expected {'an integer' if whole else 'a number'}{lists}.")
        if name in FLAGS and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: expected True or False.")


def speech_config(defaults, kwargs, frame_rate):
    """A copy of a GenerationConfig with the settings of this call; ValueError for unknown and wrong ones."""
    refuse_other_modes(defaults, kwargs)
    check_kinds(kwargs)
    config, kwargs = copy.deepcopy(defaults), dict(kwargs)
    own = {name: kwargs.pop(name, getattr(config, name, None)) for name in OWN}
    unknown = sorted(name for name, value in config.update(**kwargs).items() if name not in REFUSED or value)
    if unknown:
        raise ValueError(f"generate() does not know {unknown}: expected what its documentation names.")
    for name, value in own.items():  # after update(), which allows one greedy speech only
        setattr(config, name, 1 if value is None else value)
    if config.max_new_tokens is None:
        config.max_new_tokens = int(60 * frame_rate)
    config.min_new_tokens = 1 if config.min_new_tokens is None else config.min_new_tokens
    if config.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={config.max_new_tokens}: expected at least one frame.")
    if config.num_return_sequences < 1 or config.best_of < 1 or 1 < config.best_of < config.num_return_sequences:
        raise ValueError(
            f"num_return_sequences={config.num_return_sequences}, best_of={config.best_of}: expected 1 or more, and "
            "best_of, where it is given, at least as many as are returned."
        )
    if not 0 <= config.guidance_scale <= 100 or not 0 <= config.voice_guidance_scale <= 100:
        raise ValueError(
            f"guidance_scale={config.guidance_scale}, voice_guidance_scale={config.voice_guidance_scale}: expected "
            "0..100; 1 is no guidance."
        )
    return config


# --- generation state: What generate() returns, and the state in which it stopped.


@dataclass
class GenerationState:
    """Where generate() stopped; hand it back as `cache=` to go on. A value, never changed in place.

    Rows are the B speeches; guided generation has as many again for each branch, behind them: G times B in all.

    model: the model's state, G·B rows; grid (G·B, W, Q): the last delayed steps, the newest not yet read by the model;
    forced (G·B, F, Q): steps to come that a prompt has fixed, UNKNOWN where it has not; remaining (B,): steps that a
    row needs to end, 0 when done, -1 while it speaks; history (B, H, Q): steps before the grid, for repetition
    penalties; maps, scores: alignments (B, N) and scores (B, Q, V) of steps whose frames are not complete;
    branches: names of the guidance scales that the other rows serve.
    """

    model: object
    grid: torch.LongTensor
    forced: torch.LongTensor
    remaining: torch.LongTensor
    history: torch.LongTensor
    maps: tuple[torch.FloatTensor, ...] = ()
    scores: tuple[torch.FloatTensor, ...] = ()
    branches: tuple[str, ...] = ()

    def select(self, rows):
        """The state of these speeches (B',): some of them, or each several times."""
        every = torch.cat([rows + n * len(self.remaining) for n in range(1 + len(self.branches))])
        return replace(
            self,
            model=self.model.map(lambda x: x[every]),
            grid=self.grid[every],
            forced=self.forced[every],
            remaining=self.remaining[rows],
            history=self.history[rows],
            maps=tuple(x[rows] for x in self.maps),
            scores=tuple(x[rows] for x in self.scores),
        )


@dataclass
class SmallEGenerateOutput(ModelOutput):
    """sequences (B, T, Q): new codes, undelayed, -1 after a row's end; lengths (B,): new frames of each row;
    alignments (B, T, N): where in the text each new frame was read, on request; scores (B, T, Q, V): what each code
    was drawn from, -inf where a token could not come, on request; cache: to go on from."""

    sequences: torch.LongTensor = None
    lengths: torch.LongTensor = None
    alignments: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    cache: GenerationState | None = None

    def select(self, rows):
        """The output of these rows (B',), as long as the longest of them."""
        longest = int(self.lengths[rows].max())
        cut = {
            name: None if self[name] is None else self[name][rows, :longest]
            for name in ("sequences", "alignments", "scores")
            if name in self
        }
        return SmallEGenerateOutput(lengths=self.lengths[rows], cache=self.cache.select(rows), **cut)


UNKNOWN = -1  # entry of a delayed grid that the model has to fill in
NO_CODE = -1  # fills `sequences` after the end of a row
INPUTS = (
    "input_ids",
    "attention_mask",
    "audio_codes",
    "audio_attention_mask",
    "cache",
    "unprompted_input_ids",
    "unprompted_attention_mask",
    "initial_state",
    "speaker_codes",
    "speaker_attention_mask",
    "speaker",
)


def guide(logits, scales):
    """Classifier-free guidance (Ho and Salimans 2022): logits (G·B, Q, V), those to follow first -> (B, Q, V).

    Moves the first B rows away from each branch behind them, by (scale - 1) times their difference.
    """
    if not scales:
        return logits
    wanted, *branches = logits.chunk(1 + len(scales))
    return wanted + sum((scale - 1) * (wanted - other) for scale, other in zip(scales, branches))


def join_texts(texts, pad):
    """(ids, mask) pairs of different width, left-padded to the widest and one behind the other: ids, mask (G·B, N)."""
    widest = max(ids.shape[1] for ids, _ in texts)
    masks = [torch.ones_like(ids) if mask is None else mask for ids, mask in texts]
    ids = torch.cat([F.pad(ids, (widest - ids.shape[1], 0), value=pad) for ids, _ in texts])
    return ids, torch.cat([F.pad(mask, (widest - mask.shape[1], 0)) for mask in masks])


def first_codebook(window, batch):
    """Tokens of the first codebook that are new, as transformers' processors and criteria see them: (B, T)."""
    new = [step[:batch, 0] for step in window[1:]]
    return torch.stack(new, 1) if new else window[0].new_zeros(batch, 0)


def standing(remaining, branches):
    """Of rows that need so many steps to end (B,), see `GenerationState`: how many speak, whether any goes on, and the
    mask (G·B, 1) of those that do."""
    going = remaining != 0
    return int((remaining < 0).sum()), bool(going.any()), going.repeat(branches)[:, None]


def impossible(num_codebooks, vocabulary, device):
    """Tokens that cannot come, (Q, V) while a row may end and (Q, V) while it may not.

    A row ends when its first codebook says AUDIO_EOS; codebook q follows q steps later, see `only_tails`.
    """
    tokens = torch.zeros(2, num_codebooks, vocabulary, dtype=torch.bool)
    tokens[..., [AUDIO_PAD, AUDIO_BOS, AUDIO_EOS]] = True
    tokens[0, 0, AUDIO_EOS] = False
    return tokens.to(device).unbind()


def only_tails(logits, remaining):
    """Logits (B, Q, V) where some rows are ending, remaining (B,): AUDIO_EOS alone in codebooks that have ended."""
    num_codebooks = logits.shape[1]
    since_end = torch.where(remaining < 0, -1, num_codebooks - remaining)
    tails = torch.arange(num_codebooks, device=logits.device) <= since_end[:, None]
    logits[..., AUDIO_EOS] = logits[..., AUDIO_EOS].masked_fill((remaining >= 0)[:, None], -torch.inf)
    only_tail = torch.full_like(logits, -torch.inf)
    only_tail[..., AUDIO_EOS] = 0
    return torch.where(tails[..., None], only_tail, logits)


def best_rows(scores, candidates, kept):
    """Indices of the rows to keep, best first: scores (B * candidates,) -> (B * kept,)."""
    order = scores.view(-1, candidates).argsort(dim=1, descending=True, stable=True)[:, :kept]
    return (order + candidates * torch.arange(len(order), device=order.device)[:, None]).flatten()


class SmallEGenerationMixin(GenerationMixin):
    """generate() for a model that reads text once and writes delayed codebooks.

    step_runtime: "auto" takes what the checkpoint was exported for, C or ONNX Runtime; "torch" does not; "native" and
    "onnx" insist on theirs.
    """

    step_runtime = "auto"

    @torch.no_grad()
    def generate(
        self,
        input_ids=None,
        attention_mask=None,
        audio_codes=None,
        audio_attention_mask=None,
        cache=None,
        generation_config=None,
        seed=None,
        output_alignments=False,
        progress=None,
        logits_processor=None,
        stopping_criteria=None,
        unprompted_input_ids=None,
        unprompted_attention_mask=None,
        initial_state=None,
        speaker_codes=None,
        speaker_attention_mask=None,
        speaker=None,
        **kwargs,
    ):
        """Speaks: samples, or is greedy with do_sample=False.

        Args:
            input_ids (B, N), attention_mask (B, N): text; with a prompt, the prompt's transcript and then the text.
            audio_codes (B, P, Q): undelayed codes of a prompt to continue; audio_attention_mask (B, P): 1 on its
                frames, padding on either side.
            cache: that of a former output, in place of all inputs above: goes on where that stopped.
            generation_config, **kwargs: do_sample; top_k, top_p, min_p, temperature, repetition_penalty of the last 50
                frames' codes, the prompt's too (a number is for the first codebook, the others stay greedy; or a list
                with one for each codebook, all of which are then sampled); max_new_tokens and min_new_tokens (new
                frames), max_time (seconds); num_return_sequences: speeches of each text, next to each other; best_of:
                speeches of each text of which those are kept that read it most steadily
                (`alignment_smalle.monotonicity`); guidance_scale: keeps closer to the text, and to who is heard
                without a prompt, away from speech without them; voice_guidance_scale: closer to the prompt's voice;
                return_dict_in_generate, output_scores.
            seed: makes the same speech again; without it the global random state is used. Or a torch.Generator.
            output_alignments: return where in the text each frame was read.
            progress: called after each step with the number of rows that still speak.
            logits_processor, stopping_criteria: of transformers, called with the first codebook's new tokens (B, T)
                so far: code + 3, AUDIO_EOS from a row's end on; and with its scores (B, V), before sampling, or the
                scores so far. A row that a criterion stops has as many frames as the criterion saw tokens, and is done.
            unprompted_input_ids, unprompted_attention_mask (B, M): the text alone, without the prompt's transcript;
                needed for voice_guidance_scale.
            initial_state (B, S): a tuned voice, the state in which speech begins (`cache_smalle`).
            speaker_codes (B, P, Q), speaker_attention_mask (B, P): undelayed codes of a recording of who is to speak,
                which is not gone on with, for models with a speaker encoder; rows without: that of their prompt.
            speaker (B, D): what `encode_speaker` made of such recordings, in their place.

        Returns:
            codes (B, T, Q), or `SmallEGenerateOutput` with return_dict_in_generate=True.

        Raises:
            ValueError for inputs and settings that are wrong or unknown, and for beam search and the like.
        """
        config, generator = self._speech_config(generation_config, kwargs), seeded(seed, self.device)
        criteria = StoppingCriteriaList(stopping_criteria or [])
        if config.max_time is not None:
            criteria.append(MaxTimeCriteria(config.max_time))
        state = cache
        if state is None:
            unprompted = (unprompted_input_ids, unprompted_attention_mask)
            recordings = (audio_codes, audio_attention_mask), (speaker_codes, speaker_attention_mask)
            state = self._start(config, input_ids, attention_mask, *recordings, unprompted, initial_state, speaker)
        elif any(x is not None for x in (input_ids, audio_codes, initial_state, speaker_codes, speaker)):
            raise ValueError("cache= goes on with a former text: give that, or input_ids and a voice.")
        elif not hasattr(state, "remaining"):
            raise ValueError(f"cache is {type(state).__name__}: expected that of an output of generate().")
        candidates = max(config.best_of, config.num_return_sequences)
        if candidates > 1:
            state = state.select(torch.arange(len(state.remaining), device=self.device).repeat_interleave(candidates))
        output_alignments = output_alignments or config.best_of > 1
        self._check_state(state, config, output_alignments)
        steps = start_steps(self, state.model, output_alignments, again=True)
        output = self._speak(
            steps,
            state,
            config,
            generator,
            LogitsProcessorList(logits_processor or []),
            criteria,
            output_alignments,
            progress,
        )
        if config.best_of > 1:
            steadiness = monotonicity(output.alignments, output.lengths, state.model.text_mask[: len(output.lengths)])
            output = output.select(best_rows(steadiness, candidates, config.num_return_sequences))
        return output if config.return_dict_in_generate else output.sequences

    def stream(
        self, chunk_frames=16, seed=None, generation_config=None, output_alignments=False, progress=None, **kwargs
    ):
        """`generate()` in chunks: a generator of `SmallEGenerateOutput`, each with the next `chunk_frames` frames.

        Joined they are what generate() gives at once, whatever chunk_frames is; memory does not grow. Takes the inputs
        and settings of generate() but for num_return_sequences, best_of (the checkpoint's default is passed over) and
        max_time. chunk_frames may be an iterator: of the sizes of one chunk after the other, without end. Nothing runs
        until the next chunk is asked for; who leaves the loop has stopped it.
        """
        inputs = {name: kwargs.pop(name) for name in INPUTS if name in kwargs}
        if generation_config is None:
            kwargs.setdefault("best_of", 1)
        config = self._speech_config(generation_config, kwargs)
        sizes = itertools.repeat(chunk_frames) if isinstance(chunk_frames, int) else chunk_frames
        if chunk_frames is not sizes and chunk_frames < 1:
            raise ValueError(f"chunk_frames={chunk_frames}: expected at least one frame.")
        if config.num_return_sequences > 1 or config.best_of > 1 or config.max_time is not None:
            raise ValueError("A stream has one speech of each text and no max_time: use generate(), or leave the loop.")
        generator, done = seeded(seed, self.device), 0
        while done < config.max_new_tokens:
            size = min(next(sizes), config.max_new_tokens - done)
            output = self.generate(
                **inputs,
                generation_config=config,
                seed=generator,
                output_alignments=output_alignments,
                progress=progress,
                max_new_tokens=size,
                min_new_tokens=max(0, config.min_new_tokens - done),
                return_dict_in_generate=True,
            )
            done += size
            inputs = {"cache": output.cache}
            yield output
            if not inputs["cache"].remaining.any():
                return

    def _speak(self, steps, state, config, generator, processors, criteria, output_alignments, progress):
        """Writes step after step until every row has ended: `SmallEGenerateOutput`."""
        num_codebooks, batch, branches = self.config.num_codebooks, len(state.remaining), 1 + len(state.branches)
        settings = sampling_settings(config, num_codebooks)
        scales = [getattr(config, name) for name in state.branches]
        forced, remaining = state.forced, state.remaining
        window, maps, scores = list(state.grid.unbind(1)), list(state.maps), list(state.scores)
        speaking, going, mask = standing(remaining, branches)
        never = impossible(num_codebooks, self.config.audio_vocab_size, self.device)
        quick = steps.draws and not processors and not config.output_scores and only_choose(settings)
        while going and len(window) - num_codebooks < config.max_new_tokens:
            logits, text_map = steps(window[-1][:, None], mask)
            banned = never[len(window) - 1 < config.min_new_tokens]
            if quick and speaking == batch:
                step, drawn_from = steps.draw(scales, banned, settings, generator), ()
            else:
                logits = guide(logits[:, -1].float(), scales)
                logits = self._processed(logits, state.history, window, settings, processors)
                logits = logits.masked_fill(banned, -torch.inf)
                logits = logits if speaking == batch else only_tails(logits, remaining)
                step, drawn_from = draw(logits, settings, generator)
            step = step.repeat(branches, 1) if branches > 1 else step
            if forced.shape[1]:
                step, forced = torch.where(forced[:, 0] == UNKNOWN, step, forced[:, 0]), forced[:, 1:]
            before = remaining
            if speaking < batch or AUDIO_EOS in step[:batch, 0].tolist():
                ending = (remaining < 0) & (step[:batch, 0] == AUDIO_EOS)
                remaining = torch.where(ending, num_codebooks - 1, torch.where(remaining > 0, remaining - 1, remaining))
            window.append(step)
            if output_alignments:
                maps.append(text_map[:batch, -1])
            if config.output_scores:
                scores.append(torch.stack(drawn_from, 1))
            if criteria:  # a stopped row says AUDIO_EOS next
                stopped = criteria(first_codebook(window, batch), tuple(x[:, 0] for x in scores) or None)
                remaining = torch.where((remaining < 0) & stopped, num_codebooks, remaining)
            if remaining is not before:
                speaking, going, mask = standing(remaining, branches)
            if progress is not None:
                progress(speaking)
        grid = torch.stack(window, 1)
        history = torch.cat((state.history, grid[:batch, :-num_codebooks]), 1)[:, -REPETITION_WINDOW:]
        pending = max(0, len(window) - num_codebooks)
        state = GenerationState(
            steps.state,
            grid[:, -num_codebooks:],
            forced,
            remaining,
            history,
            tuple(maps[pending:]),
            tuple(scores[pending:]),
            state.branches,
        )
        return self._finish(grid[:batch], maps, scores, state, output_alignments, config.output_scores)

    def _finish(self, grid, maps, scores, state, output_alignments, output_scores):
        """Undelays the grid (B, W, Q) and cuts every row at its end."""
        codes = undelay(grid)
        ended = grid[:, 1:, 0] == AUDIO_EOS
        ends = torch.where(ended.any(1), ended.int().argmax(1), ended.shape[1]).clamp(max=codes.shape[1])
        longest = int(ends.max())
        inside = torch.arange(longest, device=grid.device) < ends[:, None]
        output = SmallEGenerateOutput(
            sequences=codes[:, :longest].masked_fill(~inside[..., None], NO_CODE), lengths=ends, cache=state
        )
        if output_alignments:
            empty = torch.zeros(len(grid), 0, state.model.text_mask.shape[1], device=grid.device)
            output.alignments = torch.stack(maps, 1)[:, :longest] if maps else empty
        if output_scores and scores:
            output.scores = undelay_steps(torch.stack(scores, 1))[:, :longest]
        return output

    def _speech_config(self, generation_config, kwargs):
        """The generation configuration of this call."""
        defaults = generation_config if generation_config is not None else self.generation_config
        return speech_config(defaults, kwargs, self.config.frame_rate)

    def _check_state(self, state, config, output_alignments):
        """Refuses to go on with what the former call did not begin."""
        steps = state.grid.shape[1] - 1
        begun = {
            "guidance_scale": config.guidance_scale == 1 or "guidance_scale" in state.branches,
            "voice_guidance_scale": config.voice_guidance_scale == 1 or "voice_guidance_scale" in state.branches,
            "output_alignments (and best_of)": not output_alignments or len(state.maps) == steps,
            "output_scores": not config.output_scores or len(state.scores) == steps,
        }
        for name, right in begun.items():
            if not right:
                raise ValueError(f"{name}: the call that cache comes from did not ask for it; ask there too.")

    def _processed(self, logits, history, window, settings, processors):
        """Repetition penalties of every codebook, then the caller's processors on the first: logits (B, Q, V)."""
        batch = len(logits)
        if any(setting.repetition_penalty != 1 for setting in settings):
            recent = torch.stack([*history.unbind(1), *(step[:batch] for step in window)][-REPETITION_WINDOW:], 1)
            logits = torch.stack(
                [
                    penalise_repetition(logits[:, q], recent[..., q], setting.repetition_penalty)
                    for q, setting in enumerate(settings)
                ],
                1,
            )
        if processors:
            first = processors(first_codebook(window, batch), logits[:, 0])
            logits = torch.cat((first[:, None], logits[:, 1:]), 1)
        return logits

    def _start(self, config, input_ids, attention_mask, prompt, heard, unprompted, initial_state, speaker=None):
        """The state of new texts, and of a branch for each guidance, before the first new step."""
        if input_ids is None:
            raise ValueError("generate() needs input_ids (a text) or cache (of a former output).")
        check_text(input_ids, attention_mask, self.config)
        batch = len(input_ids)
        voices = self._recordings(batch, *prompt)
        if speaker is None:
            speaker = self._speaker(batch, voices, *heard)
        else:
            self._check_speaker(speaker, batch, heard[0])
        nobody = None if speaker is None else torch.zeros_like(speaker)
        speakers = [speaker]
        check_initial_state(initial_state, batch)
        texts, prompts, states, branches = [(input_ids, attention_mask)], list(voices), [initial_state], []
        if config.guidance_scale != 1:
            marks = input_ids.new_tensor([self.config.bos_token_id, self.config.eos_token_id])
            texts.append((marks.expand(batch, -1), None))  # a dropped text, as in training
            prompts, states, branches = prompts + voices, [*states, initial_state], [*branches, "guidance_scale"]
            prompted = torch.tensor([[len(voice) > 0] for voice in voices], device=input_ids.device)
            speakers.append(None if speaker is None else speaker * prompted)  # whom no prompt keeps, no text keeps
        if config.voice_guidance_scale != 1:
            if unprompted[0] is None or len(unprompted[0]) != batch:
                raise ValueError(
                    "voice_guidance_scale needs unprompted_input_ids, each text without its prompt's transcript: "
                    "processor(..., unprompted=True) gives them."
                )
            check_text(*unprompted, self.config, "unprompted_")
            texts.append(unprompted)
            prompts, branches = prompts + [voice[:0] for voice in voices], [*branches, "voice_guidance_scale"]
            states.append(None if initial_state is None else torch.zeros_like(initial_state))
            speakers.append(nobody)
        initial_state = None if initial_state is None else torch.cat(states)
        speaker = None if speaker is None else torch.cat(speakers)
        text = join_texts(texts, self.config.pad_token_id)
        return self._read(*text, prompts, tuple(branches), initial_state, speaker)

    def _read(self, input_ids, attention_mask, prompts, branches, initial_state, speaker):
        """Reads texts (G·B, N) and prompts, all but the prompts' last step."""
        num_codebooks, batch = self.config.num_codebooks, len(prompts) // (1 + len(branches))
        grids = [delay(prompt, UNKNOWN) for prompt in prompts]
        longest = max(len(grid) for grid in grids)
        grid = torch.stack(
            [torch.cat((x.new_full((longest - len(x), num_codebooks), AUDIO_PAD), x)) for x in grids]
        )  # left padding: what is to come starts in the same column for every row
        newest = longest - num_codebooks
        start = torch.tensor([longest - len(x) for x in grids], device=input_ids.device)
        mask = torch.arange(newest, device=input_ids.device) >= start[:, None]
        state = self.model.hear(encode_text(self, input_ids, attention_mask, initial_state), speaker)
        if newest:
            steps = start_steps(self, state, False, again=True)
            steps.read(grid[:, :newest], mask)
            state = steps.state
        remaining = torch.full((batch,), -1, device=input_ids.device)
        history = grid[:batch, :newest][:, -REPETITION_WINDOW:]
        return GenerationState(
            state, grid[:, newest : newest + 1], grid[:, newest + 1 :], remaining, history, branches=branches
        )

    @torch.no_grad()
    def encode_speaker(self, speaker_codes, speaker_attention_mask=None):
        """Who speaks, (B, D), for the `speaker` of several calls of `generate()`: undelayed codes of recordings
        (B, P, Q), and their mask (B, P). Raises ValueError for what is no such, and without a speaker encoder."""
        check_recording(speaker_codes, speaker_attention_mask, None, self.config, "speaker")
        rows = len(speaker_codes)
        return self._speaker(rows, self._recordings(rows, None, None), speaker_codes, speaker_attention_mask)

    def _check_speaker(self, speaker, batch, codes):
        """ValueError unless a speaker is (B, D) numbers of this model's encoder, and there are no codes beside it."""
        if not self.config.speaker_layers:
            raise ValueError("speaker=: this model has no speaker encoder and takes voices from prompts: leave it out.")
        if codes is not None:
            raise ValueError("speaker= stands in the place of speaker_codes=: give one of them.")
        check_tensor("speaker", speaker, (batch, self.config.hidden_size), FLOATS, "what encode_speaker() gives", "")

    def _speaker(self, batch, prompts, codes, mask):
        """Who speaks, (B, D): by the recording of each row (B, P, Q), else by its prompt; None without encoder."""
        if not self.config.speaker_layers:
            return self.model.encode_speaker(codes)  # which refuses any
        recordings = self._recordings(batch, codes, mask, "speaker")
        heard = [recording if len(recording) else prompt for recording, prompt in zip(recordings, prompts)]
        padded = torch.nn.utils.rnn.pad_sequence(heard, batch_first=True, padding_value=UNKNOWN)
        return self.model.encode_speaker(padded.clamp(min=0), padded[..., 0] != UNKNOWN)

    def _recordings(self, batch, codes, mask, prefix="audio"):
        """Recordings as a list of (P, Q) codes, one for each text."""
        if codes is None:
            codes = torch.zeros(batch, 0, self.config.num_codebooks, dtype=torch.long, device=self.device)
        check_recording(codes, mask, batch, self.config, prefix)
        mask = torch.ones_like(codes[..., 0]) if mask is None else mask
        return [row[keep.bool()].long() for row, keep in zip(codes, mask)]
