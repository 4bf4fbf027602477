"""Small-E: text encoder -> (audio encoder -> Position-Aware Cross-Attention -> audio decoder) -> one head per codebook."""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_smalle import SmallEConfig
from .generation_smalle import SmallEGenerationMixin
from .mixers_smalle import build_mixer


@dataclass
class SmallEState:
    """All that the model needs to go on: a value, never changed in place.

    text_keys, text_values (B, N, D); positions (B, N, d_b); text_mask (B, N) bool, True where there is text;
    recurrent: the state of each block, audio encoder first, then the position block, then the decoder: (B, H, K, V), or
    a tuple of tensors with B rows where the mixer remembers more than one.
    """

    text_keys: torch.FloatTensor
    text_values: torch.FloatTensor
    positions: torch.FloatTensor
    text_mask: torch.BoolTensor
    recurrent: tuple[torch.FloatTensor | tuple[torch.FloatTensor, ...], ...] | None = None

    def map(self, function):
        """The same state with `function` applied to every tensor (select rows, move to a device)."""

        def each(x):
            if isinstance(x, tuple):
                return tuple(each(part) for part in x)
            return None if x is None else function(x)

        return SmallEState(*(each(getattr(self, field.name)) for field in fields(self)))


@dataclass
class SmallEModelOutput(ModelOutput):
    """last_hidden_state (B, T, D); attentions: PACA's two maps (B, T, N), text positions attended first and last."""

    last_hidden_state: torch.FloatTensor = None
    past_key_values: SmallEState | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SmallEOutput(ModelOutput):
    """loss (); logits (B, T, Q, V); attentions as in `SmallEModelOutput`."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor = None
    past_key_values: SmallEState | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, size, intermediate_size):
        super().__init__()
        self.gate_proj = nn.Linear(size, intermediate_size)
        self.up_proj = nn.Linear(size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x, cos, sin):
    """Rotary positions (Su et al. 2021): x (B, H, N, D), cos and sin (N, D/2)."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class TextEncoderLayer(GradientCheckpointingLayer):
    """Non-causal self-attention with rotary positions, then a gated feed-forward layer, pre-norm."""

    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.theta = config.num_attention_heads, config.rope_theta
        self.norm1 = nn.LayerNorm(size, eps=config.norm_eps)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))
        self.o_proj = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size, eps=config.norm_eps)
        self.mlp = GatedMLP(size, config.intermediate_size)
        self.dropout = nn.Dropout(config.dropout)

    def _angles(self, length, head_size, device):
        frequencies = self.theta ** (-torch.arange(0, head_size, 2, device=device).float() / head_size)
        angles = torch.arange(length, device=device).float()[:, None] * frequencies
        return angles.cos(), angles.sin()

    def forward(self, x, mask=None):
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = self._angles(x.shape[1], q.shape[-1], x.device)
        keep = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=keep)
        x = x + self.dropout(self.o_proj(attended.transpose(1, 2).flatten(-2)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class LinearAttentionBlock(GradientCheckpointingLayer):
    """A recurrent sequence mixer, then a gated feed-forward layer, pre-norm: one LCLM block of the paper."""

    def __init__(self, config, hidden_size, num_heads, intermediate_size, index=0):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        self.mixer = build_mixer(config, hidden_size, num_heads, index)
        self.norm2 = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        self.mlp = GatedMLP(hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, mask=None, state=None):
        mixed, state = self.mixer(self.norm1(x), mask, state)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.norm2(x))), state


def sinusoids(mask, size):
    """Position table P (B, N, size) of the text: sines, then cosines; positions count the unmasked tokens from 0."""
    index = (mask.long().cumsum(1) - 1).clamp(min=0)
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, device=mask.device).float() / size)
    angles = index[..., None].float() * frequencies
    return torch.cat((angles.sin(), angles.cos()), -1)


def attention_map(queries, keys, mask):
    """softmax(queries keys^T / sqrt(width)) over the unmasked text, in fp32: (B, T, N)."""
    scores = (queries @ keys.transpose(1, 2)).float() * queries.shape[-1] ** -0.5
    return scores.masked_fill(~mask[:, None, :], torch.finfo(torch.float32).min).softmax(-1)


