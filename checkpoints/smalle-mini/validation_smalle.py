"""Checks of inputs. Each raises ValueError that names the value, what was expected and what to do.

Values inside tensors are checked only with `check_values`: once per call of generate(), and in forward() if
`values_are_at_hand`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .configuration_smalle import SmallEConfig
from .saving_smalle import MappedWeights
from .saving_smalle import SamplingSettings as SamplingSettings
from .saving_smalle import sampling_settings as sampling_settings

INTEGERS = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8
FLOATS = torch.float32, torch.float64, torch.float16, torch.bfloat16
DELAYED = "codes + 3 and special tokens, as smalle.generation_smalle.delay makes them"


def values_are_at_hand(*tensors: Any) -> bool:
    """Whether reading values is free: not while a graph is recorded, and not on a GPU, which would synchronize."""
    return not torch.compiler.is_compiling() and all(not torch.is_tensor(x) or x.is_cpu for x in tensors)


def as_tensor(name: str, value: Any) -> Tensor:
    """Converts a caller's value to a tensor. Raises ValueError if that is impossible."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise ValueError(f"{name} is {kind}: expected a tensor, an array or a list of numbers.") from error


def check_tensor(
    name: str,
    x: Any,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    meaning: str,
    hint: str = " The processor makes it.",
):
    """ValueError unless x is a tensor of one of the dtypes and of this shape, where None matches any size."""
    right = torch.is_tensor(x) and x.dtype in dtypes and x.ndim == len(shape)
    if not right or any(size is not None and size != there for size, there in zip(shape, x.shape)):
        got = f"{x.dtype} of shape {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} is {got}: expected {meaning}, a tensor of shape ({wanted}).{hint}")


def check_range(name: str, values: Tensor, size: int, hint: str):
    """ValueError unless all values are between 0 and size - 1."""
    if values.numel() and (values.min() < 0 or values.max() >= size):
        raise ValueError(f"{name} holds {int(values.min())}..{int(values.max())}: expected 0..{size - 1}, {hint}.")


def check_mask(name: str, mask: Any, like: Tensor, check_values: bool = True):
    """ValueError unless mask is None, or has the shape (B, N) of `like` and holds only 0 and 1."""
    if mask is None:
        return
    check_tensor(name, mask, like.shape[:2], (*INTEGERS, *FLOATS, torch.bool), "1 for tokens or frames, 0 for padding")
    if check_values and ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"{name} holds {mask.min()}..{mask.max()}: expected 1 for tokens or frames, 0 for padding.")


def check_text(ids: Any, mask: Any, config: SmallEConfig, check_values: bool = True):
    """ValueError unless ids (B, N) and mask (B, N) are texts that the model can read."""
    check_tensor("input_ids", ids, (None, None), INTEGERS[:2], "token ids")
    check_mask("attention_mask", mask, ids, check_values)
    if not ids.numel() or check_values and mask is not None and not mask.any(1).all():
        raise ValueError(f"input_ids of shape {tuple(ids.shape)} contains a text without tokens: leave that row out.")
    if ids.shape[1] > config.max_text_tokens:
        raise ValueError(f"The text has {ids.shape[1]} tokens; the limit is {config.max_text_tokens}: split the text.")
    if check_values:
        check_range("input_ids", ids, config.vocab_size, "tokens of the processor of this model")


def check_pieces(ids: Any, mask: Any, piece_ids: Any):
    """ValueError unless ids (B, N) and mask (B, N) are texts whose tokens belong to the pieces piece_ids (B, N)."""
    check_tensor("input_ids", ids, (None, None), INTEGERS[:2], "token ids")
    check_mask("attention_mask", mask, ids)
    check_tensor("piece_ids", piece_ids, ids.shape, INTEGERS, "the piece of each token")
    if piece_ids.min() < 0 or not (piece_ids == 1).any(1).all():
        raise ValueError(
            f"piece_ids hold {piece_ids.tolist()}: expected 1, 2, ... for the pieces of each text, else 0."
        )


def _check_audio(name, mask_name, codes, mask, batch, config, meaning, check_values):
    """ValueError unless codes (B, T, Q) and mask (B, T) are tensors of at most `max_audio_frames`."""
    shape = (batch, None, config.num_codebooks)
    check_tensor(name, codes, shape, INTEGERS, f"{meaning}, (batch, frames, {config.num_codebooks})")
    check_mask(mask_name, mask, codes, check_values)
    if codes.shape[1] > config.max_audio_frames:
        raise ValueError(f"{name} has {codes.shape[1]} frames; the limit is {config.max_audio_frames}: shorten it.")


def check_recording(
    codes: Any, mask: Any, batch: int | None, config: SmallEConfig, prefix: str = "audio", check_values: bool = True
):
    """ValueError unless codes (B, P, Q) and mask (B, P) are undelayed codes of recordings, one per text."""
    name, meaning = f"{prefix}_codes", "undelayed codes with one recording for each text"
    _check_audio(name, f"{prefix}_attention_mask", codes, mask, batch, config, meaning, check_values)
    if check_values:
        present = codes if mask is None else codes[mask.bool()]
        check_range(name, present, config.codebook_size, "codes of this model's codec")


