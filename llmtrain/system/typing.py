"""Types that every room uses, without torch: what reads rows starts in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

Report = Callable[[str], None]
"""Takes a line for the user."""
