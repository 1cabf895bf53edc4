"""GenerativeRSS for crystals and surfaces: what is found, what it costs, and what stays as it is."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, Hookean
from ase.data import covalent_radii
from ase.db import connect
from ase.units import GPa
from conftest import GaussianCrystalScore, Harmonic

from ase_gss import GenerativeRSS, InputError
from ase_gss.coupling import Langevin, Mn
from ase_gss.crystal_minima import space_group
from ase_gss.relax import hand_off
from ase_gss.report import ranking_table, summary
from ase_gss.schedule import Schedule
from ase_gss.score.crystal_denoiser import CrystalDenoiser
from ase_gss.score.model import CrystalScore
from ase_gss.systems import comparison_of
from ase_gss.trial import Ended

DIAMOND = -4.3366  # eV/atom, Stillinger-Weber silicon
SHORT = Schedule(sigma_max=2.0, sigma_min=0.05, n_steps=8)


class Balloon(Calculator):
    """Atoms that ask for 12 Å3 each and for nothing else: cheap, for what does not depend on physics. Counts."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, interrupted_at=None):
        super().__init__()
        self.calls, self.interrupted_at = 0, interrupted_at

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        if self.calls == self.interrupted_at:
            raise KeyboardInterrupt
        n, volume = len(self.atoms), self.atoms.get_volume()
        too_large = np.log(volume / (12 * n))
        self.results = {
            "energy": 2 * n * too_large**2,
            "forces": np.zeros((n, 3)),
            "stress": 4 * n * too_large / volume * np.array([1, 1, 1, 0, 0, 0]),
        }


def rss(trials=None, formula="Cu", calculator=None, **keywords):
    keywords = {"pbc": "template" not in keywords, "coupling": "rss"} | keywords
    search = GenerativeRSS(formula, calculator or Balloon(), **keywords)
    if trials:
        search.run(trials=trials)
    return search


def sampled(trials=None, crystal=None, **keywords):
    """Copper that is led to one crystal, fcc by default."""
    score = GaussianCrystalScore(bulk("Cu", a=3.6) if crystal is None else crystal)
    return rss(trials, **{"score": score, "coupling": "diffusion", "schedule": SHORT} | keywords)


def same_records(a, b):
    # In which order trials are written is left open: several are under way at once.
    ones, others = (sorted(search.archive.records, key=lambda record: record.number) for search in (a, b))
    assert [record.number for record in ones] == [record.number for record in others]
    for one, other in zip(ones, others, strict=True):
        first, second = a.archive.atoms_of(one.number), b.archive.atoms_of(other.number)
        np.testing.assert_array_equal(first.positions, second.positions)
        np.testing.assert_array_equal(first.cell.array, second.cell.array)
        assert (one.force_calls, one.ended, one.known) == (other.force_calls, other.ended, other.known)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CrystalScore(CrystalDenoiser(n_features=8, n_blocks=2), name="small")


@pytest.fixture(scope="module")
def silicon():
    return rss(8, "Si2", "sw")


# --- random search ---


def test_random_search_finds_diamond_among_several_minima(silicon):
    energies = np.array(silicon.energies)
    assert energies.min() == pytest.approx(DIAMOND, abs=0.005)
    assert len(energies) >= 3
    assert silicon.score_calls == 0
    table = ranking_table(silicon.minima).splitlines()
    assert table[0].split()[:3] == ["rank", "dH/eV/atom", "H/eV/atom"]
    assert table[1].endswith("Fd-3m (227)")
    assert "Si2" in table[1]


def test_every_minimum_has_energy_forces_and_stress(silicon):
    for atoms in silicon.minima:
        assert atoms.get_potential_energy() / 2 == pytest.approx(atoms.info["ranking_energy"])
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05
        assert np.abs(atoms.get_stress()).max() < 0.1 * GPa
        assert atoms.pbc.all()
        assert set(atoms.info) >= {"hits", "first_call", "first_trial", "trial"}
    assert sum(silicon.hits) == 8
    ranking = [atoms.info["ranking_energy"] for atoms in silicon.minima]
    assert ranking == sorted(ranking)


