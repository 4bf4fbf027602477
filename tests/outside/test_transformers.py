"""transformers' own test classes on our models, configuration and processor. SKIPS is all that we leave out of them.

What they skip by themselves needs what we have not: an accelerator, image processors, sub-configurations...
"""

import sys
import unittest
import warnings
from unittest import mock

import huggingface_hub
import pytest
import torch
from smalle.train.data.tokenizer import train_tokenizer

from smalle import SmallEConfig, SmallEForTextToSpeech, SmallEModel, SmallEProcessor
from smalle.codec_smalle import SmallECodec, SmallECodecConfig
from smalle.voices_smalle import Voice
from tests.outside import sdist

pytest.importorskip("parameterized", reason="transformers' test classes need the package parameterized")
try:
    sys.path.append(str(sdist.test_classes_folder()))
except sdist.NotAvailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
    from transformers_tests.generation.test_utils import GenerationTesterMixin
    from transformers_tests.test_configuration_common import ConfigTester
    from transformers_tests.test_modeling_common import MODEL_MAPPING_NAMES, ModelTesterMixin, ids_tensor
    from transformers_tests.test_processing_common import ProcessorTesterMixin

SKIPS = {
    "test_attention_outputs": "expects (B, H, N, N) of every layer; ours are maps (B, T, N) from audio to text, see "
    "test_attention_maps_are_distributions_over_the_unmasked_text",
    "PlainCrossAttentionTest.test_retain_grad_hidden_states_attentions": "wants a gradient of the map; ours is the "
    "mean over heads, made for the eye",
    "test_tokenizer_decode_defaults": "batch_decode makes audio of codes, as processors of other speech models do",
    "test_replacement_offsets": "is of images and audio inside a text, which we have not; it takes the first base "
    "class for ProcessorMixin",
    "test_init_arguments_not_in_class_attributes": "codec is a name at construction, then what it names",
    "test_init_arguments_not_in_processor_kwargs": "sampling_rate of the processor is that of what it makes; in a call "
    "it is that of the recording that is given",
}
TINY = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    text_layers=1,
    num_attention_heads=2,
    audio_encoder_layers=1,
    audio_decoder_layers=1,
    decoder_layers=2,
    mixer_heads=2,
    expand_k=0.5,
    expand_v=1.0,
    position_size=16,
    num_codebooks=3,
    codebook_size=20,
    frame_rate=50.0,
)


def without_skips(test_class):
    """The class, with the tests that SKIPS names skipped."""
    for name, reason in SKIPS.items():
        owner, _, test = name.rpartition(".")
        if owner in ("", test_class.__name__) and hasattr(test_class, test):
            setattr(test_class, test, unittest.skip(reason)(getattr(test_class, test)))
    return test_class


@pytest.fixture(scope="module", autouse=True)
def no_hub():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


class ModelTester:
    """What the classes of transformers ask of a model: sizes, and inputs of a forward pass."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads, is_training = 3, 7, 32, 2, 2, True

    def __init__(self, changes):
        self.changes = changes
        self.expected_num_hidden_layers = 3 if changes.get("architecture") else 4  # embeddings, cross-attention

    def get_config(self):
        return SmallEConfig(**{**TINY, **self.changes})

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = ids_tensor([self.batch_size, self.seq_length], config.vocab_size - 3) + 3
        codes = ids_tensor([self.batch_size, self.seq_length, config.num_codebooks], config.audio_vocab_size)
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": codes}


class ModelTests(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (SmallEModel, SmallEForTextToSpeech)
    additional_model_inputs = ["decoder_input_ids"]
    test_can_init_all_missing_weights_before_2023 = True  # it looks for a copyright line to tell a model's age
    changes = {}

    def setUp(self):
        self.model_tester = ModelTester(self.changes)
        known = mock.patch.dict(MODEL_MAPPING_NAMES, smalle="SmallEModel")  # says which class has no loss
        known.start()
        self.addCleanup(known.stop)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        labelled = return_labels and model_class is SmallEForTextToSpeech
        return inputs | {"labels": inputs["decoder_input_ids"].clone()} if labelled else inputs


@without_skips
class SmallEModelTest(ModelTests, unittest.TestCase):
    def test_config(self):
        sizes = ["hidden_size", "num_attention_heads"]
        ConfigTester(self, SmallEConfig, common_properties=sizes, **TINY).run_common_tests()


@pytest.mark.slow
@without_skips
class PlainCrossAttentionTest(ModelTests, unittest.TestCase):
    changes = {"cross_attention": "plain"}


@without_skips
class DecoderOnlyTest(ModelTests, unittest.TestCase):
    changes = {"architecture": "decoder-only"}
    has_attentions = False


@pytest.mark.slow
@without_skips
class Mamba2Test(ModelTests, unittest.TestCase):
    changes = {"mixer": "mamba2"}


@without_skips
class SmallEProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = SmallEProcessor
    codec = SmallECodec(SmallECodecConfig(num_codebooks=3, codebook_size=20, vocos_hidden_size=16))

    @classmethod
    def _setup_tokenizer(cls):
        return train_tokenizer(["The quick brown fox jumps over the lazy dog."] * 3, vocab_size=64)

    @classmethod
    def _setup_from_components(cls):
        processor = super()._setup_from_components()
        processor.codec = cls.codec
        processor.add_voice("anna", Voice(torch.zeros(4, 3, dtype=torch.long), "so."))
        return processor

    @classmethod
    def prepare_processor_dict(cls):
        return {"voices": ["anna"], "default_voice": "anna", "codec_id": cls.codec.identity}

    def prepare_audio_inputs(self, batch_size=None):
        """None: recordings would be heard without their text, which the tiny model does not; the default voice stands
        for them."""
