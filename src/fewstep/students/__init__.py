"""From a teacher and a budget of time to a student of few steps: plan, train, keep.

`plan` turns a budget into stages, `make` a teacher into a student before and after its training,
`run` trains stage after stage in a folder that can be continued.
"""

from fewstep.students.make import student, teacher
from fewstep.students.plan import METHODS, Stage, TooSmall, ladder, method, single
from fewstep.students.run import Asked, Rung, Work, pace, rungs

__all__ = [
    "METHODS",
    "Asked",
    "Rung",
    "Stage",
    "TooSmall",
    "Work",
    "ladder",
    "method",
    "pace",
    "rungs",
    "single",
    "student",
    "teacher",
]
