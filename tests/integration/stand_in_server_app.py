"""A ServerApp without devices: commits rounds with the shipped weights and does as files say.

``hold`` in the run folder holds it before the next round, ``fail`` makes it raise.
"""

import time
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedge.config import load
from fedge.tasks.digits import Digits
from fedge.tflite.patch import Patcher
from server.checkpoint import Checkpoint, CheckpointStore
from server.events import EventLog, MetricsLog
from server.settings import ServerConfig

app = ServerApp()
client = ClientApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = load(ServerConfig, Path(str(context.run_config["config"])))
    assert config.registry.release_key is None, "the ServerApp must not learn of the release key"
    store = CheckpointStore(config.run_dir / "checkpoints")
    events = EventLog(config.run_dir)
    files = Digits().edge_files()
    assert files is not None
    patcher = Patcher.from_bytes(files.template.read_bytes(), files.plan.read_bytes())
    layout, weights = patcher.plan.layout, patcher.shipped_weights()
    found = store.latest()
    first = 0 if found is None else found.round + 1
    events.append("run-started", first=first)
    for round in range(first, config.rounds.num_rounds + 1):
        while (config.run_dir / "hold").exists() and round > 0:
            time.sleep(0.02)
        if (config.run_dir / "fail").exists():
            events.append("run-finished", status="failed", rounds=round, reason="told to fail")
            raise RuntimeError("told to fail, with a traceback")
        metrics = {"round": round, "accuracy_test": 0.5}
        store.commit(
            Checkpoint(config.run_name, round, layout, weights * (1 + round), metrics=metrics)
        )
        MetricsLog(config.run_dir).append(metrics)
    events.append("run-finished", status="complete", rounds=config.rounds.num_rounds, reason="")
