"""What the shell command `ase-gss` understands."""

import argparse

from ase_gss import __version__


def parser() -> argparse.ArgumentParser:
    """The parser; `command` is what was asked for, the other names are those of the options."""
    top = argparse.ArgumentParser(prog="ase-gss", description="Generative structure search for ASE.")
    top.add_argument("--version", action="version", version=f"ase-gss {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    search = commands.add_parser("search", help="search for the minima of a composition")
    search.add_argument("formula", help="for instance C3H6O, or with --crystal Ti4O8")
    search.add_argument("--crystal", action="store_true", help="search for crystals: positions and cell")
    search.add_argument(
        "--formula-units",
        type=_range,
        metavar="N|N-M",
        help="the formula so many times in a cell, drawn for each trial",
    )
    search.add_argument(
        "--pressure", type=float, default=0.0, help="on a crystal, GPa; enthalpies are compared (default: %(default)s)"
    )
    search.add_argument("--volume", type=float, help="of one formula unit at the start, Å3 (default: typical)")
    search.add_argument(
        "--symmetry", action="store_true", help="each trial of a crystal starts with a random space group, and keeps it"
    )
    search.add_argument(
        "-c",
        "--calculator",
        help="gfn2, gfn1, chgnet, sevennet, mattersim, mace, orb, uma, tersoff, sw, emt, lj or module:factory "
        "(default: gfn2; for crystals of C and Si tersoff, for others chgnet)",
    )
    search.add_argument("--score", help="shipped score or model file (default: molecules, or crystals)")
    search.add_argument(
        "--regime",
        help="how trials are made: adaptive goes where new minima are met for the fewest force calls (default for "
        "molecules); or diffusion, hot, hotter, early, again, turned, rss",
    )
    search.add_argument(
        "--adapt",
        action=argparse.BooleanOptionalAction,
        help="let the score and the forces of an adaptive search learn from what is found (default: where they can)",
    )
    search.add_argument(
        "--forces",
        metavar="FILE",
        help="learned forces that samples are relaxed with before they cost a force call: a file of ase-gss train "
        "--forces, or none to begin without any (default: molecules-forces, which ship with it)",
    )
    search.add_argument(
        "--coupling",
        help="instead of a regime: diffusion (default for crystals), hot, mi, mn, force, langevin or rss",
    )
    _add_crew(search)
    search.add_argument(
        "--batch",
        type=_positive,
        default=1,
        metavar="N",
        help="relax up to N trials together, at most 16; for chgnet, or your own (default: %(default)s)",
    )
    search.add_argument("--trial-limit", type=float, metavar="S", help="a trial that takes longer is killed, s")
    search.add_argument(
        "--failure-limit",
        type=float,
        default=0.5,
        help="share of failed trials above which the search stops (default: %(default)s)",
    )
    search.add_argument("--trials", type=_positive, help="end after so many trials in all")
    search.add_argument(
        "--max-calls",
        type=_positive,
        help="end after so many force calls in all; the trials under way are finished (default: 4000)",
    )
    search.add_argument(
        "--fmax",
        type=float,
        default=0.05,
        help="largest force of a minimum, eV/Å (default: %(default)s); the stress of a crystal is within 0.1 GPa",
    )
    search.add_argument("--optimizer", help="FIRE, BFGS or another of ASE's (default: ModelBFGS, the cheapest)")
    search.add_argument("--charge", type=int, default=0, help="total charge, e (default: %(default)s)")
    search.add_argument("--multiplicity", type=_positive, help="2S+1 (default: 1, or 2 for an odd number of electrons)")
    search.add_argument("--fragments", action="store_true", help="keep ends that are not in one piece")
    search.add_argument("--refine", action="store_true", help="relax the distinct minima tightly at the end")
    search.add_argument("--verify", choices=["hessian"], help="refine, and check each minimum for imaginary modes")
    search.add_argument("--seed", type=int, default=0, help="same seed, same search (default: %(default)s)")
    search.add_argument("-o", "--output", help="database; where it exists, the search goes on (default: FORMULA.db)")
    search.add_argument("--top", type=_positive, default=20, help="rows of the table (default: %(default)s)")

    rank = commands.add_parser("rank", help="print the distinct minima, lowest first")
    rank.add_argument("database")
    rank.add_argument("--top", type=_positive, help="rows of the table (default: all)")

    summary = commands.add_parser("summary", help="print the totals of a search")
    summary.add_argument("database")
    summary.add_argument("--json", action="store_true", help="as JSON")

    export = commands.add_parser("export", help="write the distinct minima to a file")
    export.add_argument("database")
    export.add_argument("-o", "--output", required=True, help="any format ASE writes, by its ending: minima.extxyz")

    refine = commands.add_parser("refine", help="relax the distinct minima tightly and merge what falls together")
    refine.add_argument("database")
    refine.add_argument("-c", "--calculator", help="needed for a search in Python with a calculator object")
    refine.add_argument("--fmax", type=float, default=0.005, help="largest force, eV/Å (default: %(default)s)")
    refine.add_argument("--verify", choices=["hessian"], help="check each minimum for imaginary modes, too")
    refine.add_argument(
        "--every-end", action="store_true", help="all ends, not one of each minimum: shows soft conformers"
    )
    _add_crew(refine)
    refine.add_argument("--top", type=_positive, default=20, help="rows of the table (default: %(default)s)")

    train = commands.add_parser("train", help="train a score, or forces")
    train.add_argument("data", help="a file that ASE reads (extxyz, traj, db, ...), or qm9pack")
    train.add_argument("-o", "--output", required=True, help="model file")
    kind = train.add_mutually_exclusive_group()
    kind.add_argument("--crystal", action="store_true", help="train on periodic structures")
    kind.add_argument("--forces", action="store_true", help="train on the forces in the file, of molecules")
    train.add_argument(
        "--hold-out",
        nargs="+",
        default=[],
        metavar="NAME",
        help="formulas (C3H6O), for crystals chemical systems (Ca-Ti-O), to leave out; a file with one in each line",
    )
    train.add_argument("--steps", type=_positive, default=54_000, help="optimizer steps (default: %(default)s)")
    train.add_argument("--batch-size", type=_positive, default=32, help="structures in a step (default: %(default)s)")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="peak learning rate (default: %(default)s)")
    train.add_argument("--features", type=_positive, default=64, help="width of the network (default: %(default)s)")
    train.add_argument("--blocks", type=_positive, default=4, help="PaiNN blocks (default: %(default)s)")
    train.add_argument("--jitter", type=float, default=0.5, help="noise on element descriptors (default: %(default)s)")
    train.add_argument("--start-from", metavar="MODEL", help="score or forces whose weights the training starts from")
    train.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    train.add_argument("--validate-every", type=_positive, default=1000, help="steps (default: %(default)s)")
    train.add_argument("--compile", action="store_true", help="torch.compile: 1.7 times as fast; needs a C++ compiler")
    train.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return top


def _add_crew(command: argparse.ArgumentParser) -> None:
    """Who does the work."""
    command.add_argument("-j", "--workers", type=_positive, default=1, help="processes (default: %(default)s)")
    command.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask scheduler that does the work instead")
    command.add_argument("--call-limit", type=float, metavar="S", help="a force call that takes longer is killed, s")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def _range(text: str) -> tuple[int, ...]:
    first, _, last = text.partition("-")
    if not all(part.isdecimal() and int(part) for part in (first, last or first)) or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"{text} is neither a whole number like 4 nor a range like 1-4")
    low, high = int(first), int(last or first)
    return tuple(range(low, high + 1))
