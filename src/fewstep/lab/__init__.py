"""The two-dimensional laboratory: what the talk says, measured on points in the plane.

Each section holds a picture, the formulas that it shows, the functions that implement them, and
numbers that must be reproduced: closed forms, or what others found. `parts` measures them all
within seconds, `page` writes them as one HTML file. `points` draws the sets, which are of use
elsewhere too.
"""

from fewstep.lab.sets import SETS, PointSet, points, standard

__all__ = ["SETS", "PointSet", "points", "standard"]
