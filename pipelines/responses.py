"""Which cells respond: from counterfactual predictions to `response.csv` and figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sedd.errors import DataError

if TYPE_CHECKING:
    from pipelines.scoring import Truth
    from sedd.evaluation.prediction import Prediction
    from sedd.evaluation.report import ReportFigure
    from sedd.evaluation.response import Response

Condition = tuple[str, str]


def measure_responses(
    truth: "Truth", predictions: Mapping[Condition, Mapping[str, "Prediction"]]
) -> dict[Condition, "Response"]:
    """The response of each condition that has counterfactual cells.

    Raises:
        DataError: A cell does not start from a control cell of its type.
    """
    from sedd.evaluation.plots import COUNTERFACTUAL
    from sedd.evaluation.response import Twins, measure_response

    responses = {}
    for condition, modes in predictions.items():
        prediction = modes.get(COUNTERFACTUAL)
        if prediction is None or prediction.control_row is None:
            continue
        rows = truth.control_rows(condition[0])
        start = np.searchsorted(rows, prediction.control_row).clip(max=len(rows) - 1)
        if not np.array_equal(rows[start], prediction.control_row):
            message = (
                f"Generated cells of {condition[0]} × {condition[1]} start from rows of the "
                "training file that hold no control cell of that type. Generate them again with "
                "--overwrite."
            )
            raise DataError(message)
        twins = Twins(prediction.cells_log1p, truth.log1p[rows], start)
        responses[condition] = measure_response(twins, truth.cells.genes)
    return responses


def write_responses(path: Path, truth: "Truth", responses: Mapping[Condition, "Response"]) -> None:
    """Write `response.csv`: a line for each counterfactual cell."""
    import pandas as pd

    from sedd.evaluation.response import response_table
    from sedd.storage import write_text

    if not responses:
        return
    tables = [
        response_table(*condition, truth.cells.names[truth.control_rows(condition[0])], response)
        for condition, response in responses.items()
    ]
    write_text(path, pd.concat(tables).to_csv(index=False))


def response_figures(
    responses: Mapping[Condition, "Response"], *, most: int = 4
) -> list["ReportFigure"]:
    """Effect by subpopulation of the first few conditions."""
    from sedd.evaluation.report import ReportFigure
    from sedd.evaluation.response_figure import response_figure

    return [
        ReportFigure(
            f"{cell_type} × {perturbation}: which cells respond",
            _caption(response),
            response_figure(response),
        )
        for (cell_type, perturbation), response in list(responses.items())[:most]
    ]


def _caption(response: "Response") -> str:
    text = (
        "How far each generated cell moved from the control cell it is the twin of. "
        "Subpopulations are clusters of the control cells. A cell responds if its step along the "
        f"mean change exceeds {response.threshold:.3g}, which 95 % of pairs of control cells of "
        "one subpopulation stay below."
    )
    if response.contrasts:
        named = ", ".join(f"{c.gene} ({c.difference:.2g})" for c in response.contrasts[:5])
        text += f" Genes whose change differs most between subpopulations: {named}."
    return text
