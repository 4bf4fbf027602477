"""The delay pattern, sampling, and generate() for delayed codebooks."""

import copy
from dataclasses import dataclass

import torch
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from .configuration_smalle import AUDIO_HEAD, AUDIO_PAD, AUDIO_TAIL, NUM_AUDIO_SPECIALS

UNKNOWN = -1  # entry of a delayed grid that the model has to fill in
NO_CODE = -1  # fills `sequences` after the end of a row


def delay(codes, end=AUDIO_TAIL):
    """Delayed grid of codes (T, Q): (T + Q, Q), codebook q delayed by q + 1 steps (MusicGen's pattern, Small-E's heads).

    Codes are shifted by the number of special tokens; AUDIO_HEAD stands before a codebook's first code, `end` after
    its last.
    """
    length, num_codebooks = codes.shape
    grid = codes.new_full((length + num_codebooks, num_codebooks), end)
    for q in range(num_codebooks):
        grid[: q + 1, q] = AUDIO_HEAD
        grid[q + 1 : q + 1 + length, q] = codes[:, q] + NUM_AUDIO_SPECIALS
    return grid


def undelay(grid):
    """Inverse of `delay`: grid (B, T + Q, Q) -> codes (B, T, Q). Special tokens come out negative."""
    num_codebooks = grid.shape[-1]
    length = max(0, grid.shape[1] - num_codebooks)
    return torch.stack([grid[:, q + 1 : q + 1 + length, q] for q in range(num_codebooks)], -1) - NUM_AUDIO_SPECIALS


@dataclass
class GenerationState:
    """Where generate() stopped; hand it back as `past_key_values=` to go on.

    model: the model's state; grid (B, W, Q): the last delayed steps, the newest not yet read by the model;
    forced (B, F, Q): steps to come that a prompt has fixed, UNKNOWN where it has not; remaining (B,): steps that a
    row needs to end, 0 when done, -1 while it speaks; maps: alignments of steps whose frames are not complete.
    """

    model: object
    grid: torch.LongTensor
    forced: torch.LongTensor
    remaining: torch.LongTensor
    maps: tuple[torch.FloatTensor, ...] = ()


@dataclass
class SmallEGenerateOutput(ModelOutput):
    """sequences (B, T, Q): new codes, undelayed, -1 after a row's end; lengths (B,): new frames of each row;
    alignments (B, T, N): where in the text each new frame was read, on request; past_key_values: to go on from."""

    sequences: torch.LongTensor = None
    lengths: torch.LongTensor = None
    alignments: torch.FloatTensor | None = None
    past_key_values: GenerationState | None = None


def sample(logits, top_k, temperature, top_p, generator=None):
    """One token of each row of logits (B, V) -> (B,). top_k = 1 is greedy."""
    if top_k == 1:
        return logits.argmax(-1)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        beyond = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= top_p
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def per_codebook(name, value, num_codebooks, default):
    """A setting for every codebook: a number sets the first and leaves `default` for the rest; a list sets each."""
    if not isinstance(value, (list, tuple)):
        return [value] + [default] * (num_codebooks - 1)
    if len(value) != num_codebooks:
        raise ValueError(f"{name}={value!r}: expected one number or a list of {num_codebooks}, one for each codebook.")
    return list(value)