class PositionAwareCrossAttention(nn.Module):
    """PACA: audio attends to text positions, a recurrent block follows them, positions fetch the text."""

    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.position_size = config.position_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))
        self.q_norm, self.k_norm, self.v_norm = (nn.LayerNorm(size, eps=config.norm_eps) for _ in range(3))
        self.position_block = LinearAttentionBlock(config, self.position_size, 1, 2 * self.position_size)

    def encode_text(self, text, mask):
        """Keys, values (B, N, D) and positions (B, N, d_b) of the encoded text."""
        positions = sinusoids(mask, self.position_size).to(text.dtype)
        return self.k_norm(self.k_proj(text)), self.v_norm(self.v_proj(text)), positions

    def forward(self, x, state, mask=None, recurrent=None):
        """x (B, T, D) -> attended text (B, T, D), the two maps (B, T, N), the state of the position block."""
        keys, values, positions = state.text_keys, state.text_values, state.positions
        first = attention_map(self.q_norm(self.q_proj(x)), keys, state.text_mask)
        attended = first.to(positions.dtype) @ positions  # eq. 5
        located, recurrent = self.position_block(attended, mask, recurrent)  # eq. 7
        last = attention_map(located, positions, state.text_mask)
        return last.to(values.dtype) @ values, (first, last), recurrent  # eq. 8


