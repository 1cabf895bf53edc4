"""What the network knows about an element before it has seen it: its place in the periodic table."""

import numpy as np
from ase.data import atomic_numbers, covalent_radii

#: Largest atomic number with a full set of descriptors (curium).
MAX_ATOMIC_NUMBER = 96

# Pauling scale (CRC Handbook; Allen's values, on the same scale, for He, Ne and Ar, which have no Pauling value).
_ELECTRONEGATIVITY = """
H 2.20 He 4.16 Li 0.98 Be 1.57 B 2.04 C 2.55 N 3.04 O 3.44 F 3.98 Ne 4.79 Na 0.93 Mg 1.31 Al 1.61 Si 1.90 P 2.19
S 2.58 Cl 3.16 Ar 3.24 K 0.82 Ca 1.00 Sc 1.36 Ti 1.54 V 1.63 Cr 1.66 Mn 1.55 Fe 1.83 Co 1.88 Ni 1.91 Cu 1.90 Zn 1.65
Ga 1.81 Ge 2.01 As 2.18 Se 2.55 Br 2.96 Kr 3.00 Rb 0.82 Sr 0.95 Y 1.22 Zr 1.33 Nb 1.60 Mo 2.16 Tc 1.90 Ru 2.20
Rh 2.28 Pd 2.20 Ag 1.93 Cd 1.69 In 1.78 Sn 1.96 Sb 2.05 Te 2.10 I 2.66 Xe 2.60 Cs 0.79 Ba 0.89 La 1.10 Ce 1.12
Pr 1.13 Nd 1.14 Pm 1.13 Sm 1.17 Eu 1.20 Gd 1.20 Tb 1.20 Dy 1.22 Ho 1.23 Er 1.24 Tm 1.25 Yb 1.10 Lu 1.27 Hf 1.30
Ta 1.50 W 2.36 Re 1.90 Os 2.20 Ir 2.20 Pt 2.28 Au 2.54 Hg 2.00 Tl 1.62 Pb 2.33 Bi 2.02 Po 2.00 At 2.20 Rn 2.20
Fr 0.70 Ra 0.90 Ac 1.10 Th 1.30 Pa 1.50 U 1.38 Np 1.36 Pu 1.28 Am 1.30 Cm 1.28
""".split()

_NOBLE_GASES = (2, 10, 18, 36, 54, 86)
_N_GROUPS = 19  # 18 groups, and one for lanthanides and actinides


def period_and_group(number: int) -> tuple[int, int]:
    """Period (1-7) and group (1-18; 19 for f elements) of an element.

    Parameters
    ----------
    number : int
        Atomic number, 1 to `MAX_ATOMIC_NUMBER`.
    """
    period = 1 + sum(number > noble for noble in _NOBLE_GASES)
    start = (0, *_NOBLE_GASES)[period - 1]
    length = (2, 8, 8, 18, 18, 32, 32)[period - 1]
    position = number - start
    if position <= 2 and not (period == 1 and position == 2):
        return period, position
    if length == 32 and position <= 16:
        return period, 19
    return period, 18 - (length - position)


def element_table() -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of all elements up to `MAX_ATOMIC_NUMBER`.

    Returns
    -------
    classes : ndarray, shape (MAX_ATOMIC_NUMBER + 1, 19)
        Group of the periodic table, one-hot.
    values : ndarray, shape (MAX_ATOMIC_NUMBER + 1, 3)
        Period, covalent radius and electronegativity, each shifted and scaled to order one.
    """
    classes = np.zeros((MAX_ATOMIC_NUMBER + 1, _N_GROUPS))
    values = np.zeros((MAX_ATOMIC_NUMBER + 1, 3))
    electronegativity = dict(zip(_ELECTRONEGATIVITY[::2], map(float, _ELECTRONEGATIVITY[1::2]), strict=True))
    for symbol, value in electronegativity.items():
        number = atomic_numbers[symbol]
        period, group = period_and_group(number)
        classes[number, group - 1] = 1.0
        values[number] = (period - 3) / 2, (covalent_radii[number] - 1.0) / 0.5, (value - 2.0) / 0.8
    return classes, values
