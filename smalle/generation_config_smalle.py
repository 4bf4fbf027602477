"""The generation configuration of one call of generate(): what is taken, what is refused."""

import copy
import math
import numbers

OWN = ("num_return_sequences", "best_of", "guidance_scale", "voice_guidance_scale")  # 1: off
REFUSED = {  # settings of other ways to generate, with the value that switches each off
    "num_beams": 1, "num_beam_groups": 1, "constraints": None, "force_words_ids": None, "diversity_penalty": 0,
    "penalty_alpha": 0, "dola_layers": None, "assistant_model": None, "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None, "use_mtp": None, "typical_p": 1, "top_h": None, "epsilon_cutoff": 0, "eta_cutoff": 0,
    "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None,
    "watermarking_config": None, "exponential_decay_length_penalty": None, "stop_strings": None, "streamer": None,
    "length_penalty": 1, "early_stopping": False, "renormalize_logits": False, "remove_invalid_values": False,
    "token_healing": False, "cache_implementation": None,
}  # fmt: skip

INSTEAD = {  # settings that other models take, and what says it here
    "max_length": "max_new_tokens, which counts new frames", "min_length": "min_new_tokens, which counts new frames",
    "output_attentions": "output_alignments", "output_logits": "output_scores",
    "output_hidden_states": "the model's forward with what was generated",
    "forced_eos_token_id": "max_new_tokens", "forced_bos_token_id": "audio_codes, a prompt",
}  # fmt: skip


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
