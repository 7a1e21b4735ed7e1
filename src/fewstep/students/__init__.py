"""From a teacher and a budget of time to a student of few steps: plan, train, keep.

`plan` turns a budget into stages, `make` a teacher into a student before and after its training,
`run` trains stage after stage in a folder that can be continued, `pace` tries and times it before.
"""

from fewstep.students.make import student, teacher
from fewstep.students.pace import Cost, Pace, budgeted
from fewstep.students.plan import METHODS, Stage, TooSmall, ladder, method, single
from fewstep.students.run import Asked, Rung, Work, rungs

__all__ = [
    "METHODS",
    "Asked",
    "Cost",
    "Pace",
    "Rung",
    "Stage",
    "TooSmall",
    "Work",
    "budgeted",
    "ladder",
    "method",
    "rungs",
    "single",
    "student",
    "teacher",
]