def test_facts_count_in_energies_per_atom(silicon):
    facts = summary(silicon.archive)
    assert set(facts["minima_within"]) == {"0.05", "0.1", "0.3"}
    assert facts["lowest_energy"] == pytest.approx(DIAMOND, abs=0.005)
    assert facts["trials"] == 8 == facts["converged"] + facts["failed"]


def test_a_cell_has_any_of_the_numbers_of_formula_units():
    search = rss(formula="CuAu", units=(1, 3))
    starts = [search.plan.begin(number).atoms for number in range(20)]
    assert {atoms.get_chemical_formula("metal") for atoms in starts} == {"AuCu", "Au3Cu3"}


def test_more_formula_units_are_one_crystal_where_they_repeat_it():
    fcc, hcp = bulk("Cu", a=3.6), bulk("Cu", "hcp", a=2.56)
    search = rss(3, calculator="emt", units=(1, 2), starts=[fcc, fcc.repeat((1, 1, 2)), hcp], sigma_start=1e-3)
    found = {ranking_table([atoms]).split()[-2]: atoms for atoms in search.minima}
    assert {name: atoms.info["hits"] for name, atoms in found.items()} == {"Fm-3m": 2, "P6_3/mmc": 1}
    # The energies that are compared and ranked are those per atom.
    assert all(abs(energy) < 0.02 for energy in search.energies)


def test_pressure_ranks_by_enthalpy_and_makes_the_cell_smaller():
    pressure = 30 * GPa
    free, pressed = (rss(2, "Cu2", "emt", pressure=p) for p in (0.0, pressure))
    volumes = [search.minima[0].get_volume() for search in (free, pressed)]
    assert volumes[1] < 0.92 * volumes[0]
    best = pressed.minima[0]
    enthalpy = (best.get_potential_energy() + pressure * best.get_volume()) / 2
    assert min(pressed.energies) == pytest.approx(enthalpy)
    assert best.info["ranking_energy"] == pytest.approx(enthalpy)
    np.testing.assert_allclose(best.get_stress() / GPa, [-30, -30, -30, 0, 0, 0], atol=0.1)


def test_the_volume_asked_for_is_that_of_one_formula_unit_at_the_start():
    for volume in (12.0, 40.0):
        search = rss(units=(1, 3), volume=volume)
        starts = [search.plan.begin(number).atoms for number in range(40)]
        per_atom = [atoms.get_volume() / len(atoms) for atoms in starts]
        assert np.median(per_atom) == pytest.approx(volume, rel=0.1)


def test_symmetric_trials_stay_symmetric(network):
    search = rss(2, "Si4", "sw", symmetry=True, score=network, coupling="diffusion", schedule=SHORT)
    for trial in (search.plan.begin(number) for number in range(2)):
        assert trial.walk.symmetry is not None
    kept = [space_group(search.archive.atoms_of(record.number))[1] for record in search.archive.records]
    assert all(number > 1 for number in kept)


# --- budgets, resuming ---


def test_max_calls_is_kept_to_within_one_trial():
    for budget in (1, 40):
        calculator = Balloon()
        search = rss(calculator=calculator)
        search.run(max_calls=budget)
        largest = max(record.force_calls for record in search.archive.records)
        assert budget <= search.force_calls < budget + largest
        assert search.force_calls == calculator.calls


@pytest.mark.parametrize("coupling", [Mn(below=0.3), Langevin(n_steps=10)])
def test_max_calls_with_forces_while_sampling(coupling):
    calculator = Balloon()
    schedule = SHORT if isinstance(coupling, Mn) else None
    search = sampled(calculator=calculator, coupling=coupling, schedule=schedule, recognise=False)
    search.run(max_calls=60)
    largest = max(record.force_calls for record in search.archive.records)
    assert 60 <= search.force_calls < 60 + largest
    assert search.force_calls == calculator.calls
    assert any(record.converged for record in search.archive.records)


