"""How pictures may be brought to one size: the choices alone, for those who need them without NumPy and Pillow."""

from typing import Literal

Resize = Literal["squash", "pad"]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
