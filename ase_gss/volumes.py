"""How much room atoms take in a crystal."""

import numpy as np
from ase.data import atomic_numbers

from ase_gss.errors import InputError

# Of each element: the volume (Å3) of its atom among its like, and four hidden electronegativities. Fitted to 33 254
# crystals; the columns have no meaning beyond the formula in `typical_volume`. No crystal holds He, Ne, Ar, Kr, Xe, Rn
# (their cold solids, no electronegativity), nor Po, At, Fr, Ra (those of Te, I, Cs, Ba).
_TABLE = """
H    7.06 -0.384  0.322 -0.290  0.825   He  20.00  0.000  0.000  0.000  0.000   Li  15.12  0.027 -0.344 -0.080 -0.031
Be   7.95  0.200 -0.115 -0.142 -0.003   B    6.10  0.328  0.403 -0.005  0.294   C    7.55  0.547  0.420  0.176  0.520
N   10.36 -0.087  0.696  0.290  0.392   O   10.44  0.031  0.938 -0.662  0.344   F   14.39 -0.128  0.916 -0.373  0.274
Ne  22.20  0.000  0.000  0.000  0.000   Na  33.18  0.025 -0.523 -0.172 -0.114   Mg  22.98  0.138 -0.487 -0.258  0.002
Al  15.85  0.256 -0.188 -0.280  0.217   Si  14.91  0.336  0.073  0.163  0.364   P   19.83  0.071  0.045  0.326  0.678
S   25.48 -0.350  0.272 -0.026  0.661   Cl  32.08 -0.113  0.456  0.027  0.426   Ar  37.50  0.000  0.000  0.000  0.000
K   52.39  0.047 -0.498 -0.218 -0.111   Ca  41.15  0.025 -0.612 -0.140 -0.219   Sc  23.90  0.049 -0.282  0.007 -0.206
Ti  16.91 -0.004 -0.016  0.055 -0.282   V   12.61 -0.089  0.287  0.373 -0.331   Cr  11.41  0.126  0.189  0.218 -0.232
Mn  11.67  0.333  0.183  0.071 -0.181   Fe  11.63  0.092  0.364  0.212 -0.345   Co  10.54 -0.091  0.302  0.090 -0.398
Ni  10.02 -0.121  0.254 -0.029 -0.323   Cu  11.42  0.152  0.212  0.001 -0.119   Zn  14.09  0.319  0.016 -0.115  0.186
Ga  17.17  0.265 -0.063 -0.240  0.357   Ge  19.15  0.205  0.056  0.078  0.380   As  24.12 -0.186  0.064  0.144  0.609
Se  27.92 -0.477  0.181  0.008  0.561   Br  38.22 -0.040  0.222 -0.010  0.414   Kr  45.00  0.000  0.000  0.000  0.000
Rb  75.60  0.031 -0.715 -0.104 -0.236   Sr  49.88  0.057 -0.628 -0.279 -0.171   Y   32.86  0.004 -0.322 -0.050 -0.223
Zr  23.22 -0.011  0.020  0.105 -0.315   Nb  18.02 -0.044  0.211  0.266 -0.279   Mo  15.14  0.044  0.493  0.471 -0.236
Tc  14.02  0.082  0.348  0.073 -0.188   Ru  13.04 -0.183  0.361 -0.007 -0.233   Rh  13.46 -0.194  0.403 -0.107 -0.253
Pd  14.72 -0.062  0.273 -0.046 -0.148   Ag  17.48  0.215  0.217  0.170  0.046   Cd  22.03  0.344 -0.070 -0.066  0.313
In  25.23  0.282 -0.143 -0.169  0.346   Sn  27.45  0.103 -0.083 -0.028  0.329   Sb  30.38 -0.174 -0.109  0.011  0.398
Te  34.20 -0.504 -0.085 -0.212  0.486   I   49.57  0.092 -0.066 -0.096  0.372   Xe  59.00  0.000  0.000  0.000  0.000
Cs  83.85  0.040 -0.651 -0.109 -0.149   Ba  57.53  0.059 -0.533 -0.271 -0.118   La  38.64 -0.132 -0.295 -0.142 -0.164
Ce  32.87 -0.184 -0.196 -0.026 -0.138   Pr  36.89 -0.121 -0.252 -0.068 -0.200   Nd  36.28 -0.101 -0.276 -0.093 -0.228
Pm  34.35 -0.144 -0.276 -0.037 -0.255   Sm  34.58 -0.103 -0.279 -0.035 -0.247   Eu  42.07 -0.028 -0.492 -0.088 -0.190
Gd  33.96 -0.073 -0.324 -0.019 -0.272   Tb  32.63 -0.063 -0.287 -0.044 -0.267   Dy  32.04 -0.054 -0.309 -0.056 -0.266
Ho  31.24 -0.010 -0.304 -0.046 -0.235   Er  30.92 -0.031 -0.339 -0.054 -0.248   Tm  30.23 -0.007 -0.320 -0.055 -0.255
Yb  30.47 -0.010 -0.361 -0.086 -0.246   Lu  28.93  0.028 -0.335 -0.080 -0.201   Hf  22.00  0.042 -0.051  0.065 -0.284
Ta  17.76  0.089  0.118  0.221 -0.238   W   15.64  0.099  0.550  0.388 -0.210   Re  14.79  0.039  0.382  0.206 -0.123
Os  14.13 -0.225  0.428  0.027 -0.254   Ir  14.07 -0.206  0.399 -0.077 -0.210   Pt  15.27  0.002  0.304 -0.123 -0.073
Au  18.03  0.234  0.269  0.118  0.093   Hg  26.21  0.139  0.121  0.087  0.443   Tl  29.47  0.259  0.145  0.130  0.405
Pb  30.77  0.011 -0.070  0.049  0.287   Bi  33.10 -0.083 -0.143  0.052  0.248   Po  34.20 -0.504 -0.085 -0.212  0.486
At  49.57  0.092 -0.066 -0.096  0.372   Rn  70.00  0.000  0.000  0.000  0.000   Fr  83.85  0.040 -0.651 -0.109 -0.149
Ra  57.53  0.059 -0.533 -0.271 -0.118   Ac  45.31 -0.211 -0.310 -0.075 -0.193   Th  33.77 -0.151 -0.121  0.033 -0.180
Pa  25.46 -0.220 -0.011  0.203 -0.155   U   22.68 -0.234  0.061  0.449 -0.111   Np  25.89 -0.153 -0.010  0.261 -0.169
Pu  28.33 -0.085 -0.080  0.166 -0.217
"""