class SmallEGenerationMixin(GenerationMixin):
    """generate() for a model that reads text once and writes delayed codebooks."""

    @torch.no_grad()
    def generate(self, input_ids=None, attention_mask=None, audio_codes=None, audio_attention_mask=None,
                 past_key_values=None, generation_config=None, seed=None, output_alignments=False, progress=None, **kwargs):  # fmt: skip
        """Speaks.

        Args:
            input_ids (B, N), attention_mask (B, N): text; with a prompt, the prompt's transcript and then the text.
            audio_codes (B, P, Q): undelayed codes of a prompt to continue; audio_attention_mask (B, P): 1 on its
                frames, padding on either side.
            past_key_values: that of a former output, in place of all inputs above: goes on where that stopped.
            generation_config, **kwargs: do_sample, top_k, top_p, temperature (a number is for the first codebook,
                the others stay greedy; or a list with one for each codebook), max_new_tokens and min_new_tokens (new
                frames), return_dict_in_generate.
            seed: makes the same speech again; without it the global random state is used.
            output_alignments: return where in the text each frame was read.
            progress: called after each step with the number of rows that still speak.

        Returns:
            codes (B, T, Q), or `SmallEGenerateOutput` with return_dict_in_generate=True.
        """
        config = self._speech_config(generation_config, kwargs)
        settings = self._sampling_settings(config)
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        state = past_key_values
        if state is None:
            state = self._start(input_ids, attention_mask, audio_codes, audio_attention_mask)
        elif input_ids is not None or audio_codes is not None:
            raise ValueError("past_key_values= goes on with a former text: give either that or input_ids and audio_codes.")
        num_codebooks = self.config.num_codebooks
        model_state, forced, remaining = state.model, state.forced, state.remaining
        window, maps = list(state.grid.unbind(1)), list(state.maps)
        while len(window) - num_codebooks < config.max_new_tokens and (remaining != 0).any():
            out = self(audio_codes=window[-1][:, None], audio_attention_mask=(remaining != 0)[:, None],
                       past_key_values=model_state, use_cache=True, output_attentions=output_alignments)  # fmt: skip
            model_state = out.past_key_values
            logits = self._allowed(out.logits[:, -1].float(), remaining, len(window) - 1 < config.min_new_tokens)
            step = torch.stack([sample(logits[:, q], *settings[q], generator) for q in range(num_codebooks)], 1)
            if forced.shape[1]:
                step, forced = torch.where(forced[:, 0] == UNKNOWN, step, forced[:, 0]), forced[:, 1:]
            ending = (remaining < 0) & (step[:, 0] == AUDIO_TAIL)
            remaining = torch.where(ending, num_codebooks - 1, torch.where(remaining > 0, remaining - 1, remaining))
            window.append(step)
            if output_alignments:
                maps.append(out.attentions[-1][:, -1])
            if progress is not None:
                progress(int((remaining < 0).sum()))
        grid = torch.stack(window, 1)
        pending = tuple(maps[max(0, len(window) - num_codebooks) :]) if output_alignments else ()
        state = GenerationState(model_state, grid[:, -num_codebooks:], forced, remaining, pending)
        return self._finish(grid, maps, state, config, output_alignments)

    def _finish(self, grid, maps, state, config, output_alignments):
        """Undelays the grid and cuts every row at its end."""
        codes = undelay(grid)
        ended = grid[:, 1:, 0] == AUDIO_TAIL
        ends = torch.where(ended.any(1), ended.int().argmax(1), ended.shape[1]).clamp(max=codes.shape[1])
        longest = int(ends.max())
        inside = torch.arange(longest, device=grid.device) < ends[:, None]
        codes = codes[:, :longest].masked_fill(~inside[..., None], NO_CODE)
        if not config.return_dict_in_generate:
            return codes
        alignments = torch.stack(maps, 1)[:, :longest] if output_alignments and maps else None
        return SmallEGenerateOutput(sequences=codes, lengths=ends, alignments=alignments, past_key_values=state)

    def _speech_config(self, generation_config, kwargs):
        """The generation configuration of this call; unknown settings are refused."""
        config = copy.deepcopy(generation_config if generation_config is not None else self.generation_config)
        unknown = config.update(**kwargs)
        if unknown:
            raise ValueError(f"generate() does not know {sorted(unknown)}; see its documentation for what it takes.")
        for name, refused in (("num_beams", 1), ("num_return_sequences", 1)):
            if (getattr(config, name, None) or 1) != refused:
                raise ValueError(f"{name}={getattr(config, name)}: this model samples or is greedy, one speech a text.")
        if config.max_new_tokens is None:
            config.max_new_tokens = int(60 * self.config.frame_rate)
        config.min_new_tokens = config.min_new_tokens or 1
        if config.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={config.max_new_tokens}: expected at least one frame.")
        return config

    def _sampling_settings(self, config):
        """(top_k, temperature, top_p) of each codebook."""
        num_codebooks = self.config.num_codebooks
        if config.do_sample is False:
            return [(1, 1.0, 1.0)] * num_codebooks
        top_k = per_codebook("top_k", 100 if config.top_k is None else config.top_k, num_codebooks, 1)
        temperature = per_codebook("temperature", config.temperature or 1.0, num_codebooks, 1.0)
        top_p = per_codebook("top_p", config.top_p or 1.0, num_codebooks, 1.0)
        if min(top_k) < 0 or min(temperature) <= 0 or min(top_p) <= 0:
            raise ValueError(
                f"top_k={top_k}, temperature={temperature}, top_p={top_p}: expected top_k >= 0 (0: no limit), "
                "temperature > 0 and 0 < top_p <= 1."
            )
        return list(zip(top_k, temperature, top_p))

    def _start(self, input_ids, attention_mask, audio_codes, audio_attention_mask):
        """Reads the text and the prompt, all but the prompt's last step."""
        if input_ids is None:
            raise ValueError("generate() needs input_ids (a text) or past_key_values (of a former output).")
        config, (batch, length) = self.config, input_ids.shape
        if length > config.max_text_tokens:
            raise ValueError(f"The text has {length} tokens, the limit is {config.max_text_tokens}: split the text.")
        prompts = self._check_prompts(batch, audio_codes, audio_attention_mask)
        grids = [delay(prompt, UNKNOWN) for prompt in prompts]
        longest = max(len(grid) for grid in grids)
        grid = torch.stack([
            torch.cat((x.new_full((longest - len(x), config.num_codebooks), AUDIO_PAD), x)) for x in grids
        ])  # left padding: what is to come starts in the same column for every row
        newest = longest - config.num_codebooks
        start = torch.tensor([longest - len(x) for x in grids], device=input_ids.device)
        mask = torch.arange(newest, device=input_ids.device) >= start[:, None]
        state = self.model.encode_text(input_ids, attention_mask)
        if newest:
            out = self.model(
                audio_codes=grid[:, :newest], audio_attention_mask=mask, past_key_values=state, use_cache=True
            )
            state = out.past_key_values
        remaining = torch.full((batch,), -1, device=input_ids.device)
        return GenerationState(state, grid[:, newest : newest + 1], grid[:, newest + 1 :], remaining)

    def _check_prompts(self, batch, codes, mask):
        """Prompts as a list of (P, Q) codes, one for each text."""
        config = self.config
        if codes is None:
            empty = torch.zeros(0, config.num_codebooks, dtype=torch.long, device=self.device)
            return [empty] * batch
        if codes.ndim != 3 or codes.shape[0] != batch or codes.shape[-1] != config.num_codebooks:
            raise ValueError(
                f"audio_codes has shape {tuple(codes.shape)}: expected ({batch}, frames, {config.num_codebooks}), "
                "undelayed codes with one prompt for each text."
            )
        if codes.shape[1] > config.max_audio_frames:
            raise ValueError(f"The prompt has {codes.shape[1]} frames, the limit is {config.max_audio_frames}.")
        mask = torch.ones_like(codes[..., 0]) if mask is None else mask
        prompts = [row[keep.bool()] for row, keep in zip(codes, mask)]
        for prompt in prompts:
            if prompt.numel() and (prompt.min() < 0 or prompt.max() >= config.codebook_size):
                raise ValueError(
                    f"audio_codes holds {int(prompt.min())}..{int(prompt.max())}: expected codes of "
                    f"0..{config.codebook_size - 1}. Was the voice made with another codec?"
                )
        return prompts

    def _allowed(self, logits, remaining, too_early):
        """Forbids tokens that cannot come now: (B, Q, V).

        A row ends when its first codebook says AUDIO_TAIL; codebook q follows q steps later.
        """
        num_codebooks = logits.shape[1]
        logits[..., AUDIO_PAD] = logits[..., AUDIO_HEAD] = -torch.inf
        since_end = torch.where(remaining < 0, -1, num_codebooks - remaining)
        tails = torch.arange(num_codebooks, device=logits.device) <= since_end[:, None]
        may_end = torch.zeros_like(tails)
        may_end[:, 0] = remaining < 0
        if too_early:
            may_end[:, 0] = False
        logits[..., AUDIO_TAIL] = logits[..., AUDIO_TAIL].masked_fill(~(may_end | tails), -torch.inf)
        only_tail = torch.full_like(logits, -torch.inf)
        only_tail[..., AUDIO_TAIL] = 0
        return torch.where(tails[..., None], only_tail, logits)
