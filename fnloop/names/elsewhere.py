"""Names that other libraries have, and what stands for each in fnloop."""

from __future__ import annotations


def simple(name: str) -> str:
    """A name without underscores and capitals, which libraries use differently.

    >>> simple("EarlyStopping") == simple("early_stopping")
    True
    """
    return name.replace("_", "").lower()


_TRAIN = (
    "Use fl.fit(step, state, data, epochs=...), with step = fl.pipe(loss, fl.grad, "
    "fl.update(optimizer)) and state = step.init(model)."
)
_MODULE = (
    "There is no class to inherit from: the model is an nn.Module of yours, and the loss a "
    "function loss(model, batch), as in fl.pipe(loss, fl.grad, fl.update(optimizer))."
)
_LIGHTNING = (
    "A LightningModule that there is already becomes a step as it is: fl.lightning.step(module). "
    "For a new one there is no class to inherit from: the model is an nn.Module, and the loss a "
    "function, as in fl.pipe(loss, fl.grad, fl.update(optimizer))."
)
_LOSS = (
    "A loss is a function of yours that calls torch: def loss(model, batch): x, y = batch; return "
    "torch.nn.functional.cross_entropy(model(x), y)."
)
_LOADER = (
    "Use fl.Batches(data, batch_size), where data is a Dataset or a tuple of tensors; or give a "
    "torch.utils.data.DataLoader as it is."
)
_NN = "Models are torch's: torch.nn.Module."
_COSINE = (
    "Use fl.schedules.cosine(peak, steps=..., warmup=...) where the learning rate goes: "
    "fl.optim.adamw(fl.schedules.cosine(1e-3, steps=1000))."
)
_TRACKER = (
    "Use fl.track(tracker) among the callbacks, with one of fl.trackers; for another service, "
    "subclass fl.trackers.Tracker, which has one method to write."
)
_TORCHMETRICS = (
    "Use fl.metrics.from_torchmetrics(...), which adapts metrics of the package torchmetrics."
)
_PLATEAU = 'Use fl.reduce_on_plateau("val/loss") among the callbacks.'
_AMP = (
    'Use fl.amp("bf16"), or another precision, in fl.pipe before fl.update; to evaluate in it, '
    'fl.evaluate(fl.amp("bf16")(loss), state, data).'
)
_SAME_BITS = "Use with fl.deterministic(): around all that is to repeat to the bit."
_SEED = (
    "Use step.init(build, seed=...), where the function build() makes the model: initial weights "
    "and all randomness of the run depend on that seed."
)
_EXPLOIT = (
    'Use fl.population("val/loss") among the callbacks of a run of fl.sweep or fl.ensemble, after '
    "the validation that reports it."
)
_HALVING = "Use fl.tuning.halving(step, states, data, validation, rungs=...), of an fl.sweep."
_MANY = (
    "To train many states at once, use torch.func.vmap(step): see the how-to page on populations "
    "by vmap."
)
_LR = 'fl.update reports the learning rate by itself, under a name such as "adamw.lr".'
_RANKS = (
    "Use fl.shard(step, fl.mesh()), and start the program by torchrun: fl.mesh() is of all "
    "processes."
)
_CLIP = (
    "Use fl.optim.clip_by_norm(1.0) in fl.optim.chain(fl.optim.clip_by_norm(1.0), "
    "fl.optim.adamw(...))."
)
_VALIDATE = 'Use fl.every(1, fl.validate(loss, data), unit="epoch") among the callbacks.'
_DEVICE = "Move the state and the data: state.to(device)."

