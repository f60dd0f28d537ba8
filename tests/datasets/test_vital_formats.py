"""Real .vital files (Intellivue, GE) against the arrays of the vitaldb package."""

import os
from pathlib import Path

import numpy as np
import pytest
import vitaldb

from datasets.descriptor import read_descriptor
from datasets.readers import vitaldb as reader
from datasets.readers.base import Root
from tests.datasets import recordings

ROOT = Path(os.environ.get("PLETHORA_DATA") or Path(__file__).resolve().parents[3] / "shared/data")
FOLDER = ROOT / "formats/vital"
