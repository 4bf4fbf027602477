"""Small-E: text encoder -> (audio encoder -> cross-attention -> audio decoder) -> one head for each codebook."""

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .attention_smalle import (
    CROSS_ATTENTIONS,
    LinearAttentionBlock,
    SpeakerEncoder,
    TransformerLayer,
    final_norm,
    rotary,
)
from .cache_smalle import SmallEState, State, TransformerState, split_state
from .configuration_smalle import AUDIO_PAD, NUM_AUDIO_SPECIALS, SmallEConfig
from .generation_smalle import SmallEGenerationMixin
from .saving_smalle import HubMixin, errors_name_the_file
from .validation_smalle import check_finite, check_forward, check_labels

# What LoRA adapts by default: all projections of the audio side, in every mixer and in the decoder-only transformer,
# but not the text encoder, the cross-attention and the heads: how text is read does not depend on the voice.
LORA_TARGETS = r"(.*\.)?(audio_encoder|audio_decoder|transformer)\..*\.(q|k|v|g|r|o|in|gate|up|down)_proj"
ROWS = 256  # rows of logits that are processed at once, to fit into the cache of a CPU core
IGNORED = -100
LOG2E = math.log2(math.e)


def register_lora_targets(model_type: str = "smalle"):
    """Adds the targets to PEFT's table of architectures if PEFT (0.19 or later) is imported, so that `LoraConfig()`
    needs no target_modules."""
    constants = sys.modules.get("peft.utils.constants")
    table = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    table.setdefault(model_type, LORA_TARGETS)


# --- Loss