ELSEWHERE = {
    # Training
    "trainer": _TRAIN,
    "train": _TRAIN,
    "trainingarguments": _TRAIN,
    "learner": _TRAIN,
    "loop": _TRAIN,
    "trainingstep": _TRAIN,
    "trainstep": _TRAIN,
    "lightningmodule": _LIGHTNING,
    "trainstate": "Use state = step.init(model), which makes an fl.State.",
    "lightningdatamodule": (
        "Use fl.Data(train, validate, test, predict); one that there is already: "
        "fl.lightning.data(datamodule)."
    ),
    "datamodule": "Use fl.Data(train, validate, test, predict).",
    "accelerator": "Use fl.amp for mixed precision and fl.accumulate for accumulation.",
    "seedeverything": _SEED,
    "manualseed": _SEED,
    "seed": _SEED,
    "model": "The model goes to state = step.init(model); an nn.Module of yours, or a function.",
    "optimizer": "The optimizer goes to the step: fl.update(fl.optim.adamw(1e-3)).",
    "optimizers": "Use fl.optim, as in fl.update(fl.optim.adamw(1e-3)).",
    "fabric": _TRAIN,
    "init": "Use state = step.init(model).",
    "eval": "Use fl.evaluate(loss, state, data).",
    "test": "Use fl.evaluate(loss, state, data).",
    "score": "Use fl.evaluate(loss, state, data).",
    "jit": "Use fl.compile(step).",
    "valueandgrad": "Use fl.grad, which also reports the loss.",
    "backward": "Use fl.grad in fl.pipe(loss, fl.grad, fl.update(optimizer)).",
    "pbt": _EXPLOIT,
    "populationbasedtraining": _EXPLOIT,
    "hyperband": _HALVING,
    "successivehalving": _HALVING,
    "vmap": _MANY,
    "ensemble": _MANY,
    "sweep": _MANY,
    "distributeddataparallel": _RANKS,
    "ddp": _RANKS,
    "fsdp": _RANKS,
    "fullyshard": _RANKS,
    "numnodes": _RANKS,
    "devices": _RANKS,
    "strategy": _RANKS,
    "device": _DEVICE,
    # Callbacks
    "callbacks": "They are at the top: fl.early_stopping, fl.checkpoint, fl.every, fl.validate.",
    "valdata": _VALIDATE,
    "valdataloader": _VALIDATE,
    "valdataloaders": _VALIDATE,
    "evaldataset": _VALIDATE,
    "validationdata": _VALIDATE,
    "modelcheckpoint": 'Use fl.checkpoint(folder, monitor="val/loss").',
    "savecheckpoint": "Use fl.save(state, folder).",
    "loadcheckpoint": "Use fl.load(fl.latest(folder), like=state).",
    "loadfromcheckpoint": "Use fl.load(fl.latest(folder), like=state).",
    "resumefromcheckpoint": "Use fl.fit(..., resume=folder).",
    "learningratemonitor": _LR,
    "lrmonitor": _LR,
    "reducelronplateau": _PLATEAU,
    "lrfind": "Use fl.tuning.find_lr(step, state, data).",
    "lrfinder": "Use fl.tuning.find_lr(step, state, data).",
    "learningratefinder": "Use fl.tuning.find_lr(step, state, data).",
    "tuner": "Use fl.tuning.find_lr and fl.tuning.find_batch_size, each (step, state, data).",
    "scalebatchsize": "Use fl.tuning.find_batch_size(step, state, data).",
    "batchsizefinder": "Use fl.tuning.find_batch_size(step, state, data).",
    "gradientaccumulationscheduler": "Use fl.accumulate(k) in fl.pipe, before fl.update.",
    "gradientaccumulation": "Use fl.accumulate(k) in fl.pipe, before fl.update.",
    "accumulategradbatches": "Use fl.accumulate(k) in fl.pipe, before fl.update.",
    "gradientaccumulationsteps": "Use fl.accumulate(k) in fl.pipe, before fl.update.",
    "stochasticweightaveraging": "Use fl.ema(decay) in fl.pipe, after fl.update.",
    "averagedmodel": "Use fl.ema(decay) in fl.pipe, after fl.update.",
    "exponentialmovingaverage": "Use fl.ema(decay) in fl.pipe, after fl.update.",
    "emamodel": "Use fl.ema(decay) in fl.pipe, after fl.update.",
    "updatebn": "Use fl.refresh_batchnorm(loss, state, train_data, params='ema').",
    "tqdm": "Use fl.progress; fl.fit shows it by itself on a terminal and in a notebook.",
    "progressbar": "Use fl.progress; fl.fit shows it by itself on a terminal and in a notebook.",
    "enableprogressbar": "Use progress=False of fl.fit to silence it.",
    "tqdmprogressbar": "Use fl.progress.",
    "richprogressbar": "Use fl.progress.",
    "modelsummary": "Use fl.summary(step, state, batch).",
    "richmodelsummary": "Use fl.summary(step, state, batch).",
    "measureflops": "Use fl.summary(step, state, batch).flops.",
    "throughputmonitor": "Use fl.trackers.throughput() among the callbacks.",
    "devicestatsmonitor": "Use fl.trackers.device_stats() among the callbacks.",
    "timer": "Use fl.fit(..., seconds=...) for one call, or budget=... for the whole run.",
    "fastdevrun": "Use fl.fit(..., smoke=True).",
    "combinedloader": "Use fl.data.together(a=loader, b=other), fl.data.concat or fl.data.mix.",
    "weightedrandomsampler": "Use fl.Batches(data, batch_size, weights=...).",
    "limittrainbatches": "Use fl.data.limit(data, n).",
    "limitvalbatches": "Use fl.validate(loss, fl.data.limit(data, n)).",
    "limittestbatches": "Use fl.evaluate(loss, state, fl.data.limit(data, n)).",
    "limitpredictbatches": "Use fl.predict(fn, state, fl.data.limit(data, n)).",
    "overfitbatches": "Use few = fl.data.limit(data, n, same=True), for training and validation.",
    "kfold": "Use fl.data.folds(n, k).",
    "stratifiedkfold": "Use fl.data.folds(n, k, labels).",
    "basepredictionwriter": "Use fl.predict(fn, state, data, to=folder).",
    "predictionwriter": "Use fl.predict(fn, state, data, to=folder).",
    "numsanityvalsteps": "Use fl.every(n, fl.validate(loss, data), first=True).",
    "valcheckinterval": "Use fl.every(n, fl.validate(loss, data)) among the callbacks.",
    "checkvaleverynepoch": 'Use fl.every(n, fl.validate(loss, data), unit="epoch").',
    "log": "A loss returns what it reports: return loss, {'accuracy': ...}.",
    "verbose": "Use progress=False of fl.fit to silence it.",
    "gradscaler": _AMP,
    "autocast": _AMP,
    "mixedprecision": _AMP,
    "precision": _AMP,
    "amp": _AMP,
    "setfloat32matmulprecision": 'Use fl.amp("tf32") in fl.pipe, before fl.update.',
    "deterministic": _SAME_BITS,
    "usedeterministicalgorithms": _SAME_BITS,
    "detectanomaly": (
        "Use with torch.autograd.detect_anomaly(): around a step that is not compiled; of a saved "
        "run, fnloop replay shows a step from inside."
    ),
    # Optimizers and schedules
    "clipgradnorm": _CLIP,
    "clip": _CLIP,
    "gradientclipval": _CLIP,
    "maxgradnorm": _CLIP,
    "clipgradvalue": "Use fl.optim.clip_by_value(...) in fl.optim.chain.",
    "lrscheduler": "Use one of fl.schedules where the learning rate goes.",
    "scheduler": "Use one of fl.schedules where the learning rate goes.",
    "cosineannealinglr": _COSINE,
    "cosineannealing": _COSINE,
    "cosinedecay": _COSINE,
    "warmupcosinedecayschedule": _COSINE,
    "getcosineschedulewithwarmup": _COSINE,
    "steplr": "Use fl.schedules.step_decay(...) where the learning rate goes.",
    "multisteplr": "Use fl.schedules.step_decay(...) where the learning rate goes.",
    "exponentiallr": "Use fl.schedules.exponential(...) where the learning rate goes.",
    "linearlr": "Use fl.schedules.linear(...) where the learning rate goes.",
    "polynomiallr": "Use fl.schedules.polynomial(...) where the learning rate goes.",
    "onecyclelr": "Use fl.schedules.one_cycle(...) where the learning rate goes.",
    "constantlr": "Use fl.schedules.constant(...) where the learning rate goes.",
    "sequentiallr": "Use fl.schedules.join(...) where the learning rate goes.",
    "lambdalr": "A schedule of your own is an @fl.tree class with __call__(self, step).",
    "params": "An optimizer takes no parameters here: step.init(model) gives them to it.",
    "zerograd": "Nothing is to be zeroed: each step computes its gradients anew.",
    # Data
    "dataloader": _LOADER,
    "dataset": _LOADER,
    "tensordataset": _LOADER,
    "numworkers": "Give a torch.utils.data.DataLoader with num_workers, or use fl.data.prefetch.",
    # Metrics and trackers
    "metriccollection": _TORCHMETRICS,
    "auroc": _TORCHMETRICS,
    "averageprecision": _TORCHMETRICS,
    "precisionscore": _TORCHMETRICS,
    "recall": _TORCHMETRICS,
    "f1score": "Use fl.metrics.f1.",
    "meansquarederror": "Use fl.metrics.mse.",
    "meanabsoluteerror": "Use fl.metrics.mae.",
    "r2score": "Use fl.metrics.r2.",
    "confusionmatrix": "Use fl.metrics.confusion.",
    "wandblogger": _TRACKER,
    "wandb": _TRACKER,
    "mlflowlogger": _TRACKER,
    "mlflow": _TRACKER,
    "logger": _TRACKER,
    "loggers": _TRACKER,
    "tensorboardlogger": "Use fl.track(fl.trackers.TensorBoard(folder)).",
    "summarywriter": "Use fl.track(fl.trackers.TensorBoard(folder)).",
    "csvlogger": "Use fl.track(fl.trackers.CSV(file)).",
    # PyTorch
    "nn": _NN,
    "module": _NN,
    "linear": _NN,
    "sequential": _NN,
    "loss": _LOSS,
    "losses": _LOSS,
    "crossentropyloss": _LOSS,
    "crossentropy": _LOSS,
    "mseloss": _LOSS,
    "bcewithlogitsloss": _LOSS,
    "statedict": "Use fl.to_module(state).state_dict(), or fl.save(state, folder).",
}
"""What stands for a name (see `simple`) of another library: a sentence for an error message."""

