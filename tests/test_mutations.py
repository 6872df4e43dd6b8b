"""Every row of the ledger fails when a formula behind it is broken: no check that cannot fail."""

import pytest
from mutations import Tree, caught
from mutations_bounds import BOUNDS
from mutations_brtw import BRTW
from mutations_errata import ERRATA
from mutations_hlz import HLZ
from mutations_landscape import LANDSCAPE
from reproduction import ledger

MUTATIONS = (*BRTW, *BOUNDS, *LANDSCAPE, *HLZ, *ERRATA)
OF_ROW = {
    row: [m for m in MUTATIONS if m.source == row]
    for row in dict.fromkeys(m.source for m in MUTATIONS)
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return Tree(tmp_path_factory.mktemp("tree"))


def test_every_row_that_has_a_test_has_a_mutation_and_no_other():
    marked = ledger.markers()
    assert [row for row in marked if row not in OF_ROW] == [], "rows without a mutation"
    assert [row for row in OF_ROW if row not in marked] == [], "mutations of no row with a test"
    for m in MUTATIONS:
        assert not m.test or m.test in marked[m.source], f"{m.source}: {m.test}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.source)
def test_mutations_fit_their_files(mutation):
    compile(mutation.text(), mutation.file, "exec")
    assert mutation.right.strip() != mutation.wrong.strip()


@pytest.mark.slow
@pytest.mark.parametrize("source", OF_ROW)
def test_a_broken_formula_fails_its_row(request, seen, tree, source):
    endings = caught(tree, OF_ROW[source], ledger.markers())
    request.node.user_properties.append(("statements", [source]))
    seen.number("mutations", len(endings))
    seen.number("mutations caught", sum(end.asserted for end in endings.values()))
    missed = [
        f"{m.right!r} -> {m.wrong!r}: {e.test}: {e.told}"
        for m, e in endings.items()
        if not e.asserted
    ]
    assert missed == [], "\n".join(missed)
