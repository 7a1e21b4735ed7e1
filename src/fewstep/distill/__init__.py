"""Distillation: objectives that hold a frozen teacher and make a student of fewer steps.

`Progressive` teaches one step of the student to do what two steps of the teacher do; repeated, it
halves the number of steps each time.
"""

from fewstep.distill.progressive import Progressive, halved

__all__ = ["Progressive", "halved"]
