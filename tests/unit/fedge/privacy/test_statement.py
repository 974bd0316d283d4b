import re

from fedge.privacy.statement import epsilon_covers


def test_it_names_what_is_covered_and_what_is_not() -> None:
    text = epsilon_covers()
    assert text.startswith("ε at δ covers each training example of a device")
    for part in ("all rounds together", "server included", "power of two", "are not covered"):
        assert part in text
    assert "NOT PRIVATE" not in text


def test_seeded_noise_is_said_first() -> None:
    assert epsilon_covers(private=False).startswith("NOT PRIVATE: noise and sampling were drawn")


def test_shared_counts_are_said() -> None:
    text = epsilon_covers(share_counts=True)
    assert "true number of examples, which ε does not cover" in text
    assert "power of two" not in text


def test_without_dp_nothing_is_claimed() -> None:
    text = epsilon_covers(dp=False)
    assert text.startswith("NOT PRIVATE")
    assert not re.search(r"ε .*covers", text)
