"""What a training run can be told, and what of that a comparison can, with defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nets import Architecture, Initializer, preset
from nets.plan.action_dicts import name_of
from policies import Never, Policy
from training.settings.checks import check_common, check_train, folder_of
from training.settings.start_settings import Start


@dataclass(frozen=True, kw_only=True)
class Common:
    """What a training run and a comparison share.

    Args:
        data: digits, or harder ones such as digits:images=300,shift=2,noise=0.3 (so many training
            images, pixels off the middle, share of pixels that are noise; each may be left out);
            mnist, fashion-mnist, cifar10, cifar100, sine, folder:PATH (PATH/train/CLASS/* and
            PATH/test/CLASS/*) or npz:FILE (train_images, train_labels, test_images, test_labels;
            val_images, val_labels as validation split where it has them).
        data_dir: where torchvision keeps or downloads its files.
        augment: of training images: none, crop (from an image padded with black), flip (one of two
            is mirrored: not for what has a left and a right), crop-flip, or auto: the data set's
            standard recipe, which for folder: and npz: is none.
        net: the limit: resnet8/14/20/32/44/56/110, wrn-D-K, resnet18/34/50/101/152,
            wide_resnet50_2 or mlp-W. No network of the run may cost more.
        order: post or pre activation; by default as the net was published.
        stem: cifar (a 3x3 convolution) or imagenet (7x7 of stride 2, then pooling: too coarse for
            images of 32 pixels a side); by default as the net was published.
        epochs: the budget; see budget.
        budget: flops is the training FLOPs of that many epochs of the limit; epochs is that many
            passes over the data; seconds is that many seconds.
        records: how often layers are read and the policy is asked, at equal parts of the budget; by
            default once per budgeted epoch and at least 20 times.
        grow_until: fraction of the budget after which nothing grows, from 0 to 1.
        schedule: of the learning rate over the budget: cosine, or hold (constant until grow_until,
            then a cosine).
        batch_size: images a step, of all processes together.
        batch_growth: up to how many times batch_size a step takes while the net is small: times the
            largest power of two that is at most this, the limit's FLOPs over the net's and the
            batches of an epoch, decided anew when the net grows. The learning rate is multiplied by
            the same (by its square root but for sgd). It buys time, not accuracy; 1 is never.
        accumulate: parts into which a step's batch is divided to save memory; BatchNorm sees a part
            at a time.
        optimizer: sgd, adam, adamw or rmsprop.
        lr: the largest learning rate; by default 0.001, and for sgd 0.1, or 0.5/W where mlp-W fits
            numbers (sine) from He's values: from about 1/W on its loss grows without bounds.
        rates: shared gives all weights that learning rate; cohort gives what is born at one growth
            a rate of its own, the shared one times the norm of its weights over that of those that
            the run began with (Yuan et al. 2023): small where few are born, as in one block alone.
        momentum: of sgd (Nesterov).
        weight_decay: of weights; BatchNorm and biases get none.
        initializer: of the first weights and of new ones: he, xavier; net2net or gradmax, which
            begin like he; variance-transfer, which rescales old weights as the net grows, and so
            moves the outputs; xavier-outgoing, which begins like xavier and moves them too; or an
            import path such as mine.Tiny, whose settings are --initializer.NAME.
        observe_every: steps between readings of the layers.
        validation_images: of the validation split that a record looks at: a fixed stratified part,
            so that records stay cheap beside an epoch. The summary looks at the whole split.
        precision: float32, bf16 (autocast), fp16 (autocast with scaled gradients), or auto: bf16
            where the device computes it natively.
        nonfinite: when a loss or gradient is NaN or infinite: stop the run at the next record, or
            skip the step, which then changes nothing.
        save_every: seconds after a checkpoint from which a record writes the next one, if no
            growth, end or signal has; 0: at every record. A kill costs what came after the last.
        ema: largest decay a step of a running average of the weights, judged beside them at every
            record (metrics.csv); 0 for none.
        device: a torch device; auto takes the GPU if there is one.
        deterministic: use algorithms alone that give the same bits every time, and no TF32: a run
            then repeats and resumes bit for bit on a GPU too; slower there. A CPU does so anyway.
        graph: on a GPU the whole step runs as one CUDA graph, captured anew after every growth and
            replayed: auto does so where it can and says why where it can't, true refuses to go
            without, false runs step by step. With deterministic all three give the same bits.
        threads: CPU threads; by default torch's choice.
        compile: compile the network with torch.compile, anew after every growth; slower on a CPU.
        policy_errors: stop ends a run whose policy fails, with exit code 1, to be resumed when the
            policy is mended; continue says so in the record's line and does nothing there.
        final: read the test set, once, at the end.
    """

    data: str = "digits"
    data_dir: str = "data"
    augment: str = "auto"
    net: str = "resnet20"
    order: str | None = None
    stem: str | None = None
    epochs: float = 20
    budget: str = "flops"
    records: int | None = None
    grow_until: float = 0.6
    schedule: str = "cosine"
    batch_size: int = 128
    batch_growth: int = 1
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float | None = None
    rates: str = "shared"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    initializer: Initializer | str = "he"
    observe_every: int = 10
    validation_images: int = 2000
    precision: str = "auto"
    nonfinite: str = "stop"
    save_every: float = 60.0
    ema: float = 0.999
    device: str = "auto"
    deterministic: bool = False
    graph: str | bool = "auto"
    threads: int | None = None
    compile: bool = False
    policy_errors: str = "stop"
    final: bool = False

    def __post_init__(self) -> None:
        check_common(self)

    @property
    def learning_rate(self) -> float:
        """The largest learning rate: `lr`, or 0.1 for sgd and 0.001 for the others.

        A plain net of W units from He's values has W / 2 active ones of variance 2 for an input of
        variance 1, so that the curvature of a squared error is about W, and momentum is stable up
        to about 1 / W. (Measured on sine, W from 50 to 2000, momentum 0.9: 0.5 / W never raised the
        loss above its first value, 1 / W mostly not, 2 / W always did, 4 / W ended infinite.)
        Xavier's values don't grow with W, a cross-entropy's curvature is bounded, and BatchNorm
        takes the scale out: 0.1 is stable there.
        """
        if self.lr is not None or self.optimizer != "sgd":
            return self.lr or 0.001
        widths = re.fullmatch(r"mlp-(\d+)", self.net)
        if self.data == "sine" and widths and not name_of(self.initializer).startswith("xavier"):
            return min(0.1, 0.5 / int(widths[1]))
        return 0.1

    @property
    def graphs(self) -> str:
        """`graph` as text: YAML reads true and false as what they are."""
        return str(self.graph).lower()

    @property
    def record_count(self) -> int:
        """Records a run makes: `records`, or one per budgeted epoch and at least 20."""
        return self.records or max(20, round(self.epochs if self.budget != "seconds" else 0))


@dataclass(frozen=True, kw_only=True)
class Train(Common):
    """One training run.

    Args:
        policy: when and where to grow: a class in the box, or an import path such as mine.Mine.
        start: the net to start from; by default a quarter of the width and one block a stage, and
            the limit itself for Never.
        seed: of initial values, data order and everything random.
        out: the run folder; by default runs/DATA-NET-POLICY-seedN.
        resume: go on with the run in the folder, if there is one.
    """

    policy: Policy = field(default_factory=Never)
    start: Start | None = None
    seed: int = 0
    out: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_train(self)

    @property
    def folder(self) -> Path:
        """The run folder."""
        data = re.sub("^digits:", "digits-", self.data).removeprefix("folder:").removeprefix("npz:")
        data = Path(data).name.removesuffix(".npz")
        policy = type(self.policy).__name__.lower()
        name = f"runs/{data}-{self.net}-{policy}-seed{self.seed}"
        return folder_of(name if self.out is None else self.out)

    def limit(self, classes: int, image: tuple[int, ...]) -> Architecture:
        """Give the limit network for data of that shape; a ValueError if there is none."""
        if len(image) != 3 and not self.net.startswith("mlp-"):
            raise ValueError(
                f"net must be mlp-W for {self.data}, got {self.net!r}: for others an image must be "
                f"(channels, height, width), not {image}"
            )
        shape: dict[str, Any] = {"classes": classes, "image": image}
        return preset(self.net, **shape, order=self.order, stem=self.stem)

    def first(self, limit: Architecture) -> Architecture:
        """Give the network to start from; a ValueError if it costs more than the limit."""
        start = Start(1, None) if isinstance(self.policy, Never) else Start()
        return (self.start or start).within(limit)