def test_an_interrupted_search_ends_as_one_that_was_not(tmp_path):
    path = tmp_path / "cu2.db"
    with pytest.raises(KeyboardInterrupt):
        rss(8, calculator=Balloon(interrupted_at=12), database=path, units=(1, 2))
    again = rss(database=path, units=(1, 2))
    assert 0 < again.trials < 8
    again.run(trials=8)
    whole = rss(8, units=(1, 2))
    same_records(again, whole)
    assert again.energies == whole.energies
    assert again.hits == whole.hits
    # And as it is read back: energies, cells, stresses.
    for read, kept in zip(rss(database=path, units=(1, 2)).minima, whole.minima, strict=True):
        np.testing.assert_allclose(read.get_stress(), kept.get_stress(), atol=1e-12)
        np.testing.assert_array_equal(read.cell.array, kept.cell.array)
        assert ranking_table([read]) == ranking_table([kept])


def test_where_a_sampled_search_stops_in_between_changes_nothing(tmp_path):
    whole, path = sampled(54), tmp_path / "x.db"
    for trials in (5, 33, 54):
        parts = sampled(trials, database=path)
    same_records(whole, parts)
    # The fourth generation recognises what the first has found, and spends nothing on it.
    known = [record for record in parts.archive.records if record.known is not None]
    assert {record.number for record in known} <= set(range(48, 54))
    assert known
    assert all(record.force_calls == 0 for record in known)
    assert sum(parts.hits) == sum(str(record.ended) in ("minimum", "known") for record in parts.archive.records)


def test_same_seed_same_search_and_other_seed_another():
    a, b, c = (rss(2, seed=seed) for seed in (1, 1, 2))
    same_records(a, b)
    assert not np.allclose(a.archive.atoms_of(0).cell.array, c.archive.atoms_of(0).cell.array)