def check_initial_state(rows: Any, batch: int, check_values: bool = True):
    """ValueError unless rows (B, S) are finite numbers; the model checks S."""
    if rows is None:
        return
    check_tensor("initial_state", rows, (batch, None), FLOATS, "a tuned voice for each text")
    if check_values and not rows.isfinite().all():
        raise ValueError("initial_state holds NaN or infinity: the tuning of this voice failed, tune it again.")


def check_forward(
    config: SmallEConfig,
    *,
    input_ids: Any,
    attention_mask: Any,
    decoder_input_ids: Any,
    decoder_attention_mask: Any,
    cache: Any,
    initial_state: Any,
    forced_alignments: Any,
    speaker_codes: Any,
    speaker_attention_mask: Any,
    output_attentions: bool,
):
    """Raises the ValueErrors of `SmallEModel.forward`."""
    if decoder_input_ids is None or (input_ids is None) == (cache is None):
        raise ValueError(
            "Pass decoder_input_ids and either input_ids (a new text) or cache (the state of an earlier call)."
        )
    if speaker_codes is None and speaker_attention_mask is not None:
        raise ValueError("speaker_attention_mask without speaker_codes: pass both, or neither.")
    for name, value in {"initial_state": initial_state, "speaker_codes": speaker_codes}.items():
        if value is not None and cache is not None:
            raise ValueError(f"{name}= belongs to a new text, but cache= continues one: pass only one of them.")
    if output_attentions and not config.has_alignment:
        raise ValueError(
            "output_attentions=True: a decoder-only transformer without alignment_layer has no alignment. Leave it "
            "out, and output_alignments and best_of of generate() as well, which need it."
        )
    if forced_alignments is not None and config.architecture == "decoder-only":
        raise ValueError("forced_alignments: a decoder-only transformer does not take them: leave them out.")
    if cache is None:
        check_text(input_ids, attention_mask, config, values_are_at_hand(input_ids, attention_mask))
        check_initial_state(initial_state, len(input_ids), values_are_at_hand(initial_state))
    elif not torch.is_tensor(getattr(cache, "text_mask", None)):
        raise ValueError(
            f"cache is {type(cache).__name__}: expected the cache that this model's forward() returned. (Pass that of "
            "generate() to generate().)"
        )
    text = input_ids if cache is None else cache.text_mask
    codes, mask, meaning = decoder_input_ids, decoder_attention_mask, f"delayed codes, {DELAYED}"
    at_hand = values_are_at_hand(codes, mask)
    _check_audio("decoder_input_ids", "decoder_attention_mask", codes, mask, len(text), config, meaning, at_hand)
    if at_hand:
        check_range("decoder_input_ids", codes, config.audio_vocab_size, DELAYED)
    if forced_alignments is not None:
        shape, meaning = (*codes.shape[:2], text.shape[1]), "where in the text each step reads"
        check_tensor("forced_alignments", forced_alignments, shape, FLOATS, meaning, "")
    if speaker_codes is not None:
        at_hand = values_are_at_hand(speaker_codes, speaker_attention_mask)
        check_recording(speaker_codes, speaker_attention_mask, len(text), config, "speaker", at_hand)


def check_labels(labels: Any, codes: Any, config: SmallEConfig):
    """ValueError unless labels (B, T, Q) fit codes (B, T, Q) and are tokens, or -100 for positions to ignore."""
    check_tensor("labels", labels, codes.shape, INTEGERS, "the codes that follow decoder_input_ids", "")
    if values_are_at_hand(labels):
        check_range("labels", labels[labels != -100], config.audio_vocab_size, "or -100 for positions to ignore")


def check_callables(name: str, value: Any):
    """ValueError unless value is None or a list of callables, such as transformers' processors and criteria."""
    if value is not None and not (isinstance(value, (list, tuple)) and all(map(callable, value))):
        raise ValueError(f"{name}={value!r}: expected a list of {name.replace('_', ' ')} of transformers, or None.")


def check_finite(model: torch.nn.Module):
    """ValueError if a weight holds NaN or infinity: the training failed, or the file is damaged."""
    mapped = MappedWeights()
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if x.is_floating_point() and not x.is_meta and not x.detach().sum(dtype=torch.float32).isfinite():
            raise ValueError(
                f"The weight {name} holds NaN or infinity: download the checkpoint again, or train it again."
            )
        mapped.give_back(x)


def check_complete(info: Mapping[str, Any]):
    """ValueError if the file of a checkpoint lacks weights, which would be random numbers.

    info: the second result of from_pretrained(output_loading_info=True).
    """
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{len(missing)} weights are missing, for example {missing[0]}: download or save the checkpoint again."
        )


def check_seed(seed: Any):
    """ValueError unless seed is None, an integer that a generator takes, or a torch.Generator."""
    if seed is None or isinstance(seed, torch.Generator):
        return
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}: expected an integer of 0 or more, or None.")
