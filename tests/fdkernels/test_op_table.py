"""The table of ops, contracts and backends: every registered op is in it, and an empty cell fails a whole run."""

from types import SimpleNamespace

import pytest

from fdkernels._op import registry
from tests import ops
from tests.contracts import EVERY_OP, ContractTable, backends

pytestmark = pytest.mark.cpu_only("the table itself")


def test_every_registered_op_is_under_test():
    assert {tested.name for tested in ops.OPS.values()} == set(registry.ops)


def test_what_an_op_lacks_is_told(op):
    assert all(contract in EVERY_OP and why for contract, why in op.lacks.items())
    assert ("autograd" in op.lacks) == (not op.gradients)


def test_an_empty_cell_fails_a_whole_run(monkeypatch):
    table, session = ContractTable(ops.contracts()), SimpleNamespace(exitstatus=pytest.ExitCode.OK, config=object())
    monkeypatch.setattr(table, "is_whole", lambda config: True)
    cells = [(*row, backend) for row in table.rows for backend in backends() if (row[1], backend) not in table.excused]
    assert ("fdiv_weight", "layouts", "native") in cells and not any(
        cell[:2] == ("fdiv_weight", "masks") for cell in cells
    )
    for cell in cells:
        table.cells[cell]["passed"] = 1
    table.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.OK
    table.cells["fdiv_weight", "layouts", "native"]["passed"] = 0
    assert table.empty() == ["fdiv_weight × layouts × native"]
    table.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.TESTS_FAILED
