"""Raw text to a pretrained model: `python recipes/pretrain.py CONFIG.yaml [key=value ...]`.

The same command runs on one process, and on several under `accelerate launch --config_file
recipes/accelerate/cpu.yaml recipes/pretrain.py CONFIG.yaml`.
"""

from __future__ import annotations

from llmtrain.cli.recipe import run_recipe
from llmtrain.data.plan import plan_data
from llmtrain.data.stores import build_stores
from llmtrain.data.tokenize import load_tokenizer, tokenizer_fingerprint
from llmtrain.device import attention_kernel, peak_flops, peak_memory_bytes
from llmtrain.eval.held_out import HeldOut
from llmtrain.models.attention import compile_model
from llmtrain.models.load import attention_dropout, flops_per_token, hub_commit, load_model, parameters_by_role
from llmtrain.models.selfcheck import with_loss
from llmtrain.objective import LossOptions
from llmtrain.objectives.next_token import NextToken
from llmtrain.run import export_run, open_run, record_ledger, record_run
from llmtrain.schemas import PretrainConfig
from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.guard import StopSignal
from llmtrain.train.loop import Loop
from llmtrain.train.metrics import RunLog
from llmtrain.train.optim import Ema, make_optimizer
from llmtrain.train.profile import StepProfiler
from llmtrain.train.runtime import Runtime
from llmtrain.train.schedule import make_schedule


def main(config: PretrainConfig) -> None:
    """Build the parts, run the loop, export the model."""
    folder = open_run(config.run, config)
    runtime = Runtime(
        precision=config.train.precision,
        max_grad_norm=config.optim.max_grad_norm,
        seed=config.run.seed,
        timeout_minutes=config.log.timeout_minutes,
        trackers=config.log.trackers,
        run_dir=folder,
    )
    runtime.require(config.features())

    model_path, revision = config.model.path, config.model.revision
    tokenizer = load_tokenizer(
        config.tokenizer.path or model_path or "", config.tokenizer.revision or revision, config.model.trust_remote_code
    )
    model = load_model(config.model, tokenizer, max_seq_len=config.data.max_seq_len, seed=config.run.seed)
    dropout = attention_dropout(model.config)
    kernel = attention_kernel(config.model.attention, runtime.device, runtime.dtype, dropout)
    module = with_loss(model, kernel, config.data.max_seq_len, runtime.device)

    stores = build_stores(config.data, tokenizer, report=runtime.say)
    plan = plan_data(
        config.data,
        config.train,
        config.eval,
        stores.train,
        stores.eval,
        seed=config.run.seed,
        world_size=runtime.world_size,
    )
    schedule = make_schedule(config.optim, plan.num_steps)
    profiler = StepProfiler(config.log.profile, folder / "profile", runtime.rank, plan.num_steps)
    peak, peak_source = peak_flops(runtime.device, runtime.dtype)
    if runtime.is_main:
        facts = {
            "device": str(runtime.device),
            "engine": runtime.engine,
            "world_size": runtime.world_size,
            "attention": kernel,
            "whole_logits": module.own_logits,
            "peak_flops": peak,
            "peak_flops_source": peak_source,
            "model_revision": hub_commit(model.config),
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "stores": [store.path.name for store in (*stores.train, *stores.eval)],
        }
        record_run(folder, config, facts)
    runtime.start_trackers(config.log.project)

    if config.train.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if config.train.compile:
        compile_model(model)
    ema = None if config.train.ema_decay is None else Ema(module, config.train.ema_decay)
    prepared, optimizer = runtime.prepare(module, make_optimizer(parameters_by_role(model), config.optim))
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep, config.checkpoint.best)
    held_out = HeldOut(plan, runtime.rank, runtime.world_size, runtime.device, runtime.sum_floats)
    source = plan.batches(runtime.rank, runtime.world_size)
    log = RunLog(
        folder,
        is_main=runtime.is_main,
        num_steps=plan.num_steps,
        flops_per_token=flops_per_token(model, plan.mean_segment_tokens),
        peak_flops=peak * runtime.world_size,
        track=runtime.track,
        memory_bytes=lambda: peak_memory_bytes(runtime.device),
    )
    loop = Loop(
        runtime=runtime,
        model=prepared,
        optimizer=optimizer,
        objective=NextToken(LossOptions(config.train.label_smoothing, config.train.z_loss)),
        source=source,
        schedule=schedule,
        num_steps=plan.num_steps,
        evaluate=held_out if plan.num_eval_packs else None,
        checkpoints=checkpoints,
        log=log,
        stop=StopSignal(),
        profiler=profiler,
        train=config.train,
        eval=config.eval,
        checkpoint=config.checkpoint,
        logging=config.log,
        l1=config.optim.l1,
        ema=ema,
    )
    with log:
        outcome = loop.run()
    if runtime.is_main:
        account = plan.account(loop.progress.step, loop.progress.tokens, source.num_skipped)
        record_ledger(folder, stores.ledger.to_dict(), account)
    if outcome != "interrupted":
        checkpoint = checkpoints.best(runtime) if config.exports_best else checkpoints.latest(runtime)
        assert checkpoint is not None
        if runtime.is_main:
            runtime.say(f"{outcome}: {export_run(folder, config, model.config, tokenizer, checkpoint)}")
    runtime.finish()


if __name__ == "__main__":
    run_recipe(PretrainConfig, main)
