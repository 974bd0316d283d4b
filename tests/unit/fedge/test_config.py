from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.settings import EdgeConfig
from fedge.config import build, limited, load, to_tree
from fedge.errors import ConfigError
from server.settings import ServerConfig
from server.trainer.settings import TrainerConfig


@dataclass(frozen=True)
class Door:
    address: str = "here"
    key: Path | None = None

    def __post_init__(self) -> None:
        if self.address == "nowhere":
            raise ConfigError("must be somewhere", key="address")


@dataclass(frozen=True)
class Room:
    door: Door = field(default_factory=Door)
    sizes: tuple[int, ...] = (1, 2)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class House:
    owner: str
    room: Room = field(default_factory=Room)
    floors: int = limited(1, ge=1, le=3)
    height: float = limited(2.5, gt=0)
    heated: bool = True
    colour: str = limited("red", choices=("red", "blue"))
    cellar: Path = Path("cellar")


@dataclass(frozen=True)
class Closed:
    door: Door = field(default_factory=lambda: Door(address="made"))
    nowhere: Door = field(default_factory=Door)


def house(tree: dict[str, Any]) -> House:
    return build(House, {"owner": "Ada", **tree})


def test_defaults_fill_what_is_not_given() -> None:
    assert build(House, {"owner": "Ada"}) == House("Ada")


def test_values_are_converted_to_the_declared_types() -> None:
    found = house({"height": 3, "cellar": "/deep", "room": {"sizes": [3], "options": {"a": [1]}}})
    assert (found.height, type(found.height)) == (3.0, float)
    assert found.cellar == Path("/deep")
    assert found.room == Room(sizes=(3,), options={"a": [1]})


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"floors": 0}, "floors: must be >= 1 and <= 3, got 0"),
        ({"floors": 4}, "floors: must be >= 1 and <= 3, got 4"),
        ({"floors": True}, "floors: must be a whole number, got True"),
        ({"floors": 1.0}, "floors: must be a whole number, got 1.0"),
        ({"floors": "2"}, "floors: must be a whole number, got '2'"),
        ({"height": 0}, "height: must be > 0, got 0.0"),
        ({"height": "tall"}, "height: must be a number, got 'tall'"),
        ({"height": float("nan")}, "height: must be > 0, got nan"),
        ({"height": float("inf")}, "height: must be > 0, got inf"),
        ({"height": True}, "height: must be a number, got True"),
        ({"height": 10**400}, "height: must be a number that fits a float"),
        ({"heated": 1}, "heated: must be true or false, got 1"),
        ({"colour": "green"}, "colour: must be one of red, blue, got 'green'"),
        ({"owner": 5}, "owner: must be text, got 5"),
        ({"cellar": 5}, "cellar: must be a path, got 5"),
        ({"cellar": ""}, "cellar: must be a path, got ''"),
        ({"room": 5}, "room: must be a section, got 5"),
        ({"room": {"door": []}}, "room.door: must be a section, got []"),
        ({"room": {"sizes": 5}}, "room.sizes: must be a list, got 5"),
        ({"room": {"sizes": [1, "x"]}}, "room.sizes[1]: must be a whole number, got 'x'"),
        ({"room": {"options": 5}}, "room.options: must be a section, got 5"),
        ({"florrs": 2}, "florrs: unknown key; did you mean 'floors'?"),
        (
            {"room": {"door": {"adress": "x"}}},
            "room.door.adress: unknown key; did you mean 'address'?",
        ),
        ({"room": {"zzz": 1}}, "room.zzz: unknown key; known: door, options, sizes"),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(tree: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        house(tree)
    assert str(caught.value) == text
    assert caught.value.key == text.split(":")[0]


def test_a_key_that_must_be_given_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^owner: is missing and has no default$"):
        build(House, {})


def test_what_a_section_refuses_itself_gets_its_whole_dotted_key() -> None:
    with pytest.raises(ConfigError) as caught:
        house({"room": {"door": {"address": "nowhere"}}})
    assert str(caught.value) == "room.door.address: must be somewhere"
    assert caught.value.key == "room.door.address"


def test_what_a_section_left_out_refuses_gets_its_whole_dotted_key_too() -> None:
    with pytest.raises(ConfigError, match=r"^registry\.release_public_key: is needed"):
        load(EdgeConfig, None)


def test_a_section_with_a_default_of_its_own_keeps_it() -> None:
    assert build(Closed, {}).door.address == "made"


def test_an_empty_path_means_none_where_none_is_allowed() -> None:
    assert house({"room": {"door": {"key": ""}}}).room.door.key is None


def test_paths_in_a_file_are_relative_to_it_and_in_overrides_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "here").mkdir()
    file = tmp_path / "conf" / "house.toml"
    file.write_text('owner = "Ada"\ncellar = "below"\n[room.door]\nkey = "../key.pem"\n')
    monkeypatch.chdir(tmp_path / "here")
    found = load(House, Path("../conf/house.toml"))
    assert found.cellar == tmp_path / "conf" / "below"
    assert found.room.door.key is not None
    assert found.room.door.key.resolve() == tmp_path / "key.pem"
    assert load(House, file, ["cellar=below"]).cellar == tmp_path / "here" / "below"
    assert load(House, file, ["cellar=/below"]).cellar == Path("/below")


