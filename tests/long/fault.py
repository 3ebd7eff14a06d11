# SPDX-License-Identifier: Apache-2.0
"""One fault of faults.py."""
import dataclasses
from typing import Callable


@dataclasses.dataclass
class Fault:
    promise: str
    carry_out: Callable  # of a Scene
