"""Small-E: text encoder -> (audio encoder -> cross-attention -> audio decoder) -> one head per codebook.

Or, with `architecture: decoder-only`, the paper's baseline behind the same call.
"""

import math
import sys
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .cache_smalle import SmallEState, State, split_state
from .configuration_smalle import AUDIO_PAD, NUM_AUDIO_SPECIALS, SmallEConfig
from .decoder_only_smalle import CausalTransformer
from .generation_smalle import SmallEGenerationMixin
from .hub_smalle import HubMixin
from .layers_smalle import CROSS_ATTENTIONS, LinearAttentionBlock, SpeakerEncoder, TransformerLayer, final_norm, rotary
from .validation_smalle import (
    check_delayed,
    check_initial_state,
    check_labels,
    check_maps,
    check_recording,
    check_text,
    rows_of,
    visible,
)

# --- peft: What LoRA adapts by default. PEFT knows targets for the architectures of transformers alone.


# All projections of the audio side, in every mixer and in the decoder-only transformer. The text encoder, the
# cross-attention and the heads stay: they read, and a voice does not change that.
LORA_TARGETS = r"(.*\.)?(audio_encoder|audio_decoder|transformer)\..*\.(q|k|v|g|r|o|in|gate|up|down)_proj"


def register_lora_targets(model_type="smalle"):
    """Enters the targets into PEFT's own table if PEFT (0.19 or later) is in use; `LoraConfig()` then needs none."""
    constants = sys.modules.get("peft.utils.constants")
    table = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    table.setdefault(model_type, LORA_TARGETS)


# --- loss: Cross-entropy of codes, at the cost of two passes over the logits on a CPU.


ROWS = 256  # at a time: what a core's cache holds of them
IGNORED = -100
LOG2E = math.log2(math.e)


class CrossEntropy(torch.autograd.Function):
    """`cross_entropy` of logits (N, V) and labels (N,); keeps the logits and one number a row for the backward pass.

    Powers of 2, since they are the quicker ones: `log_sum` is the logarithm to the base 2 of the sum of exp(logits).
    """

    @staticmethod
    def forward(context, logits, labels):
        log_sum = logits.new_empty(len(logits), 1, dtype=torch.float32)
        for rows, total in zip(logits.split(ROWS), log_sum.split(ROWS)):
            scaled = rows.float() * LOG2E
            top = scaled.amax(-1, keepdim=True)
            torch.add(top, scaled.sub_(top).exp2_().sum(-1, keepdim=True).log2_(), out=total)
        context.save_for_backward(logits, labels, log_sum)
        losses = log_sum / LOG2E - logits.gather(1, labels.clamp(min=0)[:, None]).float()
        return losses[:, 0].masked_fill_(labels == IGNORED, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, d_losses):
        logits, labels, log_sum = context.saved_tensors
        d_losses = d_losses.float().masked_fill(labels == IGNORED, 0)[:, None]
        d_logits, labels = torch.empty_like(logits), labels.clamp(min=0)[:, None]
        parts = (x.split(ROWS) for x in (logits, labels, log_sum, d_losses, d_logits))
        for rows, label, total, gradient, out in zip(*parts):
            share = (rows.float() * LOG2E).sub_(total).exp2_().mul_(gradient)
            out.copy_(share.scatter_add_(1, label, -gradient))
        return d_logits, None


def cross_entropy(logits, labels):
    """Losses in nats, fp32, of logits (..., V) and labels (...); 0 where a label is -100."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or logits.dtype == torch.float64:
        losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten().long(), reduction="none")
        return losses.view(labels.shape)
    return CrossEntropy.apply(logits.flatten(0, -2), labels.flatten().long()).view(labels.shape)


@dataclass
class SmallEModelOutput(ModelOutput):
    """last_hidden_state (B, T, D); cache: `SmallEState`, or `TransformerState` of the decoder-only model.

    attentions: maps (B, T, N) of the text: PACA's two, positions attended first and last, or the one of plain
    cross-attention, or that of the decoder-only model's `alignment_layer`, whose rows may look at the audio too.
    hidden_states: (B, T, D) each, the audio's embeddings, then after each block and the cross-attention, the last one
    normed.
    """

    last_hidden_state: torch.FloatTensor = None
    cache: State | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SmallEOutput(ModelOutput):
    """loss (); logits (B, T, Q, V); the others as in `SmallEModelOutput`."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor = None
    cache: State | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class SmallEPreTrainedModel(HubMixin, PreTrainedModel):
    config_class = SmallEConfig
    config: SmallEConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text", "audio")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "TransformerLayer",
        "LinearAttentionBlock",
        "PositionAwareCrossAttention",
        "PlainCrossAttention",
    ]
    _skip_keys_device_placement = ["cache"]
    _supports_sdpa = True
    _is_stateful = True
    lora_targets = LORA_TARGETS  # what LoraConfig() adapts; name it there if peft is imported after the model is made

    def __init__(self, config):
        super().__init__(config)
        register_lora_targets(config.model_type)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        if hasattr(module, "init_parameters"):
            module.init_parameters()
        branches = getattr(module, "residual_branches", None)
        if branches is not None:
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range / branches**0.5)


