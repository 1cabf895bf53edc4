"""Training on Lightning: `ase-gss train`. Denoising score matching, and forces."""

import math
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar, WeightAveraging
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ase_gss.errors import InputError
from ase_gss.schedule import cell_noise
from ase_gss.score.crystal_data import Crystals, NoisedCrystals, read_crystals
from ase_gss.score.crystal_data import add_noise as noise_crystals
from ase_gss.score.crystal_denoiser import CrystalDenoiser
from ase_gss.score.data import NoisedBatches, Structures, add_noise, read_structures
from ase_gss.score.denoiser import Denoiser, denoising_loss
from ase_gss.score.force_data import ForceBatches, ForceData, force_validation_batches, read_forces
from ase_gss.score.learned_forces import force_loss, predicted_forces
from ase_gss.score.model import FORCES, read_model, save_model

#: Noise levels (Å) at which the validation loss is reported.
VALIDATION_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
N_VALIDATION = 320
#: The same of structures with forces, which come in relaxations.
N_FORCE_VALIDATION = 3000


#: Training batches without an end, and validation batches.
Streams = tuple[IterableDataset, list[dict[str, torch.Tensor]]]


class ScoreTraining(lightning.LightningModule):
    """One training run: what the scores of molecules and of crystals, and forces, share.

    Parameters
    ----------
    network : dict
        Keyword arguments of the network.
    learning_rate : float
        Peak of a linear warm-up and a cosine decay.
    steps : int
        Optimizer steps of the whole run.
    output : str
        Model file, written at every validation.
    card : dict
        What the model file says about its origin.
    """

    denoiser_class: ClassVar[type[nn.Module]]
    kind: ClassVar[str]

    def __init__(self, network: dict, learning_rate: float, steps: int, output: str, card: dict) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.denoiser = self.denoiser_class(**network)
        self.seconds, self.left_out = 0.0, 0
        self.validation_loss: dict[str, float] = {}
        self._since = time.monotonic()

    def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Named mean losses of a batch; they are minimised together; of a score 1 means nothing learned."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum of the losses."""
        losses = self.losses(batch)
        for name, loss in losses.items():
            self.log(name, loss, prog_bar=True, batch_size=1)
        return sum(losses.values())

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip, and leave out a step whose gradient is not finite: scaled down it would make all weights NaN."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if torch.isfinite(torch.stack([gradient.norm() for gradient in gradients])).all():
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.left_out += 1
            for gradient in gradients:
                gradient.zero_()

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        """Losses at one noise level."""
        for name, loss in self.losses(batch).items():
            name = name.replace("loss", "validation", 1)
            self.log(f"{name}_{batch['sigma'].max():g}", loss, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Write the model (the averaged weights are in place now) and what has been reached."""
        if self.trainer.sanity_checking:
            return
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        metrics = self.trainer.callback_metrics.items()
        losses = {key: round(float(value), 4) for key, value in metrics if key.startswith("validation_")}
        reached = {
            "steps": self.global_step,
            "steps_left_out": self.left_out,
            "training_seconds": round(self.seconds),
            "validation_loss": losses,
        }
        save_model(self.denoiser, self.hparams.network, self.hparams.card | reached, self.hparams.output, self.kind)
        self.validation_loss = losses

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the time spent."""
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on counting the time spent."""
        self.seconds = checkpoint["seconds"]

    def configure_optimizers(self) -> dict:
        """AdamW; warm-up over the first 2 %, then a cosine to 1 % of the peak."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate, weight_decay=1e-4)
        steps, warm_up = self.hparams.steps, max(1, self.hparams.steps // 50)

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class MoleculeTraining(ScoreTraining):
    """Training on molecules."""

    denoiser_class = Denoiser
    kind = "molecules"

    @staticmethod
    def read(source: str, hold_out: Iterable[str], rng: np.random.Generator) -> tuple[Structures, Structures]:
        """Structures for training and for validation."""
        return _random_split(read_structures(source, hold_out), rng)

    def streams(self, training: Structures, validation: Structures, batch_size: int, seed: int, done: int) -> Streams:
        """Endless training batches after so many steps, and validation batches."""
        stream = NoisedBatches(training, batch_size, (0.01, 8.0), seed + 1 + done)
        return stream, validation_batches(validation, seed)

    def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mean over the atoms with noise."""
        return {"loss": denoising_loss(self.denoiser, batch)}


class CrystalTraining(ScoreTraining):
    """Training on crystals: mean squared errors of the noise of the positions and of the strain."""

    denoiser_class = CrystalDenoiser
    kind = "crystals"

    @staticmethod
    def read(source: str, hold_out: Iterable[str], rng: np.random.Generator) -> tuple[Crystals, Crystals]:
        """Crystals for training and for validation."""
        return _random_split(read_crystals(source, hold_out), rng)

    def streams(self, training: Crystals, validation: Crystals, batch_size: int, seed: int, done: int) -> Streams:
        """Endless training batches after so many steps, and validation batches."""
        reach = self.denoiser.network.reach
        stream = NoisedCrystals(training, batch_size, (0.01, 4.0), reach, seed + 1 + done)
        return stream, crystal_validation_batches(validation, reach, seed)

    def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Means over atoms and over cells with noise; a lone atom, which cannot be moved, is none."""
        structure, sigma_cell = batch["structure"], batch["sigma_cell"]
        noise, strain = self.denoiser(
            batch["numbers"], batch["sigma"], sigma_cell, batch["pairs"], batch["vectors"], structure
        )
        counts = torch.bincount(structure, minlength=len(sigma_cell))[structure]
        # Noise that moves no centre has a variance of (N - 1) / N.
        weight = torch.where(counts > 1, counts / (counts - 1), 0.0) * (batch["sigma"] > 0)
        by_atom = ((noise - batch["noise"]) ** 2).mean(dim=1)
        by_cell = ((strain - batch["strain"]) ** 2).sum(dim=(1, 2)) / 6
        free = sigma_cell > 0
        return {
            "loss_positions": (by_atom * weight).sum() / (weight > 0).sum().clamp_min(1),
            "loss_cell": (by_cell * free).sum() / free.sum().clamp_min(1),
        }


class ForceTraining(ScoreTraining):
    """Training on forces of molecules, with the network of a score."""

    denoiser_class = Denoiser
    kind = FORCES

    @staticmethod
    def read(source: str, hold_out: Iterable[str], rng: np.random.Generator) -> tuple[ForceData, ForceData]:
        """Structures for training and for validation, of other compositions."""
        data = read_forces(source, hold_out)
        return data.split(min(N_FORCE_VALIDATION, max(1, len(data) // 10)), rng)

    def streams(self, training: ForceData, validation: ForceData, batch_size: int, seed: int, done: int) -> Streams:
        """Endless training batches after so many steps, and validation batches."""
        return ForceBatches(training, batch_size, seed + 1 + done), force_validation_batches(validation)

    def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mean over the components."""
        return {"loss": force_loss(self.denoiser, **batch)}

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        """Mean absolute error of a component (eV/Å), by the largest force."""
        structures = {key: value for key, value in batch.items() if key not in ("bin", "forces")}
        error = (predicted_forces(self.denoiser, **structures) - batch["forces"]).abs().mean()
        self.log(f"validation_up_to_{batch['bin']:g}", error, batch_size=len(batch["forces"]))


def validation_batches(structures: Structures, seed: int) -> list[dict[str, torch.Tensor]]:
    """All validation structures at each level of `VALIDATION_SIGMAS`, in batches; the same at every call."""
    rng = np.random.default_rng(seed)
    parts = np.array_split(np.arange(len(structures)), math.ceil(len(structures) / 32))
    return [
        add_noise(structures, part, np.full(len(part), sigma), rng, context=0.0)
        for sigma in VALIDATION_SIGMAS
        for part in parts
    ]


def crystal_validation_batches(crystals: Crystals, reach: float, seed: int) -> list[dict[str, torch.Tensor]]:
    """All validation crystals at each level of `VALIDATION_SIGMAS`, in batches; the same at every call."""
    rng = np.random.default_rng(seed)
    parts = np.array_split(np.arange(len(crystals)), math.ceil(len(crystals) / 32))
    batches = []
    for sigma in VALIDATION_SIGMAS:
        for part in parts:
            levels, context = np.full(len(part), sigma), np.zeros(len(part), dtype=bool)
            batches.append(noise_crystals(crystals, part, levels, cell_noise(levels), context, reach, rng))
    return batches


def moving_average(average: torch.Tensor, current: torch.Tensor, n_averaged: torch.Tensor | int) -> torch.Tensor:
    """Exponential average over about 1000 steps; over fewer at the beginning, to forget the random initial weights."""
    return average + (current - average) * max(0.001, 9.0 / (10.0 + float(n_averaged)))


def git_revision() -> str:
    """Revision of the code that trains, "unknown" outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _random_split(structures: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Training and validation."""
    if len(structures) < 2:
        raise InputError("There are too few structures: one to learn from and one to validate with are the least.")
    order = rng.permutation(len(structures))
    n_validation = min(N_VALIDATION, max(1, len(structures) // 10))
    return structures.select(np.sort(order[n_validation:])), structures.select(order[:n_validation])


_KINDS = {each.kind: each for each in (MoleculeTraining, CrystalTraining, ForceTraining)}


def _steps_done(last: Path, network: dict, card: dict) -> int:
    """Steps of the training that left this checkpoint; `InputError` where it was another one."""
    checkpoint = torch.load(last, map_location="cpu", weights_only=True)
    earlier = checkpoint["hyper_parameters"]
    now = {**network, **{key: card[key] for key in ("kind", "data", "held_out", "batch_size", "seed")}}
    before = {**now, **earlier["network"], **{key: earlier["card"].get(key, now[key]) for key in now if key in card}}
    different = [key for key in now if before[key] != now[key]]
    if different:
        raise InputError(
            f"{last.parent} is of a training with another {different[0]} ({before[different[0]]}): remove it, or give "
            "another output."
        )
    return checkpoint["global_step"]


def _take_weights(denoiser: nn.Module, start_from: str) -> None:
    try:
        denoiser.load_state_dict(read_model(start_from, "model")[1].state_dict())
    except RuntimeError as error:
        raise InputError(
            f"The weights of {start_from!r} do not fit: train the same kind and size of network."
        ) from error


def train(
    source: str,
    output: str,
    *,
    kind: str = "molecules",
    hold_out: tuple[str, ...] = (),
    steps: int = 54_000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    n_features: int = 64,
    n_blocks: int = 4,
    jitter: float = 0.5,
    start_from: str | None = None,
    device: str = "cpu",
    validate_every: int = 1000,
    compile_network: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Train a score, or forces, and write it to `output`; resume where `output`.checkpoints/last.ckpt exists.

    Parameters
    ----------
    source : str
        "qm9pack" or a file that ASE reads; for crystals see `read_crystals`, for forces `read_forces`.
    output : str
        Model file, written anew at every validation; checkpoints and loss curves go to `output`.checkpoints.
    kind : str
        What is learned: a score of "molecules" or of "crystals", or "forces" of molecules.
    hold_out : tuple of str
        Formulas, for crystals chemical systems such as "Ti-O", left out of training and validation.
    steps, batch_size, learning_rate : int, int, float
        Optimizer steps, structures in a step, peak learning rate.
    n_features, n_blocks : int
        Size of the network.
    jitter : float
        See `ElementEmbedding`.
    start_from : str, optional
        Score or forces, by name or file, whose weights the training starts from; the network must be of the same size.
    device : str
        "cpu" or "cuda".
    validate_every : int
        Steps between validations, model files and checkpoints, about: the last step is one of them.
    compile_network : bool
        Use torch.compile (needs a C++ compiler; 12 steps a second instead of 7 on one core).
    seed : int
        Seed of split, noise and initial weights.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        The validation losses of what was written last; empty where no steps were left to do.
    """
    if kind not in _KINDS:
        raise InputError(f"Nothing of the kind {kind!r} can be trained: give {', '.join(_KINDS)}.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("There is no GPU that torch can use here: leave out the device.")
    rng = np.random.default_rng(seed)
    training, validation = _KINDS[kind].read(source, hold_out, rng)
    # The last step is one that is validated: only then is the model written.
    rounds = max(1, round(steps / validate_every))
    validate_every, steps = steps // rounds, steps // rounds * rounds
    folder = Path(output + ".checkpoints")
    last = folder / "last.ckpt"
    torch.manual_seed(seed)
    network = {"n_features": n_features, "n_blocks": n_blocks, "jitter": jitter}
    card = {
        "kind": kind,
        "data": Path(source).name,
        "structures": len(training),
        "elements": sorted({int(z) for z in np.unique(training.numbers)}),
        "held_out": list(hold_out),
        "batch_size": batch_size,
        "seed": seed,
        "git_revision": git_revision(),
    }
    # After a restart the stream goes on with other numbers instead of repeating its beginning.
    done = _steps_done(last, network, card) if last.exists() else 0
    module = _KINDS[kind](network, learning_rate, steps, output, card)
    if start_from is not None:
        _take_weights(module.denoiser, start_from)
        card["started_from"] = read_model(start_from, "model")[2]
    if compile_network:
        module.denoiser.network.compile(dynamic=True)
    stream, judged = module.streams(training, validation, batch_size, seed, done)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = lightning.Trainer(
        accelerator="gpu" if device.startswith("cuda") else device,
        devices=1,
        max_steps=steps,
        val_check_interval=validate_every,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=CSVLogger(folder, name="log"),
        log_every_n_steps=100,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=[
            WeightAveraging(avg_fn=moving_average),
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=validate_every),
            *([TQDMProgressBar(refresh_rate=50)] if progress else []),
        ],
    )
    trainer.fit(
        module,
        DataLoader(stream, batch_size=None),
        DataLoader(judged, batch_size=None),
        ckpt_path=str(last) if last.exists() else None,
        weights_only=True,
    )
    return module.validation_loss