class SmallEPreTrainedModel(PreTrainedModel):
    config_class = SmallEConfig
    config: SmallEConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text", "audio")
    supports_gradient_checkpointing = True
    _no_split_modules = ["TextEncoderLayer", "LinearAttentionBlock", "PositionAwareCrossAttention"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        if hasattr(module, "init_parameters"):
            module.init_parameters()
        config = self.config
        depth = config.text_layers if isinstance(module, TextEncoderLayer) else (
            config.audio_encoder_layers + config.audio_decoder_layers
        )  # fmt: skip
        if isinstance(module, (TextEncoderLayer, LinearAttentionBlock)):
            std = config.initializer_range / max(1, 2 * depth) ** 0.5  # residual branches start small (GPT-2)
            mixer = module if isinstance(module, TextEncoderLayer) else module.mixer
            for layer in (mixer.o_proj, module.mlp.down_proj):
                init.normal_(layer.weight, mean=0.0, std=std)


class SmallEModel(SmallEPreTrainedModel):
    """Text and delayed audio codes to hidden states."""

    def __init__(self, config):
        super().__init__(config)
        size, width = config.hidden_size, config.intermediate_size
        self.text_embedding = nn.Embedding(config.vocab_size, size, config.pad_token_id)
        self.text_encoder = nn.ModuleList(TextEncoderLayer(config) for _ in range(config.text_layers))
        self.text_norm = nn.LayerNorm(size, eps=config.norm_eps)
        self.audio_embedding = nn.Embedding(config.num_codebooks * config.audio_vocab_size, size)

        def blocks(count, first=0):
            return nn.ModuleList(
                LinearAttentionBlock(config, size, config.mixer_heads, width, first + n) for n in range(count)
            )

        self.audio_encoder = blocks(config.audio_encoder_layers)
        self.cross_attention = PositionAwareCrossAttention(config)
        self.audio_decoder = blocks(config.audio_decoder_layers, config.audio_encoder_layers)
        self.audio_norm = nn.LayerNorm(size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.text_embedding

    def set_input_embeddings(self, value):
        self.text_embedding = value

    def encode_text(self, input_ids, attention_mask=None):
        """Text (B, N) to a fresh state. attention_mask (B, N): 1 where there is text, 0 on padding, either side."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(input_ids.shape)}: they must be equal."
            )
        mask, x = mask.bool(), self.text_embedding(input_ids)
        for layer in self.text_encoder:
            x = layer(x, mask)
        keys, values, positions = self.cross_attention.encode_text(self.text_norm(x), mask)
        return SmallEState(text_keys=keys, text_values=values, positions=positions, text_mask=mask)

    def embed_audio(self, audio_codes):
        """Sum of the codebooks' embeddings: delayed codes (B, T, Q) -> (B, T, D)."""
        config = self.config
        if audio_codes.ndim != 3 or audio_codes.shape[-1] != config.num_codebooks:
            raise ValueError(
                f"audio_codes has shape {tuple(audio_codes.shape)}: expected (batch, frames, {config.num_codebooks})."
            )
        offsets = torch.arange(config.num_codebooks, device=audio_codes.device) * config.audio_vocab_size
        return self.audio_embedding(audio_codes + offsets).sum(2)

    def forward(self, input_ids=None, attention_mask=None, audio_codes=None, audio_attention_mask=None,
                past_key_values=None, use_cache=None, output_attentions=False, **kwargs):  # fmt: skip
        """One pass over delayed audio codes.

        Args:
            input_ids (B, N), attention_mask (B, N): the text; not needed when `past_key_values` is given.
            audio_codes (B, T, Q): delayed codes with special tokens, as embedding indices.
            audio_attention_mask (B, T): 0 on padding; a padded step leaves every state untouched.
            past_key_values: state of a former call, to go on from there.
        """
        if audio_codes is None or (input_ids is None) == (past_key_values is None):
            raise ValueError("Give audio_codes and either input_ids (a new text) or past_key_values (its state).")
        state = self.encode_text(input_ids, attention_mask) if past_key_values is None else past_key_values
        num_blocks = len(self.audio_encoder) + 1 + len(self.audio_decoder)
        before = iter(state.recurrent or [None] * num_blocks)
        after, mask = [], audio_attention_mask
        x = self.embed_audio(audio_codes)
        for block in self.audio_encoder:
            x, recurrent = block(x, mask, next(before))
            after.append(recurrent)
        attended, attentions, recurrent = self.cross_attention(x, state, mask, next(before))
        after.append(recurrent)
        x = x + attended
        for block in self.audio_decoder:
            x, recurrent = block(x, mask, next(before))
            after.append(recurrent)
        state = replace(state, recurrent=tuple(after))
        return SmallEModelOutput(
            last_hidden_state=self.audio_norm(x),
            past_key_values=state if use_cache else None,
            attentions=attentions if output_attentions else None,
        )


class SmallEForTextToSpeech(SmallEPreTrainedModel, SmallEGenerationMixin):
    """Small-E with one head per codebook."""

    output_modalities = ("audio",)

    def __init__(self, config):
        super().__init__(config)
        self.model = SmallEModel(config)
        self.head = nn.Linear(config.hidden_size, config.num_codebooks * config.audio_vocab_size, bias=False)
        self.post_init()
        self.generation_config.do_sample = True  # the paper's sampling; a checkpoint's generation_config.json overrides
        self.generation_config.top_k = 100

    def forward(self, input_ids=None, attention_mask=None, audio_codes=None, audio_attention_mask=None, labels=None,
                past_key_values=None, use_cache=None, output_attentions=False, num_items_in_batch=None, **kwargs):  # fmt: skip
        """As `SmallEModel.forward`; with labels (B, T, Q), -100 ignored, also the mean cross-entropy over them.

        labels[:, t] is what follows audio_codes[:, t]. With `num_items_in_batch` the summed loss is divided by it,
        so that accumulated gradients equal those of one large batch.
        """
        out = self.model(
            input_ids, attention_mask, audio_codes, audio_attention_mask, past_key_values, use_cache, output_attentions
        )
        logits = self.head(out.last_hidden_state).unflatten(-1, (self.config.num_codebooks, -1))
        loss = None
        if labels is not None:
            if labels.shape != audio_codes.shape:
                raise ValueError(
                    f"labels has shape {tuple(labels.shape)}, audio_codes {tuple(audio_codes.shape)}: must be equal."
                )
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(logits.float().flatten(0, 2), labels.flatten(), reduction=reduction)
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        return SmallEOutput(loss=loss, logits=logits, past_key_values=out.past_key_values, attentions=out.attentions)
