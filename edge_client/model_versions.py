"""What ``fedge-edge model`` does to the versions in a state folder."""

from __future__ import annotations

from edge_client.model_store import ModelStore, StoredVersion
from edge_client.release_public_key import load_release_key
from edge_client.settings import EdgeConfig
from edge_client.state_folder import StateFolder
from fedge.errors import ModelError

BY_HAND = "left by hand (fedge-edge model rollback)"


def open_store(config: EdgeConfig) -> ModelStore:
    """Return the versions of a state folder, to look at and to choose from.

    Raises:
        ModelError: there is no such folder.
        ConfigError: the pinned key cannot be read.
    """
    folder = StateFolder(config.state_dir).models
    if not folder.is_dir():
        raise ModelError(f"{folder} does not exist: no daemon has run with this state_dir yet")
    key = load_release_key(config.registry.release_public_key)
    return ModelStore(folder, key, config.registry.keep_versions)


def describe(store: ModelStore) -> list[str]:
    """Return one line a version, newest first."""
    current, choices = store.current(), store.choices.read()
    lines = []
    for stored in store.versions():
        serves = current is not None and stored.number == current.number
        notes = ["pinned"] if stored.id == choices.pinned else []
        if stored.id in choices.refused:
            notes.append(f"refused: {choices.refused[stored.id]}")
        manifest = stored.manifest
        lines.append(
            f"{'*' if serves else ' '} {stored.number:>4}  {stored.id[:12]}  round "
            f"{manifest.round} of {manifest.run_name}{''.join(f'  {note}' for note in notes)}"
        )
    return lines or ["no version was installed: the model that the task ships is served, if any"]


def find(store: ModelStore, name: str | None) -> StoredVersion:
    """Return the version with this number, round or beginning of an id; None is what serves.

    Raises:
        ModelError: there is none, or there are several.
    """
    if name is None:
        current = store.current()
        if current is None:
            raise ModelError("no version was installed yet, so there is none to pin")
        return current
    versions = store.versions()
    for matches in (
        [stored for stored in versions if str(stored.number) == name],
        [stored for stored in versions if str(stored.manifest.round) == name],
        [stored for stored in versions if stored.id.startswith(name)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            break
    raise ModelError(
        f"{'several versions are' if matches else 'no version is'} called {name!r}: take a number "
        "from fedge-edge model list"
    )


def roll_back(store: ModelStore) -> tuple[StoredVersion, StoredVersion]:
    """Refuse the version that serves; return it and the one that serves now.

    Raises:
        ModelError: there is no other whole version.
    """
    left = store.current()
    refused = store.choices.read().refused
    others = [
        stored
        for stored in store.versions()
        if stored.id not in refused and (left is None or stored.id != left.id)
    ]
    if left is None or not others:
        raise ModelError("there is no other version on this device to go back to")
    store.choices.refuse(left.id, BY_HAND)
    serves = store.current()
    if serves is None:
        store.choices.allow(left.id)
        raise ModelError("no other version on this device can be used (see the log)")
    return left, serves
