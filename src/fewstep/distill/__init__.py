"""Distillation: objectives that make a model of few steps, most of them with a frozen teacher.

`Progressive` teaches one step of the student to do what two steps of the teacher do; repeated, it
halves the number of steps each time. `Consistency` teaches the end of a trajectory from any of its
points, which needs one step. `Guided` teaches one evaluation to say what guidance makes of two,
for a range of scales that the student (`student`) is told.
`ternary` finds the noise level between two steps of such a model (`middle`).
"""

from fewstep.distill.consistency import PRESETS, Consistency
from fewstep.distill.guided import Guided, student
from fewstep.distill.middle import ternary
from fewstep.distill.progressive import Progressive, halved

__all__ = ["PRESETS", "Consistency", "Guided", "Progressive", "halved", "student", "ternary"]