def test_overrides_win_and_merge_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "house.toml"
    file.write_text('owner = "Ada"\nfloors = 2\n[room]\nsizes = [7]\n[room.options]\na = 1\n')
    found = load(
        House,
        file,
        ["floors=3", "owner=Bob", "room.options.b=[2]", "heated=false", "height=1e1"],
    )
    assert (found.owner, found.floors, found.heated, found.height) == ("Bob", 3, False, 10.0)
    assert found.room.sizes == (7,)
    assert found.room.options == {"a": 1, "b": [2]}


def test_text_in_an_override_needs_no_quotes_and_may_hold_an_equals_sign() -> None:
    assert load(House, None, ["owner=a=b:c"]).owner == "a=b:c"
    assert load(House, None, ['owner="5"']).owner == "5"
    assert load(House, None, ["owner="]).owner == ""


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("floors", "--set takes key=value, got 'floors'"),
        ("=5", "--set takes key=value"),
        ("flors=1", "flors: unknown key; did you mean 'floors'?"),
        ("room=1", "room: must be a section, got 1"),
        ("floors.x=1", "floors: must be a whole number"),
        (".=1", "--set takes key=value"),
    ],
)
def test_a_wrong_override_is_named(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(House, None, ["owner=Ada", override])
    assert text in str(caught.value)


def test_an_override_below_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match="owner is a value, not a section"):
        load(House, None, ["owner=Ada", "owner.name=Ada"])


def test_a_missing_file_a_folder_and_bad_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        load(House, tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load(House, tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_text("owner = \nfloors = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: .*line 1"):
        load(House, bad)
    bad.write_bytes(b"owner = '\xff\xfe'")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        load(House, bad)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["owner", "room", "floors", "height", "heated", "cellar", "door", "x"])


@given(st.dictionaries(KEYS, values))
def test_any_tree_is_read_or_refused_with_its_key(tree: dict[str, Any]) -> None:
    try:
        found: House | None = build(House, tree)
    except ConfigError as error:
        found = None
        key = error.key
    assert found is not None or key


@pytest.mark.parametrize("cls", [ServerConfig, TrainerConfig, House])
def test_a_configuration_survives_to_tree_and_build(cls: type[Any]) -> None:
    overrides = ["owner=Ada", "cellar=x"] if cls is House else []
    config = load(cls, None, overrides)
    assert build(cls, to_tree(config)) == config


def test_every_default_of_the_real_roles_is_within_its_own_limits(tmp_path: Path) -> None:
    key = tmp_path / "release.key.pub"
    key.write_text("")
    edge = load(EdgeConfig, None, [f"registry.release_public_key={key}"])
    assert build(EdgeConfig, to_tree(edge)) == edge
    assert build(ServerConfig, to_tree(load(ServerConfig, None))) == load(ServerConfig, None)


@dataclass(frozen=True)
class Login:
    password: str = ""
    token: str = ""
    token_count: int = 0


@pytest.mark.parametrize("key", ["password", "token", "token_count"])
def test_an_error_never_shows_a_secret(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: must be .*, got a value that is not shown"):
        build(Login, {key: [4711]})
