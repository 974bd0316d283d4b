from edge_client.pulse import Pulse


def test_a_loop_is_late_once_it_has_not_come_back_in_time() -> None:
    now = [100.0]
    pulse = Pulse(lambda: now[0])
    assert pulse.late_s == 0
    pulse.beat(10)
    now[0] = 110.0
    assert pulse.late_s == 0
    now[0] = 113.0
    assert pulse.late_s == 3
    pulse.beat(10)
    assert pulse.late_s == 0


def test_a_loop_that_waits_for_something_is_never_late() -> None:
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    pulse.beat(1)
    pulse.beat(None)
    now[0] = 1e9
    assert pulse.late_s == 0
