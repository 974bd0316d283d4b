"""The in-process grid does what a SuperLink with its nodes would."""

from collections.abc import Collection, Mapping, Sequence

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from server.round_intake import CLIENT_APP_ERROR
from simulation.grid import SimulationGrid
from simulation.nodes import FIRST_NODE_ID, client_of

TEXT = "text"


def counting_app() -> ClientApp:
    """Return an app that answers who it is, what it got and how often it was asked."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        got = message.content.config_records[TEXT]["value"]
        if got == "fail":
            raise ValueError("this client cannot")
        record = context.state.config_records.setdefault("state", ConfigRecord({"asked": 0}))
        record["asked"] = int(str(record["asked"])) + 1
        answer = ConfigRecord(
            {
                "value": got,
                "asked": record["asked"],
                "partition": context.node_config["partition-id"],
                "partitions": context.node_config["num-partitions"],
                "node": context.node_id,
            }
        )
        return Message(RecordDict({TEXT: answer}), reply_to=message)

    return app


def message_to(client: int, value: str = "x", group: str = "1") -> Message:
    content = RecordDict({TEXT: ConfigRecord({"value": value})})
    return Message(content, FIRST_NODE_ID + client, "train", group_id=group)


def answer_of(reply: Message) -> dict[str, object]:
    return dict(reply.content.config_records[TEXT])


def test_every_client_is_a_node_of_its_own() -> None:
    grid = SimulationGrid(counting_app(), 3)
    nodes = list(grid.get_node_ids())
    assert len(set(nodes)) == 3
    replies = list(grid.send_and_receive([message_to(client) for client in range(3)]))
    answers = [answer_of(reply) for reply in replies]
    assert [answer["node"] for answer in answers] == nodes
    assert [answer["partition"] for answer in answers] == [0, 1, 2]
    assert {answer["partitions"] for answer in answers} == {3}


def test_each_message_gets_one_reply_that_names_it_and_comes_once() -> None:
    grid = SimulationGrid(counting_app(), 2)
    ids = list(grid.push_messages([message_to(0, "a"), message_to(1, "b"), message_to(0, "c")]))
    assert len(set(ids)) == 3
    replies = list(grid.pull_messages(reversed(ids)))
    assert [answer_of(reply)["value"] for reply in replies] == ["c", "b", "a"]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids[::-1]
    sources = [client_of(reply.metadata.src_node_id) for reply in replies]
    assert sources == [0, 1, 0]
    assert len({reply.metadata.message_id for reply in replies} | set(ids)) == 6
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.pull_messages(["unknown"])) == []


def test_sending_and_receiving_at_once_is_pushing_and_pulling() -> None:
    values = ["a", "b"]
    at_once = SimulationGrid(counting_app(), 2)
    in_steps = SimulationGrid(counting_app(), 2)
    first = list(at_once.send_and_receive([message_to(i, v) for i, v in enumerate(values)]))
    ids = in_steps.push_messages([message_to(i, v) for i, v in enumerate(values)])
    second = list(in_steps.pull_messages(ids))
    assert [answer_of(reply) for reply in first] == [answer_of(reply) for reply in second]
    assert [r.metadata.message_id for r in first] == [r.metadata.message_id for r in second]


def test_what_a_client_app_raises_is_an_error_reply_and_the_others_answer() -> None:
    grid = SimulationGrid(counting_app(), 2)
    failed, fine = grid.send_and_receive([message_to(0, "fail"), message_to(1)])
    assert failed.has_error()
    assert failed.error.code == CLIENT_APP_ERROR
    assert "this client cannot" in (failed.error.reason or "")
    assert failed.metadata.src_node_id == FIRST_NODE_ID
    assert not fine.has_error()
    (again,) = grid.send_and_receive([message_to(0)])
    assert not again.has_error()


def test_a_stop_by_the_user_is_no_client_error() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SimulationGrid(app, 1).send_and_receive([message_to(0)])


def test_the_state_of_each_client_survives_its_messages_and_is_its_own() -> None:
    grid = SimulationGrid(counting_app(), 2)
    asked = []
    for client in (0, 0, 1, 0):
        (reply,) = grid.send_and_receive([message_to(client)])
        asked.append(answer_of(reply)["asked"])
    assert asked == [1, 2, 1, 3]


class Scripted:
    """A delivery whose answers come when the test says so.

    Attributes:
        there: clients that are connected.
        lost: clients that never answer.
        late: clients whose answers have not come yet.
    """

    def __init__(self, there: Collection[int]) -> None:
        self.there = there
        self.lost: set[int] = set()
        self.late: set[int] = set()
        self._client: dict[str, int] = {}

    def nodes(self) -> Sequence[int]:
        return [FIRST_NODE_ID + client for client in self.there]

    def ask(self, messages: Mapping[str, Message]) -> Collection[str]:
        clients = {key: client_of(each.metadata.dst_node_id) for key, each in messages.items()}
        self._client.update(clients)
        return [key for key, client in clients.items() if client not in self.lost]

    def arrived(self, message_ids: Sequence[str]) -> list[str]:
        come = [key for key in message_ids if self._client[key] not in self.late]
        return sorted(come, key=lambda key: self._client[key])


def test_those_are_connected_that_the_delivery_says_are() -> None:
    grid = SimulationGrid(counting_app(), 5, delivery=Scripted([1, 4]))
    assert list(grid.get_node_ids()) == [FIRST_NODE_ID + 1, FIRST_NODE_ID + 4]


def test_a_client_is_run_when_its_answer_comes_and_not_before() -> None:
    delivery = Scripted(range(3))
    delivery.late = {1}
    grid = SimulationGrid(counting_app(), 3, delivery=delivery)
    ids = list(grid.push_messages([message_to(client) for client in (2, 1, 0)]))
    replies = [answer_of(reply) for reply in grid.pull_messages(ids)]
    assert [reply["partition"] for reply in replies] == [0, 2]  # in the order of arrival
    assert list(grid.pull_messages(ids)) == []
    delivery.late = set()
    (late,) = grid.pull_messages(ids)
    assert answer_of(late)["partition"] == 1
    assert answer_of(late)["asked"] == 1


def test_what_an_unreachable_client_was_asked_is_not_kept_for_it() -> None:
    delivery = Scripted(range(2))
    delivery.lost = {1}
    grid = SimulationGrid(counting_app(), 2, delivery=delivery)
    ids = list(grid.push_messages([message_to(0), message_to(1)]))
    (reply,) = grid.pull_messages(ids)
    assert answer_of(reply)["partition"] == 0
    delivery.lost = set()
    assert list(grid.pull_messages(ids)) == []
    (later,) = grid.send_and_receive([message_to(1)])
    assert answer_of(later)["asked"] == 1


def test_a_message_made_by_the_grid_is_delivered_like_any_other() -> None:
    grid = SimulationGrid(counting_app(), 1)
    content = RecordDict({TEXT: ConfigRecord({"value": "made"})})
    (reply,) = grid.send_and_receive(
        [grid.create_message(content, "train", FIRST_NODE_ID, "1", ttl=5.0)]
    )
    assert answer_of(reply)["value"] == "made"


def test_whoever_listens_knows_all_that_are_asked_before_the_first_answers() -> None:
    heard: list[int] = []
    grid = SimulationGrid(
        counting_app(),
        3,
        on_push=lambda message: heard.append(client_of(message.metadata.dst_node_id)),
    )
    ids = list(grid.push_messages([message_to(2), message_to(0)]))
    assert heard == [2, 0]
    assert len(list(grid.pull_messages(ids))) == 2
    assert heard == [2, 0]


def test_there_is_no_flower_run_behind_it() -> None:
    with pytest.raises(AttributeError, match="no Flower run"):
        _ = SimulationGrid(counting_app(), 1).run
