"""Configuration of Small-E: sizes, special tokens and auto classes."""

from typing import Any

from transformers import PreTrainedConfig

from .saving_smalle import check_expected, check_kinds, check_positive, check_sizes, errors_name_the_file

AUTO_MAP = {
    "AutoConfig": "configuration_smalle.SmallEConfig",
    "AutoModel": "modeling_smalle.SmallEModel",
    "AutoModelForTextToWaveform": "modeling_smalle.SmallEForTextToSpeech",
    "AutoProcessor": "processing_smalle.SmallEProcessor",
}

# The vocabulary of every codebook: three special tokens, then the codes.
AUDIO_PAD, AUDIO_BOS, AUDIO_EOS, NUM_AUDIO_SPECIALS = 0, 1, 2, 3


class SmallEConfig(PreTrainedConfig):
    """Configuration of Small-E (arXiv 2406.04467). The defaults are the paper's shape.

    Args:
        architecture: "small-e", or "decoder-only", the paper's baseline: one causal transformer over text, then audio.
        vocab_size: entries of the text tokenizer.
        hidden_size: width of the text encoder, the audio encoder and the audio decoder.
        intermediate_size: width of the gated feed-forward layers.
        text_layers, num_attention_heads, rope_theta: the non-causal text encoder.
        partial_rotary_factor: share of the channels of a head that rotary positions rotate.
        decoder_layers: layers of the decoder-only transformer. It also uses num_attention_heads, rope_theta and
            alignment_layer, but none of the other fields from here to num_codebooks.
        alignment_layer: of the decoder-only transformer, the layer (from 0) whose first head's attention to the text is
            the model's alignment, which must be trained (`alignment_weight` of a recipe); None: the model has no
            alignment, as in the paper.
        final_norms: the stacks that end in a LayerNorm, any of "text", "audio_encoder", "position" (only without
            `position_gain`, which brings its own norm) and "audio_decoder".
        audio_encoder_layers, audio_decoder_layers: linear-attention blocks before and after the cross-attention.
        mixer: sequence mixer of those blocks and of the position block: "gla", "retnet", "rwkv5" (v5.2), "rwkv6",
            "rwkv7", "mamba", "mamba2" or "gated_deltanet".
        mixer_heads: heads of each mixer in the audio encoder and decoder. Mamba has none; RWKV, Mamba-2 and Gated
            DeltaNet were published with narrower heads (64 to 256 channels) than the paper's GLA.
        mixer_kernel: "auto": flash-linear-attention's kernels on a GPU where it is installed, plain PyTorch elsewhere;
            "torch" or "fla": always that one. It can be changed at any time and is not saved.
        expand_k, expand_v: key and value widths of GLA, RetNet and Gated DeltaNet relative to `hidden_size`; expand_v
            is also the relative inner width of Mamba and Mamba-2. RWKV uses neither.
        gate_low_rank, gate_logit_normalizer: GLA's decay gate, `logsigmoid(low_rank(x)) / normalizer`.
        state_size: state size per channel of Mamba (None: 16) and per head of Mamba-2 (None: 128).
        feed_forward: what follows the mixer: "swiglu", "rwkv" (channel mixing of RWKV v6, 3.5 times as wide as its
            input), or "none".
        conv_size: kernel size of the short convolutions of Mamba, Mamba-2 and Gated DeltaNet.
        cross_attention: "paca" (Position-Aware Cross-Attention), or "plain", multi-head attention (an ablation).
        cross_attention_heads: heads of the plain one (None: num_attention_heads).
        cross_rotary_size: channels of each query and key of the cross-attention that are rotated by rotary positions;
            0: none; plain cross-attention then adds sinusoids to its keys.
        position_size: width d_b of PACA's sinusoidal positions and of the block that processes them (at most 64 in the
            paper).
        position_layers, position_heads, position_intermediate_size: number of those blocks, heads of their mixers and
            width of their feed-forward layers (None: 2 * position_size).
        position_theta: slowest wavelength of those positions, in units of 2 pi tokens.
        position_gain: scale of the normalised output of that block; larger values make the alignment sharper. None:
            neither norm nor scale, as in the paper.
        speaker_layers: transformer layers of the speaker encoder; 0: no speaker encoder; voices are then prompts or
            tuned states, as in the paper.
        speaker_center, speaker_limits: the mean of the speaker embeddings that the model was trained with, and two
            distances from it: a limit and a typical distance. An embedding beyond the limit is moved towards the mean,
            to the typical distance, so that the model speaks in a voice similar to those it knows. None: no limit.
        num_codebooks, codebook_size, frame_rate, sampling_rate: the audio codec; frames and samples per second.
        tie_word_embeddings: share the weights of the head and the audio embedding.
        max_text_tokens, max_audio_frames: limits for one input.

    Raises:
        ValueError for a value of a wrong type, an unknown name, or sizes that do not fit together.
    """

    model_type = "smalle"
    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = ["cache"]

    architecture: str = "small-e"
    vocab_size: int = 256
    hidden_size: int = 512
    intermediate_size: int = 744
    text_layers: int = 9
    num_attention_heads: int = 8
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    decoder_layers: int = 12
    alignment_layer: int | None = None
    audio_encoder_layers: int = 6
    audio_decoder_layers: int = 6
    final_norms: list[str] | tuple[str, ...] = ("text", "audio_decoder")
    mixer: str = "gla"
    mixer_heads: int = 2
    mixer_kernel: str = "auto"
    expand_k: float = 1.0
    expand_v: float = 2.0
    gate_low_rank: int = 16
    gate_logit_normalizer: float = 16.0
    state_size: int | None = None
    conv_size: int = 4
    feed_forward: str = "swiglu"
    cross_attention: str = "paca"
    cross_attention_heads: int | None = None
    cross_rotary_size: int = 0
    position_size: int = 64
    position_layers: int = 1
    position_heads: int = 1
    position_intermediate_size: int | None = None
    position_theta: float = 10000.0
    position_gain: float | None = 8.0
    speaker_layers: int = 0
    speaker_center: list[float] | None = None
    speaker_limits: list[float] | None = None
    num_codebooks: int = 4
    codebook_size: int = 1024
    frame_rate: float = 75.0
    sampling_rate: int = 24000
    dropout: float = 0.0
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    max_text_tokens: int = 4096
    max_audio_frames: int = 65536
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_kinds(self, SmallEConfig.__annotations__)
        self.final_norms = list(self.final_norms)
        self.auto_map = {**AUTO_MAP, **(getattr(self, "auto_map", None) or {})}
        self._check_names()
        self._check_sizes()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers. Raises ValueError that names the file if it is wrong."""
        with errors_name_the_file(pretrained_model_name_or_path, "config.json", kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "mixer_kernel"}

    def _check_names(self):
        known = {
            "architecture": ("small-e", "decoder-only"),
            "cross_attention": ("paca", "plain"),
            "feed_forward": ("swiglu", "rwkv", "none"),
            "mixer_kernel": ("auto", "torch", "fla"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(values)}.")
        stacks = ("text", "audio_encoder", "position", "audio_decoder")
        if not set(self.final_norms) <= set(stacks):
            raise ValueError(f"final_norms={self.final_norms}: expected some of {', '.join(stacks)}.")

    def _check_sizes(self):
        check_positive(self, ("vocab_size", "decoder_layers", "sampling_rate", "max_audio_frames"))
        check_sizes(self)
        baseline, paca = self.architecture == "decoder-only", self.cross_attention == "paca"
        heads = 1 if paca else self.cross_attention_heads or self.num_attention_heads
        width, aligned = self.hidden_size // max(1, heads), self.alignment_layer
        expected = {  # by field
            "alignment_layer": (
                aligned is None or baseline and 0 <= aligned < self.decoder_layers,
                f"None, or a layer, 0 to {self.decoder_layers - 1}, of a decoder-only transformer",
            ),
            "dropout": (0 <= self.dropout <= 1, "0 to 1"),
            "state_size": (self.state_size is None or self.state_size > 0, "a positive number or None"),
            "cross_attention_heads": (heads > 0 and width * heads == self.hidden_size, "a divisor of hidden_size"),
            "cross_rotary_size": (
                self.cross_rotary_size % 2 == 0 and 0 <= self.cross_rotary_size <= width,
                f"an even number, 0 to {width}",
            ),
        }
        if baseline:
            expected["speaker_layers"] = self.speaker_layers == 0, "0 of a decoder-only transformer"
        check_expected(self, expected)

    @property
    def has_alignment(self) -> bool:
        """Whether the model has an alignment of speech and text."""
        return self.architecture == "small-e" or self.alignment_layer is not None

    @property
    def rotary_size(self) -> int:
        """The number of channels of each transformer head that rotary positions rotate."""
        return int(self.hidden_size // self.num_attention_heads * self.partial_rotary_factor)

    @property
    def audio_vocab_size(self) -> int:
        """The number of entries of one codebook, including special tokens."""
        return self.codebook_size + NUM_AUDIO_SPECIALS