class SmallEModel(SmallEPreTrainedModel):
    """Text and delayed audio codes to hidden states."""

    _auto_class = "AutoModel"

    def __init__(self, config):
        super().__init__(config)
        size, self.decoder_only = config.hidden_size, config.architecture == "decoder-only"
        self.text_embedding = nn.Embedding(config.vocab_size, size, config.pad_token_id)
        if not self.decoder_only:
            self.text_encoder = nn.ModuleList(
                TransformerLayer(config, config.text_layers) for _ in range(config.text_layers)
            )
            self.text_norm = final_norm(config, "text", size)
        self.audio_embedding = nn.Embedding(config.num_codebooks * config.audio_vocab_size, size)
        if config.speaker_layers:
            self.speaker_encoder = SpeakerEncoder(config)
        if self.decoder_only:
            self.transformer = CausalTransformer(config)
        else:
            self.audio_encoder = self._blocks(config.audio_encoder_layers)
            self.audio_encoder_norm = final_norm(config, "audio_encoder", size)
            self.cross_attention = CROSS_ATTENTIONS[config.cross_attention](config)
            self.audio_decoder = self._blocks(config.audio_decoder_layers, config.audio_encoder_layers)
            self.audio_norm = final_norm(config, "audio_decoder", size)
        self.gradient_checkpointing = False
        self.post_init()

    def _blocks(self, count, first=0):
        config = self.config
        sizes = config.hidden_size, config.mixer_heads, config.intermediate_size
        return nn.ModuleList(LinearAttentionBlock(config, *sizes, first + n) for n in range(count))

    def get_input_embeddings(self):
        return self.text_embedding

    def set_input_embeddings(self, value):
        self.text_embedding = value

    def encode_speaker(self, speaker_codes, speaker_attention_mask=None):
        """Undelayed codes of a recording (B, P, Q) and their mask (B, P) to a vector of who speaks (B, D); zero for a
        row of which nothing is heard. None without codes. Raises ValueError where the model has no speaker encoder."""
        if speaker_codes is None:
            return None
        if not self.config.speaker_layers:
            raise ValueError(
                "speaker_codes: this model has no speaker encoder and takes voices from prompts: give the processor "
                "what the recording says (audio_text), also where a voice file is made of it."
            )
        mask = torch.ones_like(speaker_codes[..., 0]) if speaker_attention_mask is None else speaker_attention_mask
        embedded = self.embed_audio(speaker_codes.long() + NUM_AUDIO_SPECIALS)
        return self.speaker_encoder(embedded, mask)

    def encode_text(self, input_ids, attention_mask=None, initial_state=None):
        """Text (B, N) to a fresh state. attention_mask (B, N): 1 where there is text, 0 on padding, either side.

        initial_state (B, S): a voice, where the recurrent states begin (`cache_smalle`); else at zero.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, x = mask.bool(), self.text_embedding(input_ids)
        if self.decoder_only:
            if initial_state is not None:
                raise ValueError(
                    "initial_state: a decoder-only transformer has no recurrent state. Use a voice that is a prompt."
                )
            return self.transformer(x, mask)[1]
        steps = torch.arange(x.shape[1], device=x.device)
        cos, sin = rotary(steps, self.config.rotary_size, self.config.rope_theta)
        for layer in self.text_encoder:
            x, _, _ = layer(x, mask[:, None, None], cos, sin)
        keys, values, positions = self.cross_attention.encode_text(self.text_norm(x), mask)
        return self.text_state(mask, keys, values, positions, initial_state)

    def text_state(self, text_mask, text_keys, text_values, positions=None, initial_state=None):
        """The state of a text that was read and that nothing was said for, of its tensors as `SmallEState` has them."""
        steps = text_mask.new_zeros(len(text_mask), dtype=torch.long) if self.config.cross_rotary_size else None
        state = SmallEState(text_keys, text_values, positions, text_mask, steps=steps)
        if initial_state is None:
            return state
        return replace(state, recurrent=split_state(initial_state, self._zero_state(state)))

    def hear(self, state, speaker):
        """The state of a text that a speaker (B, D), of `encode_speaker` or None, is to say.

        A map's weights add up to 1, so a speaker added to all values is added to what each step reads."""
        if speaker is None:
            return state
        return replace(state, text_values=state.text_values + speaker[:, None].to(state.text_values.dtype))

    @torch.no_grad()
    def _zero_state(self, state):
        """The recurrent state of a text that nothing was read for: what a masked step leaves."""
        mask = state.text_mask
        codes = torch.full((len(mask), 1, self.config.num_codebooks), AUDIO_PAD, device=mask.device)
        return self._read(self.embed_audio(codes), torch.zeros_like(codes[..., 0]), state, None)[1].recurrent

    def embed_audio(self, decoder_input_ids):
        """Sum of the codebooks' embeddings: delayed codes (B, T, Q) -> (B, T, D)."""
        config = self.config
        offsets = torch.arange(config.num_codebooks, device=decoder_input_ids.device) * config.audio_vocab_size
        return self.audio_embedding(decoder_input_ids + offsets).sum(2)

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        cache=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        initial_state=None,
        forced_alignments=None,
        speaker_codes=None,
        speaker_attention_mask=None,
        **kwargs,
    ):
        """One pass over delayed audio codes.

        Args:
            input_ids (B, N), attention_mask (B, N): the text; not needed when `cache` is given.
            decoder_input_ids (B, T, Q): delayed codes with special tokens, as embedding indices.
            decoder_attention_mask (B, T): 0 on padding; a padded step leaves every state untouched.
            cache: state of a former call, to go on from there.
            initial_state (B, S): a tuned voice, the state to begin a text in (`cache_smalle`).
            speaker_codes (B, P, Q), speaker_attention_mask (B, P): a recording of the speaker, undelayed codes, for
                models with a speaker encoder; a row of zeros in the mask: nobody's.
            output_attentions, output_hidden_states: see `SmallEModelOutput`.
            forced_alignments (B, T, N), in training: where in the text each step reads, in place of the model's own map; steps
                of zeros are left to it.
            use_cache: return the state. None, for all three: what the configuration says; no state in training.
            return_dict: False gives a tuple of what is not None.

        Raises:
            ValueError for inputs of wrong shape, type or length; on the CPU also for tokens and codes out of range.
        """
        config = self.config
        use_cache = config.use_cache and not self.training if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if decoder_input_ids is None or (input_ids is None) == (cache is None):
            raise ValueError("Give decoder_input_ids and either input_ids (a new text) or cache (its state).")
        if speaker_codes is None and speaker_attention_mask is not None:
            raise ValueError("speaker_attention_mask without speaker_codes: give both, or neither.")
        for name, begins in {"initial_state": initial_state, "speaker_codes": speaker_codes}.items():
            if begins is not None and cache is not None:
                raise ValueError(f"{name}= begins a text, cache= goes on with one: give one of them.")
        if output_attentions and not config.has_alignment:
            raise ValueError(
                "output_attentions=True: a decoder-only transformer without alignment_layer has no map of the text. Leave it "
                "out (and in generate() output_alignments and best_of, which need it)."
            )
        state = cache
        self._check(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            state,
            initial_state,
            forced_alignments,
        )
        if speaker_codes is not None:
            look = visible(speaker_codes, speaker_attention_mask)
            check_recording(speaker_codes, speaker_attention_mask, len(decoder_input_ids), config, "speaker", look)
        x, attentions = self.embed_audio(decoder_input_ids), None
        alone = state is None and initial_state is None and not use_cache and not output_hidden_states
        whole = self.decoder_only and alone and not output_attentions
        speaker = self.encode_speaker(speaker_codes, speaker_attention_mask)
        if state is None and not whole:
            state = self.hear(self.encode_text(input_ids, attention_mask, initial_state), speaker)
        if whole:
            hidden = self._read_whole(input_ids, attention_mask, x, decoder_attention_mask)
        elif self.decoder_only:
            hidden, state, attentions = self.transformer(x, decoder_attention_mask, state, output_attentions)
        else:
            hidden, state, attentions = self._read(x, decoder_attention_mask, state, forced_alignments)
        return SmallEModelOutput(
            last_hidden_state=hidden[-1],
            cache=state if use_cache else None,
            attentions=attentions if output_attentions else None,
            hidden_states=tuple(hidden) if output_hidden_states else None,
        )

    def _check(
        self,
        input_ids,
        attention_mask,
        decoder_input_ids,
        decoder_attention_mask,
        state,
        initial_state,
        forced_alignments,
    ):
        """ValueErrors of `forward`."""
        if state is None:
            check_text(input_ids, attention_mask, self.config, look=visible(input_ids, attention_mask))
            check_initial_state(initial_state, len(input_ids), visible(initial_state))
        batch = len(input_ids) if state is None else rows_of(state, self.config)
        check_delayed(decoder_input_ids, decoder_attention_mask, batch, self.config)
        if self.decoder_only and forced_alignments is not None:
            raise ValueError(
                "forced_alignments: a decoder-only transformer reads by its own attention alone: leave them out."
            )
        if not self.decoder_only:
            check_maps(forced_alignments, (input_ids if state is None else state.text_mask).shape[1], decoder_input_ids)

    def _read_whole(self, input_ids, attention_mask, x, mask):
        """Hidden states (B, T, D) of embedded audio behind its text, where nothing is to be remembered."""
        sequence = torch.cat((self.text_embedding(input_ids), x), 1)
        masks = (attention_mask, input_ids), (mask, x[..., 0])
        mask = torch.cat([torch.ones_like(like, dtype=torch.bool) if m is None else m.bool() for m, like in masks], 1)
        return [hidden[:, input_ids.shape[1] :] for hidden in self.transformer.read_whole(sequence, mask)]

    def _read(self, x, mask, state, forced_alignments):
        """Embedded audio (B, T, D) to hidden states, from the embeddings to the normed output; the state; the maps."""
        blocks = [*self.audio_encoder, self.cross_attention, *self.audio_decoder]
        hidden, after = [x], []
        for block, before in zip(blocks, state.recurrent or [None] * len(blocks)):
            if block is self.cross_attention:
                x = self.audio_encoder_norm(x)
                attended, attentions, recurrent = block(x, state, mask, before, forced_alignments)
                x = x + attended
            else:
                x, recurrent = block(x, mask, before)
            hidden.append(x)
            after.append(recurrent)
        hidden[-1] = self.audio_norm(x)
        steps = state.steps
        if steps is not None:
            steps = steps + (x.shape[1] if mask is None else mask.long().sum(1))
        return hidden, replace(state, recurrent=tuple(after), steps=steps), attentions


