"""Training, from top to bottom in the order in which things happen.

    set up -> data -> model -> loss, optimizer, schedule -> continue a run -> epochs of steps -> export

timm builds the model, the optimizer and the schedule; torchrun starts the processes; the loader says which
batch is next; step.py takes a step. A step is a function of (recipe, data, seed, step) and of what a checkpoint
holds, so a run that is killed continues on its next batch with the numbers it would have had.

Files in the output folder: `checkpoint.pt` (the latest), `metrics.csv` (a line per `log_steps` steps), `epochs.csv` (a
line per epoch, with what was evaluated), `tensorboard/` (both, on request), `bad_samples.jsonl` (a line per sample that was
left out), `init.json` (which weights the run began with) and, when the run has finished, `summary.json` and
`model.safetensors` (the weights alone, for timm).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..loaders.faults import Faults
from ..loaders.labels import LabelSource
from ..loaders.replay import replay_command
from ..loaders.subset import Subset
from ..shards.errors import UsageError
from ..shards.storage import public_name
from ..shards.subset_file import SubsetFile
from .checkpoint import CHECKPOINT_NAME, Checkpoint, load_checkpoint, save_checkpoint, stored_images
from .checks import check_call, check_resume
from .data import open_loaders
from .evaluate import evaluate_model, named_batches
from .head_order import HeadOrder
from .label_space import LabelSpace
from .objective import count_images, create_loss
from .processes import (
    Stopped,
    process_group,
    rng_states,
    set_rng_state,
    state_of_all,
    state_of_one,
    stop_signal,
    sum_of_all,
)
from .progress import Progress, epoch_line, print_to_stderr, run_line, say_nothing, stop_line
from .recipes import Recipe
from .results import (
    BAD_NAME,
    BOARD_NAME,
    EPOCHS_NAME,
    INIT_NAME,
    METRICS_NAME,
    SUMMARY_NAME,
    WEIGHTS_NAME,
    TrainResult,
    write_epochs,
    write_json,
    write_summary,
    write_weights,
)
from .same_call import STEP, check_same_call, facts_of_call, sha256_of_start
from .schedule import create_optimizer, create_schedule
from .start import start_model, with_rate_of_start
from .step import TrainStep
from .steplog import StepLog, board_writer
from .teacher import choose_teacher
from .without_labels import count_without, without_entry

if TYPE_CHECKING:
    from ..loaders.service_client import Connection


def train(
    recipe: Recipe,
    dataset: str,
    *,
    model: str,
    out: str | Path,
    val: str | None = None,
    labels: str | Path | LabelSource | None = None,
    subset: str | Path | SubsetFile | Subset | None = None,
    side: str | Path | None = None,
    connection: Connection | None = None,
    epochs: int | None = None,
    global_batch: int | None = None,
    pretrained: bool = False,
    init_from: str | Path | None = None,
    teacher: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    num_threads: int | None = None,
    max_bad: float = Faults.max_bad,
    check_images: bool = False,
    compile: bool = False,
    tensorboard: bool = False,
    log_steps: int = 10,
    checkpoint_steps: int | None = None,
    log: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train a timm model on a data set.

    Args:
        recipe: what decides the result.
        dataset: a local folder, or any fsspec URL (see Loader); or servers of the data service (`grpc://host:port/NAME`,
            several with commas between), which then decode.
        model: timm's name of the architecture.
        out: a local folder for everything the run writes.
        val: a data set to evaluate on after every epoch.
        labels: read both data sets with these instead of their own, as the Loader does: a LabelTree, class names, a
            Relabelling; or what `load_labels` reads them from. The checkpoint keeps their class list and tree.
        subset: train on a Subset; or on the images of a file of `softshard subset`, whose classes both sets are read with.
        side: folder or URL of side shards, whose label maps are joined to the training set's samples.
        connection: how to speak to servers.
        epochs: instead of the recipe's.
        global_batch: instead of the recipe's: samples per step over all ranks.
        pretrained: begin with timm's own weights.
        init_from: begin with the weights in this file, or with timm's of this name (see `load_start`).
        teacher: the checkpoint that the recipe distils from; by default what the data set has stored.
        resume: continue from `out`'s checkpoint; begin where there is none, so that one command line does for all starts.
        seed: of the first weights, of dropout and of the loader.
        device: `cpu`, or this rank's GPU such as `cuda:1`.
        rank: this process, in [0, world_size).
        world_size: how many processes train together; with more than one, torch.distributed's rendezvous
            variables (MASTER_ADDR, MASTER_PORT) must be set, as torchrun does.
        num_threads: the loader's.
        max_bad: share of the training samples that may be bad; see Faults, as for `check_images`.
        compile: run the model through torch.compile, which needs a C++ compiler.
        tensorboard: write what `metrics.csv` and `epochs.csv` get for TensorBoard, too.
        log_steps: steps between two lines of `metrics.csv`. Between them the host does not wait for the
            device, so a loss that is not finite is noticed only then, and by several processes a signal.
        checkpoint_steps: steps between two checkpoints, beside the one after every epoch.
        log: gets the few lines a person should read, on rank 0; standard error by default.

    Returns:
        The files written and the numbers of every epoch.

    Raises:
        UsageError: options that contradict each other or the data set, an optimizer that cannot be made, or another
            process whose call differs or that ended before the first step.
        DataError: the data set or the checkpoint is bad, or they do not belong together; or the loss or a weight became
            infinite or NaN.
        MissingExtraError: tensorboard is not installed.
    """
    # 1. Set up.
    given = {"epochs": epochs, "global_batch": global_batch}
    recipe = dataclasses.replace(recipe, **{name: n for name, n in given.items() if n is not None})
    folder = Path(out)
    checkpoint_path = folder / CHECKPOINT_NAME
    if pretrained and init_from is not None:
        raise UsageError("model: expected either pretrained weights or --init-from, found both")
    start_weights = model if pretrained else init_from
    check_call(
        recipe,
        checkpoint_path,
        resume=resume,
        starts_from_weights=start_weights is not None,
        teacher=teacher,
        device=device,
        rank=rank,
        world_size=world_size,
        log_steps=log_steps,
        checkpoint_steps=checkpoint_steps,
    )
    recipe = with_rate_of_start(recipe, start_weights)
    open_board = board_writer() if tensorboard else None
    folder.mkdir(parents=True, exist_ok=True)
    is_main = rank == 0
    say = (log or print_to_stderr) if is_main else say_nothing
    on_terminal = is_main and sys.stderr.isatty()
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    with ExitStack() as stack:
        if world_size > 1:
            stack.enter_context(process_group("nccl" if on_gpu else "gloo", rank, world_size))
        stop = stack.enter_context(stop_signal(alone=world_size == 1))

        # 2. Data.
        loader, val_loader = open_loaders(
            recipe,
            dataset,
            val,
            labels=labels,
            subset=subset,
            connection=connection,
            side=side,
            stored_teacher=recipe.distill != "none" and teacher is None,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
            num_threads=num_threads,
            faults=Faults(max_bad, folder / BAD_NAME, check_images=check_images),
            opened=stack,
        )
        steps_per_epoch = len(loader)
        total_steps = recipe.epochs * steps_per_epoch
        label_space = LabelSpace.of_loader(loader, recipe.loss)
        say(run_line(recipe, loader, label_space))

        # 3. Model: the same on every rank. From here on the ranks draw different numbers for their dropout.
        saved = load_checkpoint(checkpoint_path) if resume and checkpoint_path.exists() else None
        plain_model, report = start_model(
            model,
            recipe,
            start_weights if saved is None else None,
            labels=label_space,
            dataset=dataset,
            seed=seed,
            device=device,
        )
        if report is not None:
            say(f"{report.line()}; all of it: {folder / INIT_NAME}")
            if is_main:
                write_json(folder / INIT_NAME, report.to_json())
        torch.manual_seed((seed + rank) % 2**64)

        # 4. Loss, optimizer, schedule.
        counts = count_images(recipe, loader)
        loss_module = create_loss(recipe, loader.tree, counts, num_classes=loader.num_classes).to(device)
        chosen = choose_teacher(teacher, recipe, loader, labels=label_space, dataset=dataset, device=device)
        if chosen.facts is not None:
            say(chosen.line())
        optimizer = create_optimizer(recipe, plain_model)
        schedule = create_schedule(recipe, optimizer, total_steps)

        # 5. Continue where the run was stopped.
        step, epoch, loss_sum, loss_steps, skipped = 0, 0, 0.0, 0, 0
        history: list[dict[str, Any]] = []
        saved_step = saved and saved.step
        if saved is not None:
            check_resume(saved, checkpoint_path, dataset, recipe, model, loader, chosen.facts)
            optimizer.load_state_dict(saved.optimizer)
            loader.load_state_dict(state_of_one(saved.loader, rank, world_size))
            set_rng_state(saved.rng, rank, world_size, on_gpu)
            step, epoch, loss_sum, loss_steps = saved.step, saved.epoch, saved.loss_sum, saved.loss_steps
            skipped, history = saved.skipped, saved.history
            say(f"continues from {checkpoint_path}: {step} of {total_steps} steps are done")
        elif resume:
            say(f"no {checkpoint_path} yet, so the run begins")
        if world_size > 1:
            asked = chosen.facts and chosen.facts["sha256"]
            start = sha256_of_start(plain_model, saved and checkpoint_path, start_weights is not None)
            more = {"log_steps": log_steps, "checkpoint_steps": checkpoint_steps}
            more |= {STEP: step, "starting weights": start}
            facts = facts_of_call(recipe, loader, val_loader, model=model, teacher=asked, **more)
            check_same_call(facts, world_size)
        take_step = TrainStep(
            recipe,
            plain_model,
            loss_module,
            optimizer,
            world_size=world_size,
            compile=compile,
            teacher=chosen.live,
            head_order=HeadOrder(plain_model, model, loader.tree if recipe.level_order else None),
        )
        if saved is not None:
            take_step.load_state_dict(
                {"model": saved.model, "model_ema": saved.model_ema, "scaler": saved.scaler}
            )
        board = open_board(folder / BOARD_NAME, step) if open_board is not None and is_main else None
        if board is not None:
            stack.callback(board.close)
        read_from = labels if subset is None else subset
        address = str(read_from) if isinstance(read_from, str | Path) else None
        steps = StepLog(
            folder / METRICS_NAME if is_main else None,
            step,
            recipe.global_batch,
            world_size,
            loss_sum,
            loss_steps,
            skipped,
            board,
            replay=lambda epoch, step: replay_command(loader, epoch, step - epoch * steps_per_epoch, address),
            without=() if saved is None else saved.without,
        )
        progress = Progress(say, bar=on_terminal, total_steps=total_steps)
        stack.callback(progress.end_epoch)

        def save() -> None:
            """Called by all ranks together, when all losses so far are known to be finite."""
            nonlocal saved_step
            take_step.check_weights(steps.step - 1)
            rng, position = rng_states(world_size, on_gpu), state_of_all(loader.state_dict(), world_size)
            if is_main:
                save_checkpoint(
                    checkpoint_path,
                    Checkpoint(
                        model_name=model,
                        recipe=recipe,
                        teacher=chosen.facts,
                        optimizer=optimizer.state_dict(),
                        epoch=epoch,
                        loader=position,
                        **label_space.to_json(),
                        stored_images=stored_images(loader.manifest),
                        rng=rng,
                        history=history,
                        **steps.state_dict(),
                        **take_step.state_dict(),
                    ),
                )
            saved_step = steps.step

        # 6. Epochs of steps.
        stopped_by, stats = 0, loader.stats()
        while epoch < recipe.epochs and not stopped_by:
            loader.set_epoch(epoch)
            take_step.train()
            progress.begin_epoch(epoch, steps_per_epoch, loader.step)
            batches = named_batches(loader)  # kept: closing it waits for its thread, and save() must not
            for batch in steps.timed(stop.until(batches)):
                schedule.step_update(steps.step)
                loss, overflowed = take_step(batch)
                steps.add(loss, batch.keys, overflowed, count_without(recipe, batch))
                progress.advance()

                checkpoint_due = checkpoint_steps is not None and steps.step % checkpoint_steps == 0
                epoch_ends = steps.step % steps_per_epoch == 0
                if checkpoint_due or epoch_ends or steps.step % log_steps == 0:
                    line, stopped_by = steps.flush(epoch, optimizer.param_groups[0]["lr"], stop())
                    stats, earlier = loader.stats(), stats
                    progress.show(line, (stats - earlier).longest_stage)
                    # Whoever is killed in a long evaluation begins that again, and not the epoch.
                    if checkpoint_due or stopped_by or (epoch_ends and val_loader is not None):
                        save()
                    if stopped_by:
                        break
            progress.end_epoch()
            # The batches ended before the epoch did: `until` saw a signal, as it does in a process that is alone.
            if not stopped_by and steps.step < (epoch + 1) * steps_per_epoch:
                stopped_by = stop()
                if steps.has_new:
                    steps.flush(epoch, optimizer.param_groups[0]["lr"], stopped_by)
                if (loader.epoch, loader.step) == (epoch, steps.step - epoch * steps_per_epoch):
                    save()  # else the signal came when a batch was counted and not here yet: where that is lost
            if stopped_by:
                break
            without = without_entry(recipe, steps.without)
            entry: dict[str, Any] = {"epoch": epoch, "loss": steps.close_epoch(), **without}
            entry["num_bad"] = sum_of_all(loader.num_bad, world_size, device)
            if val_loader is not None:
                take_step.share_buffers()
                entry["weights"] = take_step.best_weights
                with suppress(Stopped), stop.interruptible():
                    entry |= evaluate_model(
                        take_step.best_model,
                        val_loader,
                        normalise=recipe.normalise,
                        loss=recipe.loss,
                        levels=recipe.levels,
                        order=take_step.order,
                        progress=on_terminal or (is_main and log is None),
                    )
                if world_size == 1 and (stopped_by := stop()):
                    break
            history.append(entry)
            say(epoch_line(entry))
            if is_main:
                write_epochs(folder / EPOCHS_NAME, history, board, steps.step)
            epoch += 1
            loader.set_epoch(epoch)
            save()

        # 7. Export.
        if stopped_by:
            say(stop_line(stopped_by, steps.step, total_steps, saved_step))
            return TrainResult(checkpoint_path, None, steps.step, history, stopped_by)
        weights_path = folder / WEIGHTS_NAME
        if is_main:
            best, weights = take_step.best_weights, take_step.best_state_dict()
            write_weights(weights_path, weights, which=best, model=model, recipe=recipe, labels=label_space)
            write_summary(
                folder / SUMMARY_NAME,
                recipe,
                loader,
                steps,
                history,
                model=model,
                dataset=public_name(str(dataset)),
                val=None if val is None else public_name(str(val)),
                teacher=chosen.facts,
                seed=seed,
                processes=world_size,
                weights=best,
            )
        say(f"finished after {steps.step} steps: {folder}")
        return TrainResult(checkpoint_path, weights_path, steps.step, history, None, stop())
