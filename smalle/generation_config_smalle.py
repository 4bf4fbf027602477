"""The generation configuration of one call of generate(): what is taken, what is refused."""

import copy

OWN = ("num_return_sequences", "best_of", "guidance_scale", "voice_guidance_scale")  # 1: off
REFUSED = {  # settings of other ways to generate, with the value that switches each off
    "num_beams": 1, "num_beam_groups": 1, "constraints": None, "force_words_ids": None, "diversity_penalty": 0,
    "penalty_alpha": 0, "dola_layers": None, "assistant_model": None, "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None, "use_mtp": None, "typical_p": 1, "top_h": None, "epsilon_cutoff": 0, "eta_cutoff": 0,
    "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None,
    "watermarking_config": None, "exponential_decay_length_penalty": None, "stop_strings": None, "streamer": None,
}  # fmt: skip


def refuse_other_modes(config, kwargs):
    """ValueError for beam search, assisted decoding and the like: it would be wrong to ignore them."""
    for name, off in REFUSED.items():
        value = kwargs.get(name, getattr(config, name, None))
        if value is not None and value is not False and value != off:
            raise ValueError(
                f"{name}={value!r}: this model is greedy (do_sample=False) or samples (temperature, top_k, top_p, "
                "min_p, repetition_penalty, guidance_scale, num_return_sequences, best_of), nothing else; for more, "
                "give logits_processor= or stopping_criteria= of transformers."
            )


def speech_config(defaults, kwargs, frame_rate):
    """A copy of a GenerationConfig with the settings of this call; ValueError for unknown and wrong ones."""
    refuse_other_modes(defaults, kwargs)
    config, kwargs = copy.deepcopy(defaults), dict(kwargs)
    own = {name: kwargs.pop(name, getattr(config, name, None)) for name in OWN}
    unknown = sorted(name for name, value in config.update(**kwargs).items() if name not in REFUSED or value)
    if unknown:
        raise ValueError(f"generate() does not know {unknown}; see its documentation for what it takes.")
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
    if config.guidance_scale < 0 or config.voice_guidance_scale < 0:
        raise ValueError(
            f"guidance_scale={config.guidance_scale}, voice_guidance_scale={config.voice_guidance_scale}: expected "
            "0 or more; 1 is no guidance."
        )
    return config
