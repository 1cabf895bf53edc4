"""Model files, and the score as everything else sees it: numpy in, numpy out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import Calculator

from ase_gss.allocation import keep_large_blocks
from ase_gss.errors import InputError
from ase_gss.score.crystal_denoiser import CrystalDenoiser, periodic_pairs
from ase_gss.score.denoiser import Denoiser
from ase_gss.score.elements import MAX_ATOMIC_NUMBER

FORMAT = "ase-gss score 1"
#: The kind of a model file that has learned forces.
FORCES = "forces"
#: Matrix products of fewer rows are rounded in another way: what a network makes of a structure would depend on what is
#: evaluated with it.
LEAST_ATOMS = 32
#: The same for crystals, whose atoms are many more rows by their pairs.
_LEAST_ATOMS_OF_CRYSTALS = 8
WEIGHTS = Path(__file__).parent / "weights"


def save_model(
    denoiser: Denoiser | CrystalDenoiser, network: dict, card: dict, path: str, kind: str | None = None
) -> None:
    """Write a model file, whole or not at all.

    Parameters
    ----------
    denoiser : Denoiser
        The weights to keep.
    network : dict
        Keyword arguments with which `denoiser` was made.
    card : dict
        Data, what was held out, losses: plain numbers, strings and lists.
    path : str
        Where to.
    kind : str, optional
        What it has learned: "forces", or by default what the class of the denoiser is for.
    """
    kind = kind or ("crystals" if isinstance(denoiser, CrystalDenoiser) else "molecules")
    state = {key: value.detach().cpu().clone() for key, value in denoiser.state_dict().items()}
    unfinished = f"{path}.{os.getpid()}.part"
    torch.save({"format": FORMAT, "kind": kind, "network": network, "card": card, "state": state}, unfinished)
    os.replace(unfinished, path)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch keeps to one thread: its networks are small, and with more threads results could differ from a worker's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def padded(structure: np.ndarray, least: int = LEAST_ATOMS) -> tuple[np.ndarray, np.ndarray]:
    """Atoms to evaluate instead of these, and the structure of each: the last one again until there are enough.

    Parameters
    ----------
    structure : ndarray, shape (A,)
        Structure of each atom, ascending from 0.
    least : int
        Atoms that are enough.
    """
    last = np.flatnonzero(structure == structure[-1])
    copies = max(-(-(least - len(structure)) // len(last)), 0)
    more = structure[-1] + 1 + np.repeat(np.arange(copies), len(last))
    return np.concatenate([np.arange(len(structure)), np.tile(last, copies)]), np.concatenate([structure, more])


class Score:
    """A learned score, grad log p_sigma(x), for batches of different structures.

    Attributes
    ----------
    name : str
        Name or path it was loaded by.
    card : dict
        Where it comes from: data, what was held out, validation losses.
    calls : int
        Score calls so far (one network evaluation of one structure each).
    """

    #: Structures in one evaluation of the network: more do not fit the cache and are slower.
    chunk = 32
    #: Pairs of atoms in one: of molecules of more than 20 atoms fewer go together, or they would fill the memory.
    most_pairs = 32 * 20**2
    #: Whether it is one for crystals.
    periodic = False

    def __init__(
        self, denoiser: Denoiser | CrystalDenoiser, name: str = "score", card: dict | None = None, device: str = "cpu"
    ) -> None:
        self.denoiser = denoiser.to(device).eval()
        self.name, self.card, self.device = name, card or {}, device
        self.calls = 0
        keep_large_blocks()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process needs: about 1 MB, no file, and weights that load without the device."""
        denoiser = self.denoiser if self.device == "cpu" else deepcopy(self.denoiser).cpu()
        return self.__dict__ | {"denoiser": denoiser, "calls": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up this state; the weights go to the device."""
        self.__dict__.update(state)
        self.denoiser = self.denoiser.to(self.device).eval()
        keep_large_blocks()

    def __call__(
        self, numbers: np.ndarray, positions: np.ndarray, sigma: np.ndarray, structure: np.ndarray
    ) -> np.ndarray:
        """Scores of all atoms.

        Parameters
        ----------
        numbers : ndarray, shape (A,)
            Atomic numbers.
        positions : ndarray, shape (A, 3)
            Å.
        sigma : ndarray, shape (A,)
            Noise level of each atom, Å; 0 for a fixed atom, which is context.
        structure : ndarray, shape (A,)
            Structure of each atom: 0, 0, ..., 1, 1, ..., ascending without gaps.

        Returns
        -------
        ndarray, shape (A, 3)
            1/Å; 0 for fixed atoms.
        """
        numbers, sigma, structure = np.asarray(numbers), np.asarray(sigma), np.asarray(structure)
        n_structures = int(structure[-1]) + 1
        score, together = np.empty((len(numbers), 3)), self.together(int(np.bincount(structure).max()))
        for start in range(0, n_structures, together):
            low, high = np.searchsorted(structure, [start, min(start + together, n_structures)])
            part = slice(low, high)
            score[part] = self._evaluate(numbers[part], positions[part], sigma[part], structure[part] - start)
        self.calls += n_structures
        return score

    @classmethod
    def together(cls, n_atoms: int) -> int:
        """How many structures of so many atoms go into one evaluation of the network."""
        return int(np.clip(cls.most_pairs // n_atoms**2, 1, cls.chunk))

    def _evaluate(self, numbers, positions, sigma, structure) -> np.ndarray:
        asked = len(numbers)
        which, structure = padded(structure)
        numbers, positions, sigma = numbers[which], positions[which], sigma[which]
        # Centred before rounding to single precision: far from the origin the small sigmas would drown.
        n_structures = int(structure[-1]) + 1
        counts = np.bincount(structure)[:, None]
        centre = np.add.reduceat(positions, np.searchsorted(structure, np.arange(n_structures))) / counts
        centred = torch.as_tensor((positions - centre[structure]).astype(np.float32), device=self.device)
        with torch.inference_mode(), one_thread():
            clean = self.denoiser(
                torch.as_tensor(numbers, device=self.device),
                centred,
                torch.as_tensor(sigma.astype(np.float32), device=self.device),
                torch.as_tensor(structure, device=self.device),
                n_structures,
            )
        displacement = (clean - centred).double().cpu().numpy()
        safe = np.where(sigma > 0, sigma, 1.0)[:, None]
        return (displacement / safe**2 * (sigma > 0)[:, None])[:asked]

    def check_elements(self, numbers: np.ndarray) -> None:
        """Raise `InputError` for an element without descriptors."""
        beyond = sorted({int(z) for z in numbers if not 0 < z <= MAX_ATOMIC_NUMBER})
        if beyond:
            raise InputError(f"The score has no descriptors for atomic number {beyond[0]}; it knows 1 to 96.")


class CrystalScore(Score):
    """A learned score of crystals: of the positions and of the strain of the cell."""

    chunk = 16
    periodic = True

    def __call__(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        sigma: np.ndarray,
        structure: np.ndarray,
        cells: np.ndarray,
        sigma_cell: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all atoms and cells.

        Parameters
        ----------
        numbers, positions, sigma, structure : ndarray
            As for `Score`.
        cells : ndarray, shape (S, 3, 3)
            Lattice vectors as rows, Å.
        sigma_cell : ndarray, shape (S,)
            Noise level of each cell, a strain; 0 for a cell that is context.

        Returns
        -------
        score : ndarray, shape (A, 3)
            1/Å; 0 for fixed atoms.
        strain_score : ndarray, shape (S, 3, 3)
            Derivative of the logarithm of the density by the strain, symmetric; 0 for fixed cells.
        """
        numbers, sigma, structure = np.asarray(numbers), np.asarray(sigma), np.asarray(structure)
        n_structures = len(cells)
        score, strain_score = np.empty((len(numbers), 3)), np.empty((n_structures, 3, 3))
        for start in range(0, n_structures, self.chunk):
            end = min(start + self.chunk, n_structures)
            first, last = np.searchsorted(structure, [start, end])
            part = slice(first, last)
            which, owner = padded(structure[part] - start, _LEAST_ATOMS_OF_CRYSTALS)
            atoms, whose = first + which, np.minimum(start + np.arange(owner[-1] + 1), end - 1)
            pairs, vectors = periodic_pairs(
                numbers[atoms], positions[atoms], cells[whose], owner, self.denoiser.network.reach
            )
            arrays = [numbers[atoms], sigma[atoms], sigma_cell[whose], pairs, vectors, owner]
            tensors = [torch.tensor(array, device=self.device) for array in arrays]
            tensors[1], tensors[2] = tensors[1].float(), tensors[2].float()
            with torch.inference_mode(), one_thread():
                noise, strain = self.denoiser(*tensors)
            noise, strain = noise[: last - first], strain[: end - start]
            score[part] = -noise.double().cpu().numpy() / np.where(sigma[part] > 0, sigma[part], 1.0)[:, None]
            levels = np.where(sigma_cell[start:end] > 0, sigma_cell[start:end], 1.0)[:, None, None]
            strain_score[start:end] = -strain.double().cpu().numpy() / levels
        self.calls += n_structures
        return score, strain_score


def load_score(name: str | os.PathLike | Score, device: str = "cpu") -> Score:
    """Load a score that ships with the package, or a model file.

    Parameters
    ----------
    name : str, path or Score
        "molecules", "crystals", or the path of a file that `ase-gss train` wrote. A `Score` is returned as it is.
    device : str
        "cpu" or "cuda".

    Raises
    ------
    InputError
        Where there is no such file, or it is not a model file.
    """
    if isinstance(name, Score):
        return name
    kind, denoiser, card = read_model(name, "score")
    if kind == FORCES:
        raise InputError(f"{name} has learned forces, not a score: give a model that was trained without --forces.")
    return (CrystalScore if kind == "crystals" else Score)(denoiser, name=str(name), card=card, device=device)


def read_model(name: str | os.PathLike, what: str) -> tuple[str, Denoiser | CrystalDenoiser, dict[str, Any]]:
    """Kind, network and card of a model that ships with the package, or of a model file.

    Parameters
    ----------
    name : str or path
        Name or file.
    what : str
        "score", "forces" or "model", for the error.

    Raises
    ------
    InputError
        Where there is no such file, or it is not a model file.
    """
    shipped = sorted(path.stem for path in WEIGHTS.glob("*.pt"))
    path = WEIGHTS / f"{name}.pt" if str(name) in shipped else Path(name)
    if not path.is_file():
        fitting = [each for each in shipped if what == "model" or each.endswith(FORCES) == (what == FORCES)]
        raise InputError(f"No {what} {str(name)!r}: give {' or '.join(fitting)}, or the path of a model file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the safe loader raises many kinds for a file that is no model
        kind = type(error).__name__
        raise InputError(f"{path} is not a model file that ase-gss can read safely ({kind}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a model file of the format {FORMAT!r}.")
    try:
        kind = content.get("kind", "molecules")
        denoiser = CrystalDenoiser(**content["network"]) if kind == "crystals" else Denoiser(**content["network"])
        denoiser.load_state_dict(content["state"])
        return kind, denoiser, dict(content["card"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is a damaged model file ({type(error).__name__}).") from error


def score_for(numbers: np.ndarray, periodic: bool, score: Any = None) -> Any:
    """The score for atoms of these elements.

    Parameters
    ----------
    numbers : ndarray
        Atomic numbers that occur.
    periodic : bool
        Whether the atoms are periodic.
    score : str, path, Score or callable, optional
        As for `load_score`, by default the one that suits. A function of the user's is taken as it is.

    Raises
    ------
    InputError
        Where it cannot be loaded, or is for other atoms.
    """
    suitable = "crystals" if periodic else "molecules"
    if isinstance(score, Calculator):
        raise InputError(f"{type(score).__name__} is no score: give one from load_score, or a function.")
    loaded = score if callable(score) else load_score(suitable if score is None else score)
    if hasattr(loaded, "periodic"):
        if loaded.periodic != periodic:
            kind = "crystals" if loaded.periodic else "molecules"
            raise InputError(f"The score {loaded.name!r} is for {kind}: give score={suitable!r}, or change pbc.")
        loaded.check_elements(numbers)
    return loaded