def test_the_database_opens_in_ase_with_its_cells(tmp_path):
    search = rss(3, database=tmp_path / "cu.db")
    rows = list(connect(tmp_path / "cu.db").select("minimum>0"))
    assert {row.minimum: row.trial for row in rows} == {
        rank: atoms.info["trial"] for rank, atoms in enumerate(search.minima, start=1)
    }
    assert all(row.pbc.all() and row.volume > 5 and row.stress is not None for row in rows)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"pressure": 1.0}, "pressure 0.0, not 1.0"),
        ({"units": (1, 2)}, r"units \[1\], not \[1, 2\]"),
        ({"volume": 20.0}, "volume None, not 20.0"),
        ({"symmetry": True}, "symmetry False, not True"),
        ({"formula": "Cu2"}, "formula Cu, not Cu2"),
        ({"calculator": "emt"}, "calculator balloon, not emt"),
        ({"pbc": False}, "is of a search with "),
    ],
)
def test_a_database_of_another_search_is_refused(tmp_path, other, message):
    path = tmp_path / "x.db"
    rss(1, database=path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        rss(**{"database": path} | other)
    assert path.read_bytes() == before


def test_refinement_is_tight_counted_apart_and_not_repeated(tmp_path):
    path = tmp_path / "x.db"
    search = rss(2, "Cu2", "emt", database=path, pressure=5 * GPa, fmax=0.2)
    calls = search.force_calls
    minima = search.refine_minima()
    for atoms in minima:
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.005
        np.testing.assert_allclose(atoms.get_stress() / GPa, [-5, -5, -5, 0, 0, 0], atol=0.02)
    assert search.force_calls == calls
    spent = search.refinement_calls
    assert spent > 0
    again = GenerativeRSS.resumed(path)
    assert ranking_table(again.refine_minima()) == ranking_table(minima)
    assert again.refinement_calls == spent


# --- sampling ---


def test_sampled_trials_end_in_the_crystal_that_the_score_leads_to():
    search = sampled(4, calculator="emt")
    assert len(search.minima) == 1
    assert ranking_table(search.minima).endswith("Fm-3m (225)")
    assert search.score_calls == 4 * 8
    assert search.force_calls < 4 * 12


def test_a_network_samples_cells_of_several_sizes(network):
    search = rss(3, "Cu", score=network, coupling="diffusion", schedule=SHORT, units=(1, 2, 3))
    assert search.score_calls == 3 * 8
    assert search.archive.metadata["settings"]["score"] == "small"
    with pytest.raises(InputError, match="knows 1 to 96"):
        rss(formula="Bk", calculator="lj", score=network, coupling="diffusion")


@pytest.mark.parametrize(("sign", "reason"), [(-1, "collapsed"), (1, "flown apart")])
def test_a_cell_that_is_lost_ends_its_trial_with_the_reason_and_costs_nothing(sign, reason):
    def score(numbers, positions, sigma, structure, cells, sigma_cell):
        return np.zeros_like(positions), sign * 60 * np.tile(np.eye(3), (len(cells), 1, 1))

    calculator = Balloon()
    search = sampled(3, score=score, calculator=calculator)
    assert [str(record.ended) for record in search.archive.records] == ["cell out of bounds"] * 3
    assert all(reason in record.reason for record in search.archive.records)
    assert calculator.calls == search.force_calls == 0
    assert search.minima == []
    assert summary(search.archive)["failed"] == 3


def test_a_score_that_is_not_finite_ends_its_own_trial_only():
    right = GaussianCrystalScore(bulk("Cu", a=3.6))

    def score(numbers, positions, sigma, structure, cells, sigma_cell):
        values, strain = right(numbers, positions, sigma, structure, cells, sigma_cell)
        if len(cells) == 3:
            strain[1] = np.nan
        return values, strain

    search = sampled(3, score=score)
    ended = [(str(record.ended), record.reason) for record in search.archive.records]
    assert ended[1] == ("cell out of bounds", "the cell or the positions are not finite")
    assert ended[0][0] == ended[2][0] == "minimum"


def test_own_starts_are_taken_in_turn():
    a, b = bulk("Cu", a=3.6), bulk("Cu", "bcc", a=2.9)
    search = rss(2, calculator="emt", starts=[a, b], sigma_start=0.01)
    starts = [search.plan.begin(number).atoms for number in range(3)]
    for start, given in zip(starts, [a, b, a], strict=True):
        np.testing.assert_array_equal(start.cell.array, given.cell.array)
    assert search.minima[0].get_volume() == pytest.approx(11.57, abs=0.1)
    assert len(rss(starts=[a.repeat((2, 1, 1))], units=(1, 2)).plan.begin(0).atoms) == 2


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Atoms("Cu"), "must be crystals: periodic in three directions"),
        (bulk("Au"), "must be a structure of Cu"),
        (bulk("Cu").repeat(2), "must be a structure of Cu"),
        (bulk("Cu", a=1.5), "One of the starts is no crystal: the cell has collapsed"),
    ],
)
def test_starts_that_cannot_be_are_refused(start, message):
    with pytest.raises(InputError, match=message):
        rss(starts=[start])


# --- surfaces ---


@pytest.fixture
def slab():
    atoms = fcc100("Al", (2, 2, 2), vacuum=6.0)
    atoms.set_constraint(FixAtoms(range(8)))
    return atoms


@pytest.mark.parametrize("coupling", ["rss", "diffusion", Mn(below=0.3)])
def test_atoms_on_a_slab_leave_it_and_the_cell_to_the_last_bit(slab, coupling):
    def score(numbers, positions, sigma, structure, cells, sigma_cell):
        assert not sigma_cell.any()
        assert np.all((sigma == 0) == (numbers == 13))
        away = np.where(numbers[:, None] == 29, [0, 0, 9.5] - positions, 0) * [0, 0, 1]
        return away / (0.3**2 + sigma[:, None] ** 2), np.full_like(cells, np.nan)

    keywords = {} if coupling == "rss" else {"score": score, "schedule": SHORT}
    search = rss(2, "Cu2", "emt", template=slab, coupling=coupling, fmax=0.1, **keywords)
    assert any(record.converged for record in search.archive.records)
    for record in search.archive.records:
        end = search.archive.atoms_of(record.number)
        np.testing.assert_array_equal(end.positions[:8], slab.positions)
        np.testing.assert_array_equal(end.cell.array, slab.cell.array)
        np.testing.assert_array_equal(end.pbc, slab.pbc)
        assert end.get_chemical_formula("metal") == "Al8Cu2"
        height = end.positions[8:, 2]
        assert np.all((height > slab.positions[:, 2].min()) & (height < slab.cell[2, 2]))
    assert len(search.minima) > 0
    assert "Al8Cu2" in ranking_table(search.minima)