KEYWORDS = {
    "learningrate": "lr peak",
    "maxlr": "peak",
    "initlr": "lr peak",
    "lr": "peak",
    "initialvalue": "start peak",
    "maxepochs": "epochs",
    "numepochs": "epochs",
    "nepochs": "epochs",
    "numtrainepochs": "epochs",
    "epoch": "epochs",
    "maxsteps": "steps",
    "numsteps": "steps",
    "totalsteps": "steps",
    "decaysteps": "steps",
    "numtrainingsteps": "steps",
    "numtraining": "steps",
    "stepspertrial": "steps",
    "startlr": "min_lr",
    "endlr": "max_lr",
    "earlystopthreshold": "stop_at",
    "initval": "start",
    "maxval": "max_size",
    "step": "steps",
    "tmax": "steps",
    "warmupsteps": "warmup",
    "numwarmupsteps": "warmup",
    "maxtime": "budget seconds",
    "fastdevrun": "smoke",
    "dryrun": "smoke",
    "minepochs": "min_epochs",
    "minsteps": "min_steps",
    "callback": "callbacks",
    "weightdecayrate": "weight_decay",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "epsilon": "eps",
    "bs": "batch_size",
    "perdevicetrainbatchsize": "batch_size",
    "trainbatchsize": "batch_size",
    "traindata": "data train",
    "traindataloader": "data train",
    "traindataloaders": "data train",
    "trainloader": "data train",
    "trainset": "data train",
    "dataloader": "data",
    "loader": "data",
    "dataset": "data",
    "x": "data",
    "valdata": "validate",
    "valdataloader": "validate",
    "val": "validate",
    "ckptpath": "resume",
    "resumefromcheckpoint": "resume",
    "dirpath": "folder",
    "dir": "folder",
    "path": "folder file",
    "savedir": "folder",
    "logdir": "folder",
    "outputdir": "folder",
    "defaultrootdir": "folder",
    "savetopk": "keep best",
    "keepn": "keep",
    "maxtokeep": "keep",
    "everynepochs": "every",
    "everyntrainsteps": "every",
    "metric": "monitor",
    "metricname": "monitor",
    "key": "monitor",
    "metrics": "fn",
    "lossfn": "fn loss",
    "loss": "fn",
    "beta": "decay momentum",
    "alpha": "decay lr",
    "momentum": "decay",
    "maxgradnorm": "max_norm",
    "clipnorm": "max_norm",
    "norm": "max_norm",
    "dropremainder": "drop_last",
    "droplast": "drop_last",
    "randomstate": "seed",
    "rng": "seed",
    "paramname": "params",
    "mininterval": "every_seconds",
}
"""For a keyword (see `simple`) of another library, those of fnloop that may have been meant."""

PRECISIONS = {
    "16-mixed": "fp16",
    "bf16-mixed": "bf16",
    "16-true": "fp16-true",
    "32-true": "fp32",
    "64-true": "fp64",
    "16": "fp16",
    "32": "fp32",
    "64": "fp64",
}
"""For a precision of Lightning, that of `fl.amp`."""
