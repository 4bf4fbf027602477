"""Trains a model from a recipe, with the Trainer of transformers. smalle.train.model.recipe documents the keys.

  smalle train RECIPE [--resume] [KEY.SUBKEY=VALUE ...]
  torchrun --nproc-per-node N -m smalle.train.model.trainer ...    # several processes; accelerate launch also works

Writes checkpoints to training.output_dir, and at the end the averaged weights, the tokenizer and the recipe.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Trainer, TrainerState, set_seed

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.cli.command import command_parser, run_command
from smalle.modeling_smalle import cross_entropy
from smalle.saving_smalle import os_errors

from ..data.batching import Collator, SpeakerBatchSampler
from ..data.dataset import CodesDataset, speaker_frames
from .audio_samples import AudioSamples
from .augmentation import augment, scheduled_sampling, scheduled_value
from .ema import EMACallback
from .initialization import build_model
from .losses import forced_alignments, forward_sum_loss, window_loss
from .recipe import (
    DataOptions,
    Objective,
    Recipe,
    TrainingOptions,
    find_recipe,
    make_dataclass,
    read_recipe,
    write_recipe,
)
from .time_budget import TimeBudget

STATE_FILE = "trainer_state.json"


def mean_window_loss(attentions: Sequence[Tensor], windows: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """`window_loss`, averaged over the alignments of a model."""
    mask = inputs["decoder_attention_mask"]
    return torch.stack([window_loss(attention, windows, mask) for attention in attentions]).mean()


def mean_forward_sum(attentions: Sequence[Tensor], windows: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """`forward_sum_loss`, averaged over the alignments of a model, in a single pass over time."""
    audio_mask = inputs["decoder_attention_mask"].repeat(len(attentions), 1)
    text_mask = inputs["attention_mask"].repeat(len(attentions), 1)
    return forward_sum_loss(torch.cat(list(attentions)), audio_mask, text_mask)


ALIGNMENT_LOSSES = {"alignment": mean_window_loss, "forward_sum": mean_forward_sum}


class SmallETrainer(Trainer):
    """Minimizes cross-entropy, weighted by codebook, and alignment losses; logs each of them.

    Args:
        sampler: Batches of indices of `train_dataset`.
        eval_sampler: Batches of indices of `eval_dataset`.
        objective: The losses and augmentations; `codebook_weights` must be set.
        time_budget: Time limit, if any. Like `ema`, it must also be one of the callbacks.
        ema: Averaged weights, used by `evaluate`.
    """

    args: TrainingOptions
    model: nn.Module
    objective: Objective

    def __init__(
        self,
        *args,
        objective: Objective,
        sampler: Iterable[Sequence],
        eval_sampler: Sequence[Sequence] = (),
        time_budget: TimeBudget | None = None,
        ema: EMACallback | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.objective, self.sampler, self.eval_sampler = objective, sampler, eval_sampler
        self.time_budget, self.ema = time_budget, ema
        self.model_accepts_loss_kwargs = True  # `compute_loss` handles accumulation and several processes
        self.logged: dict[str, Tensor] = {}  # sums of the parts of the loss since the last log
        self.logged_batches = 0
        weights = {name: getattr(objective, f"{name}_weight") for name in ALIGNMENT_LOSSES}
        self.alignment_weights = {name: weight for name, weight in weights.items() if weight}

    def _loader(self, dataset, sampler) -> torch.utils.data.DataLoader:
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

    def create_scheduler(self, num_training_steps, optimizer=None):
        budget = self.time_budget
        if budget is None:
            return super().create_scheduler(num_training_steps, optimizer)

        def factor(step):  # a function, because a scheduler would save the state of a callable object
            return budget(step)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def progress(self) -> float:
        """Elapsed fraction of the training, by the time budget if there is one."""
        if self.time_budget is not None:
            return self.time_budget.progress
        return self.state.global_step / max(1, self.state.max_steps)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one step, and the number of their labels for each codebook (Q,), over all processes."""
        step = self.state.global_step
        if step and (
            step >= self.state.max_steps or self.progress() >= 1
        ):  # resumed at its end: the Trainer would make another step
            self.control.should_training_stop = True
            return [], None
        batches = list(itertools.islice(epoch_iterator, num_batches))
        counts = sum((batch["labels"] != -100).sum((0, 1)) for batch in batches)
        return batches, self.accelerator.reduce(counts.to(device)) if batches else None

    def _augment(self, model: nn.Module, inputs: dict[str, Tensor], windows: Tensor) -> None:
        """Augments the inputs of a training batch, in place."""
        objective = self.objective
        inputs["decoder_input_ids"] = augment(inputs["decoder_input_ids"], objective)
        if objective.forced_alignment_probability:
            alignments = forced_alignments(windows, inputs["decoder_input_ids"].shape[1])
            rows = torch.rand(len(alignments), 1, 1, device=alignments.device) < objective.forced_alignment_probability
            inputs["forced_alignments"] = alignments * rows
        if self.state.global_step % 2:  # only in every second step, to halve the cost
            fraction = scheduled_value(objective.scheduled_sampling, self.progress())
            if fraction:
                inputs["decoder_input_ids"] = scheduled_sampling(functools.partial(self._call, model), inputs, fraction)

    def _call(self, model: nn.Module, **inputs):
        """model(**inputs); on a CPU without accelerate's copy of all outputs in single precision, which takes a quarter
        of a step: the losses are computed in single precision anyway."""
        forward = getattr(model, "_original_forward", None)
        if forward is None or self.args.device.type != "cpu":
            return model(**inputs)
        with self.accelerator.autocast():
            return forward(**inputs)

    def _losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Summed cross-entropy (Q,) and number of labels (Q,) of each codebook, and mean alignment losses."""
        labels, windows = inputs.pop("labels"), inputs.pop("token_windows")
        if model.training:
            self._augment(model, inputs, windows)
        out = self._call(model, **inputs, output_attentions=bool(self.alignment_weights))
        sums, counts = cross_entropy(out.logits, labels).sum((0, 1)), (labels != -100).sum((0, 1))
        self.num_alignments = len(out.attentions or ())
        alignments = {name: ALIGNMENT_LOSSES[name](out.attentions, windows, inputs) for name in self.alignment_weights}
        return sums, counts, alignments

    def _total(self, codebooks: Tensor, alignments: dict[str, Tensor]) -> Tensor:
        """The total loss, from mean losses of codebooks (Q,) and alignments; counts the forward sum per alignment."""
        weights = torch.tensor(self.objective.codebook_weights, device=codebooks.device)
        loss = (codebooks * weights).sum() / weights.sum()
        times = {"alignment": 1, "forward_sum": self.num_alignments}
        return loss + sum(self.alignment_weights[name] * times[name] * value for name, value in alignments.items())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The share of a batch in the loss of a step; its sum over all batches and processes is the mean loss."""
        if return_outputs:
            raise ValueError("return_outputs=True: expected False; use evaluate().")
        sums, counts, alignments = self._losses(model, inputs)
        totals = counts if num_items_in_batch is None else num_items_in_batch
        codebooks = sums / totals.clamp(min=1)
        alignments = {name: value * counts[0] / totals[0].clamp(min=1) for name, value in alignments.items()}
        for name, value in {**{f"loss_{q}": loss for q, loss in enumerate(codebooks)}, **alignments}.items():
            self.logged[name] = value.detach() + self.logged.get(name, 0)
        self.logged_batches += 1
        return self._total(codebooks, alignments) * self.args.world_size  # DDP averages over processes

    def save_model(self, output_dir: str | None = None, *args, **kwargs):
        with os_errors(Path(output_dir or self.args.output_dir)):
            super().save_model(output_dir, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with os_errors(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def log(self, logs, *args, **kwargs):
        if self.logged and "loss" in logs:
            steps = self.logged_batches / self.args.gradient_accumulation_steps
            means = (self.accelerator.reduce(torch.stack(list(self.logged.values()))) / steps).tolist()
            logs.update({name: round(value, 4) for name, value in zip(self.logged, means)})
            self.logged, self.logged_batches = {}, 0
        super().log(logs, *args, **kwargs)

    def _eval_totals(self, dataset) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over all processes' evaluation data: losses (Q,), labels (Q,), and alignment losses times frames."""
        batches = self.eval_sampler
        mine, turns = batches[self.args.process_index :: self.args.world_size], -(-len(batches) // self.args.world_size)
        totals = torch.zeros(())
        # FSDP needs all processes in every turn: a process without a batch repeats the last one
        for turn, inputs in enumerate(self._loader(dataset, [*mine, batches[-1]][:turns])):
            with self.compute_loss_context_manager():
                sums, counts, alignments = self._losses(self.model_wrapped, self._prepare_inputs(inputs))
            row = torch.cat((sums, counts, *(value[None] * counts[0] for value in alignments.values()))).double()
            totals = totals + row * float(turn < len(mine))
        size = len(sums)
        return self.accelerator.reduce(totals).split([size, size, len(self.alignment_weights)])

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The loss, and loss and perplexity of each codebook, with the averaged weights."""
        started = time.time()
        self.model_wrapped.eval()
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            sums, counts, alignments = self._eval_totals(eval_dataset or self.eval_dataset)
            codebooks = sums / counts.clamp(min=1)
            means = dict(zip(self.alignment_weights, alignments / counts[0].clamp(min=1)))
            values = {"loss": self._total(codebooks, means), **means}
            for q, value in enumerate(codebooks):
                values |= {f"loss_{q}": value, f"perplexity_{q}": value.exp()}
            metrics = {f"{metric_key_prefix}_{name}": round(float(value), 4) for name, value in values.items()}
            self.log({**metrics, f"{metric_key_prefix}_runtime": round(time.time() - started, 2)})
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def check_objective(objective: Objective, config: SmallEConfig) -> Objective:
    """Sets defaults that depend on the model. Raises ValueError for options that the model does not support."""
    weights = objective.codebook_weights or [1.0] * config.num_codebooks
    if len(weights) != config.num_codebooks:
        raise ValueError(f"objective.codebook_weights: expected {config.num_codebooks} numbers, one for each codebook.")
    refused = []
    if not config.has_alignment:
        reason = "a decoder-only model has no alignment unless model.alignment_layer is set"
        refused += [("alignment_weight", reason), ("forward_sum_weight", reason)]
    if config.architecture == "decoder-only":
        refused += [("forced_alignment_probability", "a decoder-only model cannot be given an alignment")]
    if not config.speaker_layers:
        reason = "the model has no speaker encoder; set model.speaker_layers"
        refused += [("voice_swap_probability", reason), ("speaker_dropout", reason)]
    for name, reason in refused:
        if getattr(objective, name):
            raise ValueError(f"objective.{name}={getattr(objective, name)}: expected 0: {reason}.")
    dropout = 0.1 if objective.speaker_dropout is None else objective.speaker_dropout
    return dataclasses.replace(objective, codebook_weights=weights, speaker_dropout=dropout)


def read_data(
    data: DataOptions, config: SmallEConfig, arguments: TrainingOptions, voice_swap_probability: float = 0.0
) -> tuple[CodesDataset, CodesDataset, SpeakerBatchSampler, list]:
    """Training data, evaluation data, training batches of this process, and evaluation batches of all processes."""
    reference = speaker_frames(config, data.speaker_seconds)
    options = config.num_codebooks, config.frame_rate, data.cache_dir, reference
    train = CodesDataset(data.train, *options, voice_swap_probability, data.home_recording_probability)
    evaluation = CodesDataset(data.eval, *options)
    sizes = data.frames_per_batch, int(data.max_seconds * config.frame_rate)
    sampler = SpeakerBatchSampler(
        train.lengths,
        train.speakers,
        *sizes,
        arguments.seed,
        data.single_utterance_probability,
        arguments.process_index,
        arguments.world_size,
        reserved=int(reference > 0),
    )
    eval_batches = SpeakerBatchSampler(evaluation.lengths, evaluation.speakers, *sizes).epoch(0)
    return train, evaluation, sampler, eval_batches[: data.eval_batches]


def build_callbacks(
    recipe: Recipe, model: nn.Module, tokenizer, evaluation: CodesDataset, arguments: TrainingOptions
) -> tuple[EMACallback | None, TimeBudget | None, AudioSamples | None]:
    """Averaged weights, time limit and audio samples; None for those that the recipe does not use."""
    decay, samples = recipe.objective.ema_decay, recipe.samples
    if arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        for name, value in ("objective.ema_decay", decay), ("samples", samples):
            if value:
                raise ValueError(
                    f"{name}: not supported with FSDP, where each process has only a shard of the weights."
                )
    return (
        EMACallback(model, decay) if decay else None,
        TimeBudget(arguments.minutes, arguments.warmup_steps) if arguments.minutes else None,
        AudioSamples(evaluation, tokenizer, arguments.output_dir, samples) if samples else None,
    )


def build_trainer(recipe: Recipe, adapt: Callable[[SmallEForTextToSpeech], nn.Module] | None = None) -> SmallETrainer:
    """Builds the Trainer of a recipe. `adapt` converts the model to the module to train, for example by adding LoRA."""
    data, arguments = recipe.data, make_dataclass(TrainingOptions, recipe.training, "training")
    set_seed(arguments.seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(data.tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.tokenizer={data.tokenizer!r} cannot be loaded: expected a folder that smalle.train.data.tokenizer "
            "wrote, or a Hub name."
        ) from error
    base = build_model(recipe, len(tokenizer))
    config = base.config
    model = adapt(base) if adapt else base
    present = {type(module).__name__ for module in base.modules()}  # layers for FSDP to shard
    base._no_split_modules = [name for name in ("TransformerLayer", "LinearAttentionBlock") if name in present]
    objective = check_objective(recipe.objective, config)
    train, evaluation, sampler, eval_batches = read_data(data, config, arguments, objective.voice_swap_probability)
    ema, time_budget, samples = build_callbacks(recipe, model, tokenizer, evaluation, arguments)
    if arguments.process_index == 0:
        print(
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters; "
            f"{train.lengths.sum() / config.frame_rate / 3600:.1f} hours, {len(sampler.epoch(0))} batches per epoch, "
            f"{sampler.left_out} utterances longer than data.max_seconds, {arguments.world_size} processes",
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
        time_budget=time_budget,
        ema=ema,
        processing_class=tokenizer,
        callbacks=[callback for callback in (ema, time_budget, samples) if callback],
        data_collator=Collator(
            tokenizer, config.num_codebooks, config.frame_rate, objective.text_dropout, objective.speaker_dropout or 0.0
        ),
    )
    if arguments.world_size > 1:  # same weights on all processes, but different dropout
        torch.manual_seed(arguments.seed + arguments.process_index)
    return trainer


def last_checkpoint(trainer: SmallETrainer) -> Path | None:
    """The newest complete checkpoint of a run; None if there is none."""
    files = [STATE_FILE, *(callback.FILE for callback in (trainer.ema, trainer.time_budget) if callback)]
    folders = Path(trainer.args.output_dir).glob("checkpoint-*")
    for folder in sorted(folders, key=lambda folder: int(folder.name.partition("-")[2]), reverse=True):
        try:
            json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # the process was killed while saving
            continue
        if all((folder / name).is_file() for name in files):
            return folder
    return None


def is_finished(trainer: SmallETrainer, checkpoint: Path) -> bool:
    """Whether a run had reached its last step or its time limit at a checkpoint, and has saved its final weights."""
    ended = TrainerState.load_from_json(str(checkpoint / STATE_FILE)).global_step >= trainer.args.max_steps
    if trainer.time_budget:
        trainer.time_budget.resume(checkpoint)
        ended = ended or trainer.time_budget.progress >= 1
    return ended and Path(trainer.args.output_dir, "model.safetensors").is_file()


def train(trainer: SmallETrainer, resume: bool = False) -> bool:
    """Trains and saves the final weights. `resume` continues from the last checkpoint of the run.

    Returns False without training if the run is already finished.
    """
    checkpoint = last_checkpoint(trainer) if resume else None
    if resume and checkpoint is None:
        print(f"{trainer.args.output_dir} has no complete checkpoint: training starts from the beginning.", flush=True)
    if checkpoint and is_finished(trainer, checkpoint):
        print(f"{checkpoint}: training is finished; increase training.max_steps or minutes to continue.", flush=True)
        return False
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()
    return True


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser("smalle train", __doc__)
    parser.add_argument("recipe", help="YAML file, or the name of a recipe of this package, such as smalle-mini")
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUBKEY=VALUE", help="changes a value of the recipe")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in training.output_dir; the result is the same as without interruption",
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = parse(argv)
    recipe = read_recipe(Recipe, arguments.recipe, arguments.overrides)
    trainer = build_trainer(recipe)
    copy = Path(trainer.args.output_dir, find_recipe(arguments.recipe).name)
    trained = train(trainer, arguments.resume)
    if trainer.is_world_process_zero() and (
        trained or not copy.is_file()
    ):  # an earlier run may have been killed before this point
        write_recipe(recipe, copy)
    if trained and trainer.is_world_process_zero() and trainer.state.best_model_checkpoint:
        print(f"best checkpoint: {trainer.state.best_model_checkpoint}, {trainer.state.best_metric}")


if __name__ == "__main__":
    sys.exit(run_command("smalle", main))
