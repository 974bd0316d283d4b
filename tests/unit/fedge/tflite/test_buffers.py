import json
from pathlib import Path

import numpy as np

import fedge.tasks
from fedge.tflite.buffers import list_constants

FOLDER = Path(fedge.tasks.__file__).parent / "digits_edge"
TEMPLATE = (FOLDER / "template.tflite").read_bytes()


def test_constants_are_found_where_the_plan_writes() -> None:
    constants = list_constants(TEMPLATE)
    plan = json.loads((FOLDER / "plan.json").read_text())
    for copy in plan["copies"]:
        home = [c for c in constants if c.offset_bytes == copy["offset_bytes"]]
        assert len(home) == 1
        assert home[0].is_float32
        assert home[0].size_bytes == 4 * np.prod(copy["dims"])
