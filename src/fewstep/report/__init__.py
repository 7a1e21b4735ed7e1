"""Reports: figures of many ways of sampling, and the tables, charts and pages that show them.

`spec` says which rows are compared, `cells` makes their images, `judge` measures them under one
protocol, `results` keeps what was measured; `table`, `chart` and `page` show it. `picture` lays
images out in PNG files that carry their settings.
"""
