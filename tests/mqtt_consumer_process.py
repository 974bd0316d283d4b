"""A consumer of predictions as a process that a test can kill: PORT FLEET FILE."""

import sys
from pathlib import Path

from fedge.cli import stop_on_signals
from fedge.mqtt.settings import BrokerConfig
from server.mqtt.consumer import PredictionConsumer
from server.mqtt.prediction_file import PredictionFile


def main() -> None:
    """Keep predictions until told to stop."""
    port, fleet, path = sys.argv[1:]
    stop = stop_on_signals()
    broker = BrokerConfig(address=f"127.0.0.1:{port}", reconnect_max_s=0.5)
    with PredictionFile(Path(path)) as file:
        consumer = PredictionConsumer(broker, fleet, file.keep, client_id="consumer")
        consumer.start()
        stop.wait()
        consumer.stop()
        print({name: int(value) for name, value in consumer.snapshot().items()}, flush=True)


if __name__ == "__main__":
    main()
