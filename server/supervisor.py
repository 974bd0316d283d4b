"""The supervisor: registry, SuperLink and run started in order, watched, and stopped together.

It shares the run folder with the ServerApp and nothing else, so either may be killed at any time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fedge.cli import EXIT_INTERRUPTED
from fedge.errors import ModelError
from fedge.folder_lock import locked
from fedge.task import EdgeFiles, Task
from server.app_bundle import write_bundle
from server.checkpoint import CheckpointStore
from server.checks import load_checked_task
from server.convert import MISSING_CONVERTER, convert_in_subprocess, find_converter
from server.event_tail import EventTail
from server.events import EventLog
from server.export import Exporter
from server.flower_run import FlowerRun
from server.processes import ProcessTree, all_processes
from server.prometheus import serve_metrics
from server.publisher import Publisher
from server.publishing import PublishingLoop
from server.registry import RegistryServer
from server.release_key import load_or_create_release_key, public_path
from server.settings import ServerConfig
from server.staging import Staging
from server.superlink import StopRequested, SuperLink

log = logging.getLogger(__name__)

POLL_S = 0.25
PUBLISH_LAST_S = 120.0
FAILED = 1


class Supervisor:
    """One run from its first process to its last.

    Args:
        stop: set by whoever wants it to end.
        exit_when_done: end after the last round is published; else its version stays served.
    """

    def __init__(
        self, config: ServerConfig, *, stop: threading.Event, exit_when_done: bool
    ) -> None:
        self._config = replace(config, run_dir=config.run_dir.resolve())
        self._stop = stop
        self._exit_when_done = exit_when_done
        self._finished = False

    def run(self) -> int:
        """Run until done or stopped and return the exit status.

        Raises:
            FedgeError: it cannot begin.
        """
        with ExitStack() as stack:
            try:
                return self._run(stack)
            except StopRequested:
                log.info("stopping")
        return EXIT_INTERRUPTED if self._exit_when_done and not self._finished else 0

    def _run(self, stack: ExitStack) -> int:
        config = self._config
        folder = config.run_dir
        stack.enter_context(locked(folder, "fedge-server", key="run_dir"))
        superlink = SuperLink(config.superlink.port, folder, self._stop)
        superlink.check_port()
        task = load_checked_task(config)
        store = CheckpointStore(folder / "checkpoints")
        publishing = self._serve_models(stack, task, store)
        events = EventTail(folder / "events.jsonl")
        flower = FlowerRun(
            superlink,
            write_bundle(config, folder / "flower"),
            progress=store.latest_round,
            log_path=folder / "serverapp.log",
            stop=self._stop,
        )
        stack.callback(superlink.end)
        flower.start()
        ending = self._watch(flower, events)
        if ending.get("status") != "complete":
            flower.save_log()
            log.error(
                "the run failed: %s (see %s)",
                ending.get("reason") or "no reason was given",
                folder / "serverapp.log",
            )
            return FAILED
        self._publish_last(publishing)
        self._finished = True
        reason = ending.get("reason")
        log.info(
            "the run is complete after round %s%s",
            ending.get("rounds"),
            f": {reason}" if reason else "",
        )
        if self._exit_when_done:
            return 0
        log.info("serving its last version until stopped")
        self._keep_superlink(flower)
        return 0

    def _serve_models(self, stack: ExitStack, task: Task, store: CheckpointStore) -> PublishingLoop:
        """Start registry, metrics page and publishing; say where everything is."""
        config = self._config
        key_path = config.registry.release_key or config.run_dir / "release.key"
        publisher = Publisher(
            config.run_dir / "registry",
            load_or_create_release_key(key_path),
            run_name=config.run_name,
            task=task.name,
            keep_versions=config.registry.keep_versions,
        )
        self._announce_versions(stack, publisher)
        events = EventLog(config.run_dir)
        staging = Staging(publisher, config.registry.canary, events.append)
        address, tls = config.registry.address, config.registry.tls
        registry = RegistryServer(publisher, address, tls, staging)
        registry.start()
        stack.callback(registry.stop)
        log.info(
            "registry %s, SuperLink 127.0.0.1:%d, metrics %s, run folder %s, devices pin %s",
            config.registry.address,
            config.superlink.port,
            config.metrics_address or "off",
            config.run_dir,
            public_path(key_path),
        )
        if config.metrics_address:
            page = serve_metrics(
                config.metrics_address,
                config.run_dir / "metrics.jsonl",
                lambda: {
                    "watching_devices": registry.num_watchers,
                    "published_round": _published_round(publisher),
                },
            )
            stack.callback(page.close)
        exporter = Exporter(task, config.run_dir / "edge", self._convert)
        publishing = PublishingLoop(store, exporter, staging)
        publishing.start()
        stack.callback(_stop_publishing, publishing)
        return publishing

    def _announce_versions(self, stack: ExitStack, publisher: Publisher) -> None:
        """Announce versions over MQTT, if a broker is configured."""
        config = self._config
        if not config.mqtt.broker.address:
            return
        from server.mqtt.announcer import Announcer  # a server without MQTT needs no paho

        announcer = Announcer(config.mqtt, config.run_name)
        publisher.listen(announcer.announce)
        announcer.start(publisher.latest)
        stack.callback(announcer.stop)

    def _convert(self, folder: Path) -> EdgeFiles:
        task = self._config.task
        python = find_converter()
        if python is None:
            raise ModelError(MISSING_CONVERTER)
        log.info("converting the model of %s for devices, once", task.name)
        return convert_in_subprocess(task.name, task.options, folder, python)

    def _watch(self, flower: FlowerRun, events: EventTail) -> dict[str, object]:
        """Return the event that ended the run; restart meanwhile what dies."""
        while True:
            # Looked at before the events are read: what ended has written its last event.
            missing = flower.missing()
            for event in events.read():
                if event.get("kind") != "run-finished":
                    continue
                if event.get("status") == "complete" or not self._superlink_died(flower):
                    return event
            if missing:
                flower.restore(missing)
            self._wait()

    def _superlink_died(self, flower: FlowerRun) -> bool:
        """Tell whether the run may have failed because the SuperLink died under it."""
        for _ in range(4):
            if flower.missing() == "SuperLink":
                return True
            self._wait()
        return False

    def _publish_last(self, publishing: PublishingLoop) -> None:
        # A trial that is under way, and that of the last version.
        trials_s = 2 * canary.trial_s if (canary := self._config.registry.canary).fraction else 0
        give_up = time.monotonic() + PUBLISH_LAST_S + trials_s
        while not publishing.caught_up():
            if publishing.problem or time.monotonic() > give_up:
                raise ModelError(
                    publishing.problem or "the last checkpoint is not published: see the log above"
                )
            self._wait()

    def _keep_superlink(self, flower: FlowerRun) -> None:
        while True:
            if flower.missing() == "SuperLink":
                flower.restore("SuperLink", resubmit=False)
            self._wait()

    def _wait(self) -> None:
        if self._stop.wait(POLL_S):
            raise StopRequested


def _published_round(publisher: Publisher) -> float:
    return -1 if publisher.latest is None else publisher.latest.manifest.round


def _stop_publishing(publishing: PublishingLoop) -> None:
    """Stop the thread; a conversion under way is a child of its own and is ended."""
    publishing.stop(grace_s=0.5)
    for process in list(all_processes()):
        if process.parent == os.getpid() and "server.convert" in process.command:
            ProcessTree(process.pid).end(grace_s=0.5)
