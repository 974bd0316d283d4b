"""fedge-edge whose engine hangs as soon as a file appears; run with its path, then options."""

import sys
import threading
from pathlib import Path

from edge_client import inference
from edge_client.cli import main

FLAG = Path(sys.argv.pop(1))
answer = inference.Engine.predict


def predict(engine: inference.Engine, inputs: inference.Array) -> inference.Array:
    if FLAG.exists():
        threading.Event().wait()
    return answer(engine, inputs)


inference.Engine.predict = predict  # type: ignore[method-assign,assignment]
main()
