"""Trains Small-E with the Trainer of transformers.

usage: python -m smalle.train.model.trainer RECIPE.yaml [key.subkey=value ...] [--resume]

The recipe has four parts: `model` (fields of SmallEConfig), `data`, `objective`, `training` (TrainingArguments, and
`minutes`, which ends the run and paces its learning rate by the clock instead of by steps), and may have `samples`
(smalle.train.model.samples). torchrun and accelerate launch start several processes.
It may name an `init` checkpoint to start from; layers that `model` has beyond those begin as nothing, so that it speaks
as before. With `anew`, parts of it that are not taken, `model` may change them. The averaged weights, the tokenizer and
the recipe end up in training.output_dir; `--resume` goes on from its last checkpoint and gives what an uninterrupted
run gives.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import sys
import time

import torch
import yaml
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.hub_smalle import write_text
from smalle.modeling_smalle import cross_entropy

from ..data.dataset import CodesDataset, Collator, SpeakerBatchSampler, heard_frames
from .augmentation import corrupt, scheduled, scheduled_sampling
from .clock import Clock
from .ema import EMACallback
from .losses import forward_sum_loss, timed_maps, window_loss
from .samples import Samples


def mean_window_loss(attentions, windows, inputs):
    """`window_loss`, the mean over maps."""
    return sum(window_loss(one, windows, inputs["decoder_attention_mask"]) for one in attentions) / len(attentions)


def mean_forward_sum(attentions, windows, inputs):
    """`forward_sum_loss`, the mean over maps, with one pass over time for all."""
    masks = (inputs[name].repeat(len(attentions), 1) for name in ("decoder_attention_mask", "attention_mask"))
    return forward_sum_loss(torch.cat(attentions), *masks)


MAP_LOSSES = {"alignment": mean_window_loss, "forward_sum": mean_forward_sum}


KEYS = {  # what the parts of a recipe may hold; the Trainer and the model check theirs
    "data": {
        "tokenizer",
        "train",
        "eval",
        "cache",
        "frames_per_batch",
        "max_seconds",
        "single",
        "eval_batches",
        "speaker_seconds",
    },
    "objective": {
        "codebook_weights",
        "alignment_weight",
        "forward_sum_weight",
        "forced_alignment_probability",
        "text_dropout",
        "speaker_dropout",
        "voice_swap_probability",
        "audio_dropout",
        "span_replacement",
        "span_replacement_other",
        "scheduled_sampling",
        "ema",
    },
}


class SmallETrainer(Trainer):
    """Cross-entropy weighted by codebook, and losses on the maps of the text (smalle.train.model.losses); logs each part."""

    def __init__(self, *args, sampler=None, eval_sampler=None, objective=None, clock=None, ema=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.sampler, self.eval_sampler, self.objective = sampler, eval_sampler, objective
        self.clock, self.ema = clock, ema
        self.model_accepts_loss_kwargs = True  # the loss is scaled for accumulation and for several processes here
        self.parts, self.part_batches = None, 0
        weights = {name: self.objective.get(f"{name}_weight") for name in MAP_LOSSES}
        self.map_weights = {name: weight for name, weight in weights.items() if weight}

    def _loader(self, dataset, sampler):
        workers = self.args.dataloader_num_workers
        return torch.utils.data.DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def get_train_dataloader(self):
        return self._loader(self.train_dataset, self.sampler)

    def get_eval_dataloader(self, eval_dataset=None):
        return self._loader(eval_dataset or self.eval_dataset, self.eval_sampler)

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.clock is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: self.clock(step),  # which a scheduler does not save
        )
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one step, and the labels of each codebook (Q,) in them, of all processes together."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        counts = sum((batch["labels"] != -100).sum((0, 1)) for batch in batches)
        return batches, self.accelerator.reduce(counts.to(device)) if batches else None

    def _passed(self):
        """Share of the training that has passed, by the clock where there is one."""
        return self.state.global_step / max(1, self.state.max_steps) if self.clock is None else self.clock.spent

    def _losses(self, model, inputs):
        """Cross-entropy summed for each codebook (Q,), labels in it (Q,), and the mean losses on the maps by name."""
        labels, windows = inputs.pop("labels"), inputs.pop("token_windows")
        if model.training:
            inputs["decoder_input_ids"] = corrupt(inputs["decoder_input_ids"], self.objective)
        if model.training and self.objective.get("forced_alignment_probability"):
            maps = timed_maps(windows, labels.shape[1])
            rows = torch.rand(len(maps), 1, 1, device=maps.device) < self.objective["forced_alignment_probability"]
            inputs["forced_alignments"] = maps * rows
        if model.training and self.state.global_step % 2:  # half the cost
            share = scheduled(self.objective.get("scheduled_sampling"), self._passed())
            inputs["decoder_input_ids"] = (
                scheduled_sampling(model, inputs, share) if share else inputs["decoder_input_ids"]
            )
        out = model(**inputs, output_attentions=bool(self.map_weights))
        sums, counts = cross_entropy(out.logits, labels).sum((0, 1)), (labels != -100).sum((0, 1))
        self.num_maps = len(out.attentions or ())
        return sums, counts, {name: MAP_LOSSES[name](out.attentions, windows, inputs) for name in self.map_weights}

    def _total(self, codebooks, maps):
        """The loss of mean losses of the codebooks (Q,) and on the maps; the forward sum counts for each map."""
        weights = torch.tensor(self.objective["codebook_weights"], device=codebooks.device)
        loss = (codebooks * weights).sum() / weights.sum()
        times = {"alignment": 1, "forward_sum": self.num_maps}
        return loss + sum(self.map_weights[name] * times[name] * value for name, value in maps.items())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This batch's part of the loss of the whole step: parts of all batches and processes add up to its mean."""
        if return_outputs:
            raise ValueError("return_outputs=True: expected False; evaluate() computes what this Trainer reports.")
        sums, counts, maps = self._losses(model, inputs)
        totals = counts if num_items_in_batch is None else num_items_in_batch
        codebooks = sums / totals.clamp(min=1)
        maps = {name: value * counts[0] / totals[0].clamp(min=1) for name, value in maps.items()}
        parts = {**{f"loss_{q}": value for q, value in enumerate(codebooks)}, **maps}
        values = torch.stack([value.detach() for value in parts.values()])
        self.parts = values if self.parts is None else self.parts + values
        self.part_names, self.part_batches = list(parts), self.part_batches + 1
        return self._total(codebooks, maps) * self.args.world_size  # whose mean over processes is taken

    def log(self, logs, *args, **kwargs):
        if self.parts is not None and "loss" in logs:
            steps = self.part_batches / self.args.gradient_accumulation_steps
            means = (self.accelerator.reduce(self.parts) / steps).tolist()
            logs.update({name: round(value, 4) for name, value in zip(self.part_names, means)})
            self.parts, self.part_batches = None, 0
        super().log(logs, *args, **kwargs)

    def _eval_totals(self, dataset):
        """Sums over the evaluation batches of all processes: losses (Q,), labels (Q,), and map losses times frames."""
        rank, world, batches = self.args.process_index, self.args.world_size, list(self.eval_sampler)
        mine = list(range(rank, len(batches), world))
        turns = -(-len(batches) // world)  # with FSDP all have to take part in each: who has none repeats the last one
        totals = 0
        for turn, inputs in enumerate(self._loader(dataset, [batches[n] for n in (*mine, len(batches) - 1)[:turns]])):
            with self.compute_loss_context_manager():
                sums, counts, maps = self._losses(self.model_wrapped, self._prepare_inputs(inputs))
            row = torch.cat((sums, counts, *(value[None] * counts[0] for value in maps.values()))).double()
            totals = totals + row * float(turn < len(mine))
        size = self.model.config.num_codebooks
        return self.accelerator.reduce(totals).split([size, size, len(self.map_weights)])

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Loss, and loss and perplexity of each codebook, with the averaged weights."""
        begun = time.time()
        self.model_wrapped.eval()
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            sums, counts, maps = self._eval_totals(eval_dataset or self.eval_dataset)
            codebooks = sums / counts.clamp(min=1)
            maps = {name: value / counts[0].clamp(min=1) for name, value in zip(self.map_weights, maps)}
            metrics = {"loss": self._total(codebooks, maps), **maps}
            for q, value in enumerate(codebooks):
                metrics |= {f"loss_{q}": value, f"perplexity_{q}": value.exp()}
            metrics = {f"{metric_key_prefix}_{name}": round(float(value), 4) for name, value in metrics.items()}
            self.log({**metrics, f"{metric_key_prefix}_runtime": round(time.time() - begun, 2)})
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def read_recipe(path, overrides):
    """The YAML with `key.subkey=value` overrides."""
    recipe = yaml.safe_load(pathlib.Path(path).read_text())
    for override in overrides:
        keys, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r}: expected key.subkey=value.")
        *parents, last = keys.split(".")
        part = recipe
        for key in parents:
            part = part.setdefault(key, {})
        part[last] = yaml.safe_load(value)
    return recipe


def check_keys(recipe):
    """Raises ValueError for a setting that nothing would read."""
    for part, known in KEYS.items():
        for name in recipe[part].keys() - known:
            raise ValueError(f"{part}.{name}: expected one of {', '.join(sorted(known))}.")


def write_recipe(recipe, path, folder):
    """The recipe as it was run, with all overrides, under the name of its file into a folder."""
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    write_text(pathlib.Path(folder, pathlib.Path(path).name), text)


def read_arguments(training):
    """TrainingArguments of the recipe's part `training`."""
    defaults = {"use_cpu": not torch.cuda.is_available(), "ddp_find_unused_parameters": False}
    arguments = TrainingArguments(remove_unused_columns=False, **{**defaults, **training})
    if arguments.save_total_limit == 1:
        raise ValueError(
            "training.save_total_limit=1: expected 2 or more: the older checkpoint is deleted before all "
            "of the newer one is written, and a best one beside the newest."
        )
    return arguments


GROWING = {"text_layers", "audio_encoder_layers", "audio_decoder_layers", "decoder_layers", "speaker_layers"}
FREE = {"dropout", "max_text_tokens", "max_audio_frames", "mixer_kernel", "use_cache"}  # of weights that are trained


def changed(path, changes):
    """The configuration of a checkpoint with some fields changed. ValueError for what is no such field."""
    for name in changes.keys() - SmallEConfig.__annotations__.keys():
        raise ValueError(f"model.{name}: expected a field of SmallEConfig.")
    return SmallEConfig(**{**SmallEConfig.from_pretrained(path).to_dict(), **changes})


def begun_anew(path, parts, changes):
    """A checkpoint with some parts, as "cross_attention", as they are before training; `changes` of its configuration.

    Raises ValueError where it has no such part, or another part would not fit.
    """
    trained = SmallEForTextToSpeech.from_pretrained(path, dtype=torch.float32)
    model = SmallEForTextToSpeech(changed(path, changes))
    unknown = [part for part in parts if not hasattr(model.model, part)]
    if unknown:
        raise ValueError(f"anew: {unknown}: expected parts of the model, as cross_attention or audio_decoder.")
    mine = tuple(f"model.{part}." for part in parts)
    kept = {name: x for name, x in trained.state_dict().items() if not name.startswith(mine)}
    left = [name for names in model.load_state_dict(kept, strict=False) for name in names if not name.startswith(mine)]
    if left:
        raise ValueError(f"anew: with model={changes} {left[0]} would be without weights: name its part too.")
    return model


def grown(path, changes):
    """A checkpoint with `changes` of its configuration that add layers, which begin as nothing: it speaks as before.

    Raises ValueError for other changes that would be heard.
    """
    trained = SmallEForTextToSpeech.from_pretrained(path, dtype=torch.float32)
    config, before = changed(path, changes), trained.config
    new = {name for name in changes if getattr(config, name) != getattr(before, name)}
    if not new:  # it knows its path, which an adapter names as its base
        return trained
    for name in sorted(new - FREE):
        if name not in GROWING or getattr(config, name) < getattr(before, name):
            raise ValueError(
                f"model.{name}={getattr(config, name)!r}: {path} has {getattr(before, name)!r}; expected "
                "that, or more layers; `anew` names parts that are not taken."
            )
    model = SmallEForTextToSpeech(config)
    model.generation_config = trained.generation_config
    missing = model.load_state_dict(trained.state_dict(), strict=False).missing_keys
    for name, module in model.named_modules():
        if hasattr(module, "residual_branches") and f"{name}.weight" in missing:
            torch.nn.init.zeros_(module.weight)
    return model


def build_model(recipe, vocab_size, adapt=None):
    """(the model that is trained, its configuration)"""
    if recipe.get("init") and recipe.get("anew"):
        model = begun_anew(recipe["init"], recipe["anew"], recipe.get("model") or {})
    elif recipe.get("init"):
        model = grown(recipe["init"], recipe.get("model") or {})
    else:
        model = SmallEForTextToSpeech(SmallEConfig(vocab_size=vocab_size, **recipe["model"]))
    config = model.config
    model = adapt(model) if adapt else model
    present = {type(module).__name__ for module in model.modules()}  # FSDP shards these, whose forward is all they do
    model._no_split_modules = [name for name in ("TransformerLayer", "LinearAttentionBlock") if name in present]
    return model, config


def check_objective(objective, config):
    """The objective with its defaults. ValueError where it does not fit the model."""
    objective = {"codebook_weights": [1.0] * config.num_codebooks, **objective}
    if len(objective["codebook_weights"]) != config.num_codebooks:
        raise ValueError(f"objective.codebook_weights: expected {config.num_codebooks} numbers, one for each codebook.")
    for name in ("alignment_weight", "forward_sum_weight"):
        if objective.get(name) and not config.has_alignment:
            raise ValueError(
                f"objective.{name}={objective[name]}: expected 0; a decoder-only transformer has no map "
                "of the text unless model.alignment_layer names the layer that is to have one."
            )
    if objective.get("forced_alignment_probability") and config.architecture == "decoder-only":
        raise ValueError(
            f"objective.forced_alignment_probability={objective['forced_alignment_probability']}: expected 0 of a decoder-only transformer, "
            "which reads by its own attention alone."
        )
    for name in ("voice_swap_probability", "speaker_dropout"):
        if objective.get(name) and not config.speaker_layers:
            raise ValueError(
                f"objective.{name}={objective[name]}: expected 0 of a model without speaker encoder, "
                "which takes voices from the past alone; model.speaker_layers gives it one."
            )
    return objective


def read_data(data, config, arguments, voice_swap_probability=0.0):
    """Codes to train on and to evaluate on, the batches of this process, and those of the evaluation."""
    heard = heard_frames(config, data.get("speaker_seconds", 5.0))
    codes = config.num_codebooks, config.frame_rate, data.get("cache"), heard
    train, evaluation = CodesDataset(data["train"], *codes, voice_swap_probability), CodesDataset(data["eval"], *codes)
    sizes = data["frames_per_batch"], int(data["max_seconds"] * config.frame_rate)
    sampler = SpeakerBatchSampler(
        train.lengths,
        train.speakers,
        *sizes,
        arguments.seed,
        data["single"],
        arguments.process_index,
        arguments.world_size,
        apart=int(heard > 0),
    )
    eval_batches = SpeakerBatchSampler(evaluation.lengths, evaluation.speakers, *sizes).epoch(0)
    return train, evaluation, sampler, eval_batches[: data["eval_batches"]]


def build_callbacks(recipe, model, tokenizer, evaluation, arguments):
    """(average, clock, samples) of a recipe, each None where it asks for none."""
    minutes, decay, samples = recipe["training"].get("minutes"), recipe["objective"]["ema"], recipe.get("samples")
    if arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        for name, value in ("objective.ema", decay), ("samples", samples):
            if value:
                raise ValueError(f"{name}: expected none with FSDP, whose processes hold pieces of the weights.")
    return (
        EMACallback(model, decay) if decay else None,
        Clock(minutes, arguments.warmup_steps) if minutes else None,
        Samples(evaluation, tokenizer, arguments, **samples) if samples else None,
    )


def build_trainer(recipe, adapt=None):
    """The Trainer that a recipe describes; `adapt` makes of its model what is trained in its place."""
    check_keys(recipe)
    data = recipe["data"]
    arguments = read_arguments({key: value for key, value in recipe["training"].items() if key != "minutes"})
    set_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(data["tokenizer"])
    model, config = build_model(recipe, len(tokenizer), adapt)
    objective = check_objective(recipe["objective"], config)
    train, evaluation, sampler, eval_batches = read_data(
        data, config, arguments, objective.get("voice_swap_probability", 0.0)
    )
    ema, clock, samples = build_callbacks(recipe, model, tokenizer, evaluation, arguments)
    if arguments.process_index == 0:
        print(
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters; "
            f"{train.lengths.sum() / config.frame_rate / 3600:.1f} hours, {len(sampler.epoch(0))} batches an epoch, "
            f"{sampler.left_out} utterances too long for data.max_seconds, {arguments.world_size} processes",
            flush=True,
        )
    trainer = SmallETrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=evaluation,
        sampler=sampler,
        eval_sampler=eval_batches,
        objective=objective,
        clock=clock,
        ema=ema,
        processing_class=tokenizer,
        callbacks=[callback for callback in (ema, clock, samples) if callback],
        data_collator=Collator(
            tokenizer,
            config.num_codebooks,
            config.frame_rate,
            objective["text_dropout"],
            objective.get("speaker_dropout", 0.1),
        ),
    )
    if arguments.world_size > 1:
        torch.manual_seed(arguments.seed + arguments.process_index)  # what is dropped differs; the weights are made
    return trainer


def last_checkpoint(trainer):
    """The newest checkpoint that was written to its end; None, and a word about it, where there is none."""
    files = ["trainer_state.json", *(callback.FILE for callback in (trainer.ema, trainer.clock) if callback)]
    folders = pathlib.Path(trainer.args.output_dir).glob("checkpoint-*")
    for folder in sorted(folders, key=lambda folder: int(folder.name.partition("-")[2]), reverse=True):
        try:
            json.loads((folder / files[0]).read_text(encoding="utf-8"))
            if all((folder / name).is_file() for name in files):
                return str(folder)
        except (OSError, ValueError):
            pass  # it was killed meanwhile
    print(f"no whole checkpoint in {trainer.args.output_dir}: begins anew", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_intermixed_args()
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    trainer = build_trainer(recipe)
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer) if arguments.resume else None)
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_recipe(recipe, arguments.recipe, trainer.args.output_dir)
        if trainer.state.best_model_checkpoint:
            print(f"best: {trainer.state.best_model_checkpoint}, {trainer.state.best_metric}")


if __name__ == "__main__":
    sys.exit(main())
