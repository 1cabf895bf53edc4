"""The shell for crystals, as a user meets it."""

import json

import numpy as np
import pytest
import torch
from ase.io import read

from ase_gss.cli import main
from ase_gss.score.crystal_denoiser import CrystalDenoiser
from ase_gss.score.denoiser import Denoiser
from ase_gss.score.model import save_model

NETWORK = {"n_features": 8, "n_blocks": 2}
SEARCH = ["search", "Cu", "--crystal", "-c", "emt", "--coupling", "rss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model files of both kinds, and a finished search at 10 GPa."""
    path = tmp_path_factory.mktemp("crystals")
    torch.manual_seed(0)
    save_model(CrystalDenoiser(**NETWORK), NETWORK, {"data": "none"}, str(path / "crystals.pt"))
    save_model(Denoiser(**NETWORK), NETWORK, {"data": "none"}, str(path / "molecules.pt"))
    options = ["--pressure", "10", "--formula-units", "1-2", "--volume", "12", "-o", str(path / "cu.db")]
    assert main([*SEARCH, *options, "--trials", "3"]) == 0
    return path


@pytest.fixture
def database(folder, capsys):
    capsys.readouterr()
    return str(folder / "cu.db")


def test_search_ends_in_a_table_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SEARCH, "--trials", "1", "--formula-units", "2-4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Searching Cu (crystals of 2-4 formula units, 0 GPa) with emt."
    header = next(line for line in lines if line.split()[:3] == ["rank", "dH/eV/atom", "H/eV/atom"])
    assert header.endswith("space group")
    assert (tmp_path / "Cu.db").exists()
    assert main([*SEARCH, "--trials", "2", "--formula-units", "2-4"]) == 0
    assert "going on after 1 trials" in capsys.readouterr().out


def test_summary_rank_and_export_agree(database, tmp_path, capsys):
    assert main(["summary", database, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["trials"] == 3
    assert facts["settings"]["pressure"] == pytest.approx(10 / 160.2177, rel=1e-4)
    assert facts["settings"]["units"] == [1, 2]
    assert set(facts["minima_within"]) == {"0.05", "0.1", "0.3"}
    assert main(["summary", database]) == 0
    assert "eV/atom" in capsys.readouterr().out
    assert main(["rank", database]) == 0
    ranked = capsys.readouterr().out.splitlines()
    assert len(ranked) == 1 + facts["minima"]
    assert float(ranked[1].split()[2]) == pytest.approx(facts["lowest_energy"], abs=1e-3)
    target = str(tmp_path / "minima.extxyz")
    assert main(["export", database, "-o", target]) == 0
    frames = read(target, ":")
    assert len(frames) == facts["minima"]
    for frame, line in zip(frames, ranked[1:], strict=True):
        enthalpy = frame.get_potential_energy() + facts["settings"]["pressure"] * frame.get_volume()
        assert enthalpy / len(frame) == pytest.approx(float(line.split()[2]), abs=1e-3)
        assert frame.get_volume() / len(frame) == pytest.approx(float(line.split()[3]), abs=1e-3)
        np.testing.assert_allclose(frame.get_stress()[:3] * 160.2177, -10, atol=0.1)


def test_refine_keeps_the_pressure(database, capsys):
    assert main(["refine", database]) == 0
    out = capsys.readouterr().out
    assert "were refined" in out
    assert main(["rank", database]) == 0
    assert capsys.readouterr().out.splitlines()[1] in out


def test_a_model_file_and_symmetry(folder, tmp_path, capsys):
    options = ["--crystal", "-c", "sw", "--score", str(folder / "crystals.pt"), "--symmetry", "--seed", "1"]
    assert main(["search", "Si2", *options, "--trials", "1", "-o", str(tmp_path / "si.db")]) == 0
    out = capsys.readouterr().out
    assert "Si2: 1 trials" in out
    assert "50 score calls" in out or "cell out of bounds" in out


@pytest.mark.parametrize(
    ("formula", "options", "message"),
    [
        ("Cu", ["--crystal", "-c", "emt", "--volume", "-5"], "volume of -5.0"),
        ("Cu", ["--crystal", "-c", "emt", "--volume", "0.1"], "finds no room"),
        ("Cu", ["--crystal", "-c", "emt", "--pressure", "nan"], "pressure must be a finite number"),
        ("Cu", ["-c", "emt", "--pressure", "10"], "add --crystal (pbc=True in Python)"),
        ("Cu", ["-c", "emt", "--symmetry"], "add --crystal (pbc=True in Python)"),
        ("Cu", ["-c", "emt", "--formula-units", "2"], "add --crystal (pbc=True in Python)"),
        ("Fe", ["--crystal", "-c", "emt"], "does not know Fe"),
        ("Ge2", ["--crystal", "-c", "sw"], "does not know Ge"),
        ("Cu", ["--crystal", "-c", "emt", "--verify", "hessian"], "Vibrations are checked for molecules only"),
        ("Cu", ["--crystal", "-c", "emt", "--charge", "1"], "charge and multiplicity are for molecules"),
        ("Cu", ["--crystal", "-c", "without_stress:make"], "gives no stress"),
        ("Cu", ["--crystal", "-c", "emt", "--coupling", "diffusion", "--score", "molecules"], "is for molecules"),
        ("Cu", ["--crystal", "-c", "emt", "--coupling", "mn", "--score", "molecules.pt"], "is for molecules"),
        ("Cu2", ["-c", "emt", "--coupling", "diffusion", "--score", "crystals.pt"], "is for crystals"),
        ("Bk", ["--crystal", "-c", "lj", "--coupling", "diffusion", "--score", "crystals.pt"], "knows 1 to 96"),
        ("TiO3x", ["--crystal", "-c", "emt"], "not a chemical formula"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(folder, tmp_path, monkeypatch, capsys, formula, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "without_stress.py").write_text(
        "from ase.calculators.harmonic import SpringCalculator\n"
        "def make():\n    return SpringCalculator([[0, 0, 0]], 1.0)\n"
    )
    options = [str(folder / option) if option.endswith(".pt") else option for option in options]
    coupling = [] if "--coupling" in options else ["--coupling", "rss"]
    assert main(["search", formula, *options, *coupling, "--trials", "1"]) == 2
    error = capsys.readouterr().err.splitlines()
    lines = [line for line in error if "0%" not in line and line.strip()]  # the bar, where the search had begun
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].startswith("ase-gss: ")
    assert not list(tmp_path.glob("*.db*"))


@pytest.mark.parametrize("units", ["0", "3-1", "two"])
def test_a_range_that_is_none_is_refused(units, capsys):
    with pytest.raises(SystemExit) as exit_code:
        main([*SEARCH, "--formula-units", units])
    assert exit_code.value.code == 2
    assert "argument --formula-units" in capsys.readouterr().err


def test_a_search_with_other_settings_is_refused(database, capsys):
    assert main([*SEARCH, "--pressure", "20", "--trials", "4", "-o", database]) == 2
    error = capsys.readouterr().err
    assert "is of a search with units [1, 2], not [1]" in error
    assert len(error.splitlines()) == 1