class CrossEntropy(torch.autograd.Function):
    """`cross_entropy` of logits (N, V) and labels (N,) in two passes over the logits, where most of the time is spent.

    Keeps the logits and one number per row for the backward pass. Uses powers of 2, which are faster: `log_sum` is the
    base-2 logarithm of the sum of exp(logits).
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
            weighted = (rows.float() * LOG2E).sub_(total).exp2_().mul_(gradient)
            out.copy_(weighted.scatter_add_(1, label, -gradient))
        return d_logits, None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses in nats, fp32, of logits (..., V) and labels (...); 0 where a label is -100."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or logits.dtype == torch.float64:
        losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten().long(), reduction="none")
        return losses.view(labels.shape)
    return CrossEntropy.apply(logits.flatten(0, -2), labels.flatten().long()).view(labels.shape)


# --- Models


@dataclass
class SmallEModelOutput(ModelOutput):
    """last_hidden_state (B, T, D); cache: `SmallEState`, or `TransformerState` of the decoder-only model.

    attentions: alignments (B, T, N) with the text: the two of PACA (before and after its position block), the one of
    plain cross-attention, or that of the decoder-only model's `alignment_layer`, which may also attend to the audio.
    hidden_states: (B, T, D) each: the audio embeddings, then the output of each block and of the cross-attention; the
    last one is normed.
    """

    last_hidden_state: Tensor | None = None
    cache: State | None = None
    attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class SmallEOutput(ModelOutput):
    """loss (); logits (B, T, Q, V); other fields as in `SmallEModelOutput`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: State | None = None
    attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SmallEPreTrainedModel(HubMixin, PreTrainedModel):
    config_class = SmallEConfig
    config: SmallEConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["text", "audio"]
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
    lora_targets = (
        LORA_TARGETS  # to build a LoraConfig before a model, whose constructor registers the targets with PEFT
    )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, but by default only from safetensors files (nothing is unpickled). Raises ValueError for
        weights with NaN or infinity, and for damaged files."""
        kwargs.setdefault("use_safetensors", True)
        with errors_name_the_file(pretrained_model_name_or_path, "", kwargs):
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        check_finite(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def __init__(self, config: SmallEConfig):
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
    """Computes hidden states of a text and delayed audio codes."""

    _auto_class: Any = "AutoModel"

    def __new__(cls, config: SmallEConfig | None = None, *args, **kwargs):
        """With `architecture: decoder-only`, creates the paper's baseline, which has the same interface."""
        baseline = cls is SmallEModel and getattr(config, "architecture", None) == "decoder-only"
        return super().__new__(SmallEDecoderOnlyModel if baseline else cls)

    def __init__(self, config: SmallEConfig):
        super().__init__(config)
        self.text_embedding = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.audio_embedding = nn.Embedding(config.num_codebooks * config.audio_vocab_size, config.hidden_size)
        self._make_layers(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _make_layers(self, config: SmallEConfig):
        size, depth, layers = config.hidden_size, config.text_layers, config.audio_encoder_layers
        self.text_encoder = nn.ModuleList(TransformerLayer(config, depth) for _ in range(depth))
        self.text_norm = final_norm(config, "text", size)
        if config.speaker_layers:
            self.speaker_encoder = SpeakerEncoder(config)
        sizes = size, config.mixer_heads, config.intermediate_size
        blocks = [LinearAttentionBlock(config, *sizes, n) for n in range(layers + config.audio_decoder_layers)]
        self.audio_encoder = nn.ModuleList(blocks[:layers])
        self.audio_encoder_norm = final_norm(config, "audio_encoder", size)
        self.cross_attention = CROSS_ATTENTIONS[config.cross_attention](config)
        self.audio_decoder = nn.ModuleList(blocks[layers:])
        self.audio_norm = final_norm(config, "audio_decoder", size)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_embedding

    def set_input_embeddings(self, value: Any):
        self.text_embedding = value

    def embed_audio(self, decoder_input_ids: Tensor) -> Tensor:
        """Sum of the codebooks' embeddings: delayed codes (B, T, Q) -> (B, T, D)."""
        config = self.config
        offsets = torch.arange(config.num_codebooks, device=decoder_input_ids.device) * config.audio_vocab_size
        return self.audio_embedding(decoder_input_ids + offsets).sum(2)

    def encode_speaker(
        self, speaker_codes: Tensor | None, speaker_attention_mask: Tensor | None = None
    ) -> Tensor | None:
        """The speaker embedding (B, D) of a reference recording: undelayed codes (B, P, Q) and their mask (B, P).

        Zero for a row without frames; None without codes. Except in training, embeddings far from those that the model
        learned are moved closer to them (`speaker_limits`). Raises ValueError if the model has no speaker encoder.
        """
        if speaker_codes is None:
            return None
        if not self.config.speaker_layers:
            raise ValueError(
                "speaker_codes: this model has no speaker encoder, so a recording needs its transcript: give it to the "
                "processor as audio_text, also when you make a voice file."
            )
        mask = torch.ones_like(speaker_codes[..., 0]) if speaker_attention_mask is None else speaker_attention_mask
        embeddings = self.speaker_encoder(self.embed_audio(speaker_codes.long() + NUM_AUDIO_SPECIALS), mask)
        if self.training or self.config.speaker_limits is None:
            return embeddings
        furthest, typical = self.config.speaker_limits
        center = embeddings.new_tensor(self.config.speaker_center)
        offsets = embeddings - center
        distances = offsets.norm(dim=-1, keepdim=True)
        unknown = (distances > furthest) & mask.any(1, keepdim=True)
        return torch.where(unknown, center + offsets * (typical / distances), embeddings)

    def add_speaker(self, state: SmallEState, speaker_embeddings: Tensor | None) -> SmallEState:
        """Adds speaker embeddings (B, D) of `encode_speaker` to the state of a text; None changes nothing.

        The embedding is added to all values. Since the weights of an alignment add up to 1, this adds it to what each
        step attends to.
        """
        if speaker_embeddings is None:
            return state
        return replace(state, text_values=state.text_values + speaker_embeddings[:, None].to(state.text_values.dtype))

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, initial_state: Tensor | None = None
    ) -> SmallEState:
        """The state of a new text (B, N), before its first step.

        attention_mask (B, N): 0 on padding, on either side; initial_state (B, S): a tuned voice (`cache_smalle`).
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, x = mask.bool(), self.text_embedding(input_ids)
        positions = torch.arange(x.shape[1], device=x.device)
        cos, sin = rotary(positions, self.config.rotary_size, self.config.rope_theta)
        for layer in self.text_encoder:
            x, _, _ = layer(x, mask[:, None, None], cos, sin)
        keys, values, places = self.cross_attention.encode_text(self.text_norm(x), mask)
        return self.text_state(mask, keys, values, places, initial_state)

    def text_state(
        self,
        text_mask: Tensor,
        text_keys: Tensor,
        text_values: Tensor,
        positions: Tensor | None = None,
        initial_state: Tensor | None = None,
    ) -> SmallEState:
        """The state of an encoded text, from its tensors (see `SmallEState`)."""
        steps = text_mask.new_zeros(len(text_mask), dtype=torch.long) if self.config.cross_rotary_size else None
        state = SmallEState(text_keys, text_values, positions, text_mask, steps=steps)
        if initial_state is None:
            return state
        return replace(state, recurrent=split_state(initial_state, self._zero_state(state)))

    @torch.no_grad()
    def _zero_state(self, state: SmallEState) -> tuple[Any, ...]:
        """The recurrent state before the first step, as a masked step leaves it."""
        mask = state.text_mask
        codes = torch.full((len(mask), 1, self.config.num_codebooks), AUDIO_PAD, device=mask.device)
        return self._read(self.embed_audio(codes), torch.zeros_like(codes[..., 0]), state)[1].recurrent

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: State | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        initial_state: Tensor | None = None,
        forced_alignments: Tensor | None = None,
        speaker_codes: Tensor | None = None,
        speaker_attention_mask: Tensor | None = None,
        **kwargs,
    ) -> SmallEModelOutput:
        """One pass over delayed audio codes.

        Args:
            input_ids (B, N), attention_mask (B, N): the text; not needed when `cache` is given.
            decoder_input_ids (B, T, Q): delayed codes with special tokens (`generation_smalle.delay`).
            decoder_attention_mask (B, T): 0 on padding; a padded step does not change any state.
            cache: the state of an earlier call, to continue from.
            use_cache: return the state. None (here and below): as configured; no state in training.
            output_attentions, output_hidden_states: see `SmallEModelOutput`.
            initial_state (B, S): a tuned voice, the recurrent state before the first step (`cache_smalle`).
            forced_alignments (B, T, N), in training: replaces the model's own alignment, except in steps that are all
                zeros.
            speaker_codes (B, P, Q), speaker_attention_mask (B, P): a reference recording, undelayed codes, for models
                with a speaker encoder; a row of zeros in the mask: no speaker.
            return_dict: False returns a tuple of the fields that are not None.

        Raises:
            ValueError for inputs of a wrong shape, type or length; on the CPU also for tokens and codes out of range.
        """
        config = self.config
        use_cache = config.use_cache and not self.training if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        check_forward(
            config,
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            cache=cache,
            initial_state=initial_state,
            forced_alignments=forced_alignments,
            speaker_codes=speaker_codes,
            speaker_attention_mask=speaker_attention_mask,
            output_attentions=output_attentions,
        )
        needs_state = cache is not None or use_cache or output_attentions or output_hidden_states
        if input_ids is not None:
            cache = self.encode_text(input_ids, attention_mask, initial_state)
            cache = self.add_speaker(cache, self.encode_speaker(speaker_codes, speaker_attention_mask))
        audio = self.embed_audio(decoder_input_ids)  # type: ignore[arg-type]
        hidden, cache, attentions = self._read(
            audio, decoder_attention_mask, cache, forced_alignments, output_attentions, needs_state
        )
        return SmallEModelOutput(
            last_hidden_state=hidden[-1],
            cache=cache if use_cache else None,
            attentions=attentions if output_attentions else None,
            hidden_states=tuple(hidden) if output_hidden_states else None,
        )

    def _read(self, audio, mask, state, forced_alignments=None, output_attentions=False, needs_state=True):
        """Hidden states of embedded audio (B, T, D), from the embeddings to the normed output; the state; alignments.

        output_attentions, needs_state: whether alignments and state are needed; ignored here, where they are free.
        """
        x, hidden, after = audio, [audio], []
        blocks = [*self.audio_encoder, self.cross_attention, *self.audio_decoder]
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


# --- The paper's baseline: a decoder-only transformer over one causal sequence, text first, then delayed audio frames


def causal_mask(mask: Tensor, new: int) -> Tensor:
    """The attention mask of the last `new` of S steps: mask (B, S) bool -> (B, 1, new, S).

    A step attends to itself and to earlier steps, but not to padding; a padded step attends to itself, since a softmax
    needs at least one entry.
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    now = steps[mask.shape[1] - new :, None]
    return (mask[:, None] & (steps <= now) | (steps == now))[:, None]


