"""Tables say what was measured, in the network's own names."""

from __future__ import annotations

from r2mrf_deploy.parity.compare import Difference, Parity
from r2mrf_deploy.report.tables import steps_table


def test_side_outputs_of_any_name_are_laid_out_by_it() -> None:
    names = ["step1_branch5", "step1_branch4", "step2_branch5", "l2h0", "l2h1", "stream2_step3", "refined"]
    result = Parity("a", "r", "", "fp32", "pass", "", 1, steps={n: Difference(relative=i) for i, n in enumerate(names)})
    table = steps_table(result)
    assert table.heads == ["", "branch 5", "branch 4", "0", "1", "step 3", "-"]
    rows = [[cell.plain for cell in row] for row in table.rows]
    assert [r[0] for r in rows] == ["step1", "step2", "l2h", "stream2", "refined"]
    assert rows[0][1:3] == ["0.0e+00", "1.0e+00"] and rows[1][1:3] == ["2.0e+00", ""]
    assert (rows[2][4], rows[3][5], rows[4][6]) == ("4.0e+00", "5.0e+00", "6.0e+00")
