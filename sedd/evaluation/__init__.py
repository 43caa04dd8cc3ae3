"""How far generated cells can be trusted: baselines, metrics, figures and the report.

Cells are dense arrays `[cells, genes]` of log1p(counts per 10,000); names end in `_log1p`.
`baselines` makes the predictions a model has to beat, `metrics` scores predictions against real
cells, `plots` draws them, `report` writes tables and the HTML page.
"""