class CausalTransformer(nn.Module):
    """Layers with rotary positions, which count unmasked steps. A state holds the keys and values of earlier steps."""

    def __init__(self, config: SmallEConfig):
        super().__init__()
        self.config, depth = config, config.decoder_layers
        self.layers = nn.ModuleList(TransformerLayer(config, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary(positions, self.config.rotary_size, self.config.rope_theta)

    def forward(
        self, x: Tensor, mask: Tensor, state: TransformerState, output_attentions: bool = False
    ) -> tuple[list[Tensor], TransformerState, tuple[Tensor] | None]:
        """x (B, T, D), mask (B, T) bool -> hidden states (B, T, D), from the embeddings to the normed output; the new
        state; the alignment (B, T, N) by the first head of `alignment_layer`."""
        whole = torch.cat((state.mask, mask), 1)
        positions = (whole.long().cumsum(1) - 1)[:, state.mask.shape[1] :]
        cos, sin = self._rotary(positions[:, None])
        visible, hidden, keys, values, attentions = causal_mask(whole, x.shape[1]), [x], [], [], None
        for n, (layer, old_keys, old_values) in enumerate(zip(self.layers, state.keys, state.values)):
            aligns = output_attentions and n == self.config.alignment_layer
            x, k, v, *attention = layer(x, visible, cos, sin, old_keys, old_values, aligns)
            if aligns:
                attentions = (attention[0][..., : state.text_mask.shape[1]],)
            hidden.append(x)
            keys.append(k)
            values.append(v)
        hidden[-1] = self.norm(x)
        return hidden, TransformerState(tuple(keys), tuple(values), whole, state.text_mask), attentions

    def forward_without_state(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """As `forward` from the beginning, without reading or returning a state: twice as fast.

        Padding is moved to the end, where causality hides it, so attention needs no mask and its kernels skip half of
        the work. Hidden states of padded steps are meaningless.
        """

        def gather(x, order):
            return x.gather(1, order[..., None].expand_as(x))

        order = (~mask).long().argsort(dim=1, stable=True)
        cos, sin = self._rotary(torch.arange(x.shape[1], device=x.device))
        hidden = [gather(x, order)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], None, cos, sin)[0])
        hidden[-1] = self.norm(hidden[-1])
        back = order.argsort(dim=1)
        return [gather(x, back) for x in hidden]


class SmallEDecoderOnlyModel(SmallEModel):
    """The paper's baseline, which `SmallEModel(config)` creates for that architecture. See `SmallEModel` for the
    methods."""

    def _make_layers(self, config: SmallEConfig):
        self.transformer = CausalTransformer(config)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, initial_state: Tensor | None = None
    ) -> TransformerState:
        if initial_state is not None:
            raise ValueError(
                "initial_state: a decoder-only transformer has no recurrent state. Use a recording with its transcript."
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, nothing = mask.bool(), (None,) * self.config.decoder_layers
        return TransformerState(nothing, nothing, mask[:, :0], mask, self.text_embedding(input_ids))

    def _read(self, audio, mask, state, forced_alignments=None, output_attentions=False, needs_state=True):
        mask = audio.new_ones(audio.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        if not needs_state:
            text, whole = state.text_mask, torch.cat((state.text_mask, mask), 1)
            hidden = self.transformer.forward_without_state(torch.cat((state.unread_text, audio), 1), whole)
            return [x[:, text.shape[1] :] for x in hidden], None, None
        if state.unread_text is not None:
            state = self.transformer(state.unread_text, state.text_mask, state)[1]
        return self.transformer(audio, mask, state, output_attentions)


# --- The model with its heads


class SmallEForTextToSpeech(SmallEPreTrainedModel, SmallEGenerationMixin):
    """Small-E with one head for each codebook."""

    _auto_class: Any = "AutoModelForTextToWaveform"
    output_modalities = ("audio",)
    _tied_weights_keys = {"head.weight": "model.audio_embedding.weight"}  # with tie_word_embeddings

    def __init__(self, config: SmallEConfig):
        super().__init__(config)
        self.model = SmallEModel(config)
        self.head = nn.Linear(config.hidden_size, config.num_codebooks * config.audio_vocab_size, bias=False)
        self.post_init()
        self.generation_config.do_sample = True  # the paper's sampling; a checkpoint's generation_config.json overrides
        self.generation_config.top_k = 100

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: State | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> SmallEOutput:
        """As `SmallEModel.forward`, with the same arguments, plus logits and loss.

        Args:
            labels (B, T, Q): the code that follows each step of decoder_input_ids, or -100 to ignore a position; the
                loss is the mean cross-entropy over them.
            num_items_in_batch: the divisor of the summed loss instead of the number of labels, so that accumulated
                gradients equal those of one large batch.
        """
        text, audio = (input_ids, attention_mask), (decoder_input_ids, decoder_attention_mask)
        out = self.model(*text, *audio, cache=cache, return_dict=True, **kwargs)
        logits = self.head(out.last_hidden_state).unflatten(-1, (self.config.num_codebooks, -1))
        loss = None
        if labels is not None:
            check_labels(labels, decoder_input_ids, self.config)
            count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            loss = cross_entropy(logits, labels).sum() / count
        return SmallEOutput(
            loss=loss, logits=logits, cache=out.cache, attentions=out.attentions, hidden_states=out.hidden_states
        )