def test_atoms_start_in_their_region(slab):
    search = rss(formula="Cu2", template=slab, region=(10.0, 11.0))
    for number in range(10):
        start = search.plan.begin(number).atoms
        assert np.all((start.positions[8:, 2] >= 10.0) & (start.positions[8:, 2] <= 11.0))
        assert len(start.constraints) == 1
    np.testing.assert_array_equal(slab.positions, fcc100("Al", (2, 2, 2), vacuum=6.0).positions)


def adatom(site, vacuum, pbc):
    atoms = fcc111("Cu", (2, 2, 3), vacuum=vacuum)
    atoms.pbc = pbc
    atoms.set_constraint(FixAtoms(range(12)))
    add_adsorbate(atoms, "Cu", 1.8, site)
    atoms.calc = EMT()
    return hand_off(atoms, fmax=0.01).frozen(atoms)


@pytest.mark.parametrize("refined", [False, True])
def test_what_vacuum_a_cell_has_does_not_tell_what_is_one_minimum(refined):
    fcc, moved = adatom("fcc", 5.0, (True, True, False)), adatom("fcc", 5.0, (True, True, False))
    energy = moved.get_potential_energy()
    moved.positions += moved.cell[0] / 2 - moved.cell[1] / 2 + [0, 0, 3.0]
    moved.calc = SinglePointCalculator(moved, energy=energy)
    comparison = comparison_of({"periodic": True, "template": "Cu12", "atoms": 13}, refined)
    for vacuum in (5.0, 15.0, 20.0):
        for pbc in ((True, True, False), True):
            other_fcc, hcp = adatom("fcc", vacuum, pbc), adatom("hcp", vacuum, pbc)
            assert abs(hcp.get_potential_energy() - fcc.get_potential_energy()) < 0.005
            assert not comparison.same(other_fcc, hcp)
            assert comparison.same(other_fcc, fcc)
            assert comparison.same(other_fcc, moved)


@pytest.mark.parametrize("vacuum", [5.0, 15.0])
@pytest.mark.parametrize("pbc", [(True, True, False), True])
def test_a_skewed_vacuum_does_not_tell_turned_adsorbates_apart(vacuum, pbc):
    def lying(angle):
        atoms = fcc111("Cu", (4, 4, 2), vacuum=vacuum)
        atoms.cell[2] += atoms.cell[0] / 8
        atoms.pbc = pbc
        middle = atoms.positions[16 + 5] + [0, 0, 2.0]
        direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0])
        atoms += Atoms("CO", [middle, middle + 1.15 * direction])
        atoms.calc = SinglePointCalculator(atoms, energy=0.0)
        return atoms

    comparison = comparison_of({"periodic": True, "template": "Cu32", "atoms": 34})
    for angle in (60, 120, 180):
        assert comparison.same(lying(0), lying(angle))
    assert not comparison.same(lying(0), lying(30))


def test_what_has_flown_off_or_lies_on_another_atom_is_no_minimum(slab):
    top = slab.positions[:, 2].max()
    flying = rss(4, "Cu2", "emt", template=slab, region=(top + 5.5, top + 6.0))
    assert {record.ended for record in flying.archive.records} == {Ended.FRAGMENTS}
    assert {record.reason for record in flying.archive.records} == {"2 atoms off the surface"}
    assert not flying.minima
    surface = flying.plan.system
    close = slab + Atoms("Cu2", [[0, 0, top + 2.0], [0, 0, top + 2.1]])
    assert surface.rejects(close)[0] is Ended.COLLAPSED
    apart = slab + Atoms("Cu2", [[0, 0, top + 2.0], [0, 0, top + 4.5]])  # one on the other
    assert surface.rejects(apart) is None
    touching = covalent_radii[13] + covalent_radii[29]
    for gap, ended in ((2.4, None), (2.6, Ended.FRAGMENTS)):
        above = slab + Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
        above.positions[8:] += slab.positions[np.argmax(slab.positions[:, 2])] + [0, 0, touching + gap]
        assert (surface.rejects(above) or [None])[0] is ended
    slab.set_constraint(FixAtoms(range(7)))
    loose = rss(formula="Cu2", template=slab).plan.system
    lifted = slab + Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
    lifted.cell[2, 2] += 30.0
    lifted.positions[7, 2] += 12.0
    lifted.positions[8:] += lifted.positions[7] + [0, 0, 2.5]
    assert loose.rejects(lifted)[0] is Ended.FRAGMENTS