#: Of the variances of the four hidden electronegativities: mixing with the first and third makes room, with the second
#: and fourth it takes room.
_SIGNS = np.array([1.0, -1.0, 1.0, -1.0])


def _read_table() -> tuple[np.ndarray, np.ndarray]:
    """Atomic volumes (95,) in Å3 and hidden electronegativities (95, 4), by atomic number; NaN for number 0."""
    volumes, hidden = np.full(95, np.nan), np.full((95, 4), np.nan)
    words = _TABLE.split()
    for first in range(0, len(words), 6):
        symbol, *values = words[first : first + 6]
        volumes[atomic_numbers[symbol]] = float(values[0])
        hidden[atomic_numbers[symbol]] = [float(value) for value in values[1:]]
    return volumes, hidden


_VOLUMES, _HIDDEN = _read_table()


def typical_volume(numbers: np.ndarray) -> float:
    """Volume (Å3) of a crystal's cell with these atoms at ambient pressure.

    The mean atomic volume of the elements, times the exponential of how much the elements differ: with the mole
    fractions x, the atomic volumes v, and the hidden electronegativities u of channels c with the sign s,
    V/N = sum(x v) · exp(sum_c s_c Var_x(u_c)).

    Parameters
    ----------
    numbers : ndarray, shape (N,)
        Atomic numbers, 1 to 94.

    Raises
    ------
    InputError
        Where there is no atom, or an element beyond plutonium.

    Notes
    -----
    Fitted to the experimentally known crystals at most 0.1 eV/atom above the hull, with at most 24 atoms a cell, of the
    Materials Project (2025.02.12 release and older subsets, CC-BY-4.0; Jain et al., APL Materials 1, 011002, 2013),
    relaxed with PBE, PBE+U or r2SCAN. Median error 3.2 % on chemical systems left out of the fit. The systems Ti-O,
    Si-O, Ca-Ti-O, Mg-O, C, Si, Si-C, B-N, Ga-As, Al-O, Na-Cl and Zn-S are in no fit: 9 % over all their polymorphs,
    which differ by 4 % among themselves. Open networks want more room than it says: silicon a third,
    layers of C and B-N up to twice as much.
    """
    numbers = np.asarray(numbers, dtype=int)
    if not len(numbers):
        raise InputError("A crystal needs at least one atom: give its atomic numbers.")
    if numbers.min() < 1 or numbers.max() > 94:
        raise InputError(
            "The volume is known for the elements from hydrogen to plutonium: give the volume of the cell."
        )
    hidden = _HIDDEN[numbers]
    return float(_VOLUMES[numbers].sum() * np.exp(hidden.var(axis=0) @ _SIGNS))
