"""A sensor in a process of its own, which publishes images at a fixed rate while it is told to.

``python -m benchmarks.contention_source PORT TOPIC``: plain paho against a broker on this machine,
QoS 1, raw float32 with source and sequence in the user properties. It says when it is ready; each
line of standard input is a command: a method of `Sensor`, answered with one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import numpy as np
from paho.mqtt.client import Client, MQTTMessageInfo, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

SHAPE = (1, 28, 28)
SOURCE = "camera"
ACKNOWLEDGED_S = 30.0
_NICE = 5
"""It stands for another machine, and should not take the device's place on this one."""


class Sensor:
    """Publishes until it is stopped, each message at its instant however late the last one was."""

    def __init__(self, port: int, topic: str) -> None:
        self._topic = topic
        self._images = [
            image.tobytes() for image in np.random.default_rng(2).random((64, *SHAPE), np.float32)
        ]
        self._sequence = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._waiting: list[MQTTMessageInfo] = []
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=SOURCE, protocol=MQTTv5)
        self._client.max_inflight_messages_set(1000)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def start(self, *, messages_per_s: float) -> dict[str, Any]:
        """Publish from now on."""
        self._over.clear()
        self._thread = threading.Thread(target=self._publish, args=(messages_per_s,))
        self._thread.start()
        return {}

    def stop(self) -> dict[str, Any]:
        """Stop once the broker has all; return how many there have ever been."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for message in self._waiting:
            message.wait_for_publish(ACKNOWLEDGED_S)
        self._waiting.clear()
        return {"published": self._sequence}

    def _publish(self, messages_per_s: float) -> None:
        began, number = time.monotonic(), 0
        while not self._over.is_set():
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.UserProperty = [("source", SOURCE), ("sequence", str(self._sequence))]
            image = self._images[self._sequence % len(self._images)]
            self._waiting.append(
                self._client.publish(self._topic, image, qos=1, properties=properties)
            )
            self._sequence += 1
            number += 1
            self._over.wait(max(0.0, began + number / messages_per_s - time.monotonic()))


def main() -> None:
    """Do as standard input says until it ends."""
    os.nice(_NICE)
    sensor = Sensor(int(sys.argv[1]), sys.argv[2])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(sensor, command.pop("do"))(**command)), flush=True)


if __name__ == "__main__":
    main()
