"""Figures of the benchmarks."""

from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np


def draw_curves(facts: dict[str, Any], window: float, path: Path) -> None:
    """Distinct minima within a window (eV) against force calls: one panel a system, mean and standard error.

    A dotted line is the number of all that are known.

    Parameters
    ----------
    facts : dict
        As `molecules.evaluate` gives them, by formula.
    window : float
        One of `molecules.WINDOWS`.
    path : Path
        Its ending says the format.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("The figure needs matplotlib: pip install matplotlib.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, ceil(sqrt(len(facts))))
    rows = -(-len(facts) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(3.6 * columns, 6.0), 3.2 * rows + 0.6), squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(name for system in facts.values() for name in system["methods"]))
    # This search and random search are what the eye should find first.
    palette = [color for k, color in enumerate(plt.colormaps["tab20"].colors) if k not in (6, 7)]  # less the reds
    colors = {name: palette[k % len(palette)] for k, name in enumerate(names)}
    colors |= {"gss": "black", "rss": "tab:red"}
    handles: dict[str, Any] = {}
    for panel, (formula, system) in zip(axes.flat, facts.items(), strict=False):
        curves = system["windows"][str(window)]
        for name, method in curves["methods"].items():
            calls, mean, error = (np.array(method["curve"][key]) for key in ("calls", "mean", "standard_error"))
            width = 2.2 if name in ("gss", "rss") else 1.2
            (handles[name],) = panel.plot(calls, mean, color=colors[name], linewidth=width, label=name)
            error = np.nan_to_num(error.astype(float))
            panel.fill_between(calls, mean - error, mean + error, color=colors[name], alpha=0.15, linewidth=0)
        panel.axhline(curves["pooled"], color="gray", linewidth=0.8, linestyle=":")
        panel.set(xscale="log", title=formula, ylim=(0, None))
    for panel in axes.flat[len(facts) :]:
        panel.set_axis_off()
    figure.supxlabel("force calls")
    figure.supylabel(f"minima within {window:g} eV")
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=min(len(handles), 2 + columns),
        frameon=False,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
