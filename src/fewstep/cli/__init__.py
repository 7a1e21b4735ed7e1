"""The command line: one module a verb, loaded when its verb is typed.

`main` answers help and version from a table with the standard library alone; the modules of the
verbs parse their options with typer and import torch only when they run. Inside: `main` (entry
and errors), `demo`, `train`, `sample`, `doctor` (verbs), `resolve` (from a name to a model),
`options` (numbers on the command line), `console` (what is said where), `preview` (the grids of a
run) and `record` (its small files).
"""