def test_other_boundaries_are_another_search(slab, tmp_path):
    keywords = {"calculator": "emt", "template": slab, "fmax": 0.1, "database": tmp_path / "x.db"}
    rss(1, **keywords)
    slab.pbc = True
    with pytest.raises(InputError, match="template_pbc"):
        rss(**keywords)


def test_a_surface_search_goes_on_and_is_refined(slab, tmp_path):
    path = tmp_path / "slab.db"
    keywords = {"calculator": "emt", "template": slab, "fmax": 0.1}
    rss(1, database=path, **keywords)
    search = rss(2, database=path, **keywords)
    same_records(search, rss(2, **keywords))
    for atoms in search.refine_minima(fmax=0.01):
        assert np.linalg.norm(atoms.get_forces()[8:], axis=1).max() < 0.01
        np.testing.assert_array_equal(atoms.positions[:8], slab.positions)
    with pytest.raises(InputError, match="cannot be refined from its file"):
        GenerativeRSS.resumed(path)
    slab.positions[0, 0] += 0.1
    with pytest.raises(InputError, match="another template_positions"):
        rss(database=path, **keywords)


# --- wrong input ---


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"volume": -1.0}, "volume of -1.0"),
        ({"volume": float("nan")}, "volume of nan"),
        ({"pressure": float("nan")}, "pressure"),
        ({"units": ()}, "at least one number of formula units"),
        ({"units": (0, 1)}, "none below 1"),
        ({"units": 2}, "whole numbers of formula units"),
        ({"units": (1.5,)}, "whole numbers of formula units"),
        ({"pressure": 1.0, "pbc": False}, "add --crystal \\(pbc=True"),
        ({"symmetry": True, "pbc": False}, "add --crystal \\(pbc=True"),
        ({"region": (1, 2)}, "give a template"),
        ({"verify": "hessian"}, "Vibrations are checked for molecules only"),
        ({"formula": "Fe", "calculator": "emt"}, "'emt' does not know Fe"),
        ({"calculator": Harmonic([[0, 0, 0]])}, "Harmonic gives no stress"),
        ({"coupling": "diffusion", "score": "molecules"}, "'molecules' is for molecules"),
        ({"charge": 1}, "charge and multiplicity are for molecules"),
        ({"multiplicity": 1}, "charge and multiplicity are for molecules"),
        ({"formula": "Xx"}, "not a chemical formula"),
        ({"starts": []}, "there must be one"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(tmp_path, keywords, message):
    with pytest.raises(InputError, match=message) as error:
        rss(1, database=tmp_path / "x.db", **keywords)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
    assert not list(tmp_path.iterdir())


def test_a_template_that_cannot_be_is_refused(slab):
    for change, keywords, message in (
        (None, {"pressure": 1.0}, "The cell of a template stays"),
        (None, {"starts": [slab]}, "either starts or a template"),
        (None, {"region": (11.0, 10.0)}, "in this order"),
        (None, {"region": 5.0}, "lowest and its highest height"),
        (None, {"region": (8.0, 9.0), "formula": "Cu20"}, "finds no room"),
        (None, {"formula": "Fe", "calculator": "emt"}, "does not know Fe"),
        (lambda: slab.set_constraint(), {}, "no fixed atom"),
        (lambda: slab.set_constraint([FixAtoms([0]), Hookean(1, 2, 1.0)]), {}, "FixAtoms only"),
        (lambda: slab.set_pbc(False), {}, "periodic boundaries"),
    ):
        if change:
            change()
        with pytest.raises(InputError, match=message):
            rss(1, template=slab, **keywords)