class SmallEForTextToSpeech(SmallEPreTrainedModel, SmallEGenerationMixin):
    """Small-E with one head per codebook."""

    _auto_class = "AutoModelForTextToWaveform"
    output_modalities = ("audio",)
    _tied_weights_keys = {"head.weight": "model.audio_embedding.weight"}  # with tie_word_embeddings

    def __init__(self, config):
        super().__init__(config)
        self.model = SmallEModel(config)
        self.head = nn.Linear(config.hidden_size, config.num_codebooks * config.audio_vocab_size, bias=False)
        self.post_init()
        self.generation_config.do_sample = True  # the paper's sampling; a checkpoint's generation_config.json overrides
        self.generation_config.top_k = 100

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        labels=None,
        cache=None,
        use_cache=None,
        output_attentions=None,
        num_items_in_batch=None,
        output_hidden_states=None,
        initial_state=None,
        forced_alignments=None,
        speaker_codes=None,
        speaker_attention_mask=None,
        **kwargs,
    ):
        """As `SmallEModel.forward`; with labels (B, T, Q), -100 ignored, also the mean cross-entropy over them.

        labels[:, t] is what follows decoder_input_ids[:, t]. With `num_items_in_batch` the summed loss is divided by it,
        so that accumulated gradients equal those of one large batch.
        """
        out = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            cache,
            use_cache,
            output_attentions,
            output_hidden_states,
            initial_state,
            forced_alignments,
            speaker_codes,
            speaker_attention_mask,
            return_dict=True,
        )
        logits = self.head(out.last_hidden_state).unflatten(-1, (self.config.num_codebooks, -1))
        loss = None
        if labels is not None:
            check_labels(labels, decoder_input_ids, self.config)
            count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            loss = cross_entropy(logits, labels).sum() / count
        return SmallEOutput(
            loss=loss,
            logits=logits,
            cache=out.cache,
            attentions=out.attentions,
            hidden_states=out.hidden_states,
        )
