from benchmarks.contention import PHASES, _summary


def turn(idle: float, slowdown: float, steps_per_s: float) -> dict[str, object]:
    """Return a turn in which every phase is slower than the idle one by the same factor."""
    found: dict[str, object] = {}
    for name, phase in PHASES.items():
        p99 = idle if name == "idle" else idle * slowdown
        asked = {"engine": {"p99": p99}, "grpc": {"p99": 10 * p99}} if phase.asks else {}
        speed = steps_per_s if phase.asks else 10.0
        found[name] = {**asked, "steps_per_s": speed, "versions": 2, "messages_per_s": slowdown}
    return found


def test_ratios_are_medians_of_turns_and_not_ratios_of_medians() -> None:
    summary = _summary([turn(1.0, 1.1, 9.0), turn(4.0, 1.2, 8.0), turn(0.5, 3.0, 2.0)])
    assert summary["p99_idle_ms"] == 1.0
    assert round(summary["p99_ratio"], 9) == 1.2
    assert round(summary["grpc_p99_ratio_busy_daemon"], 9) == 1.2
    assert summary["training_speed_kept"] == 0.8
    assert summary["versions"] == 6
    assert summary["messages_per_s"] == 1.2


def test_every_training_is_asked_for_by_a_phase_and_one_of_them_is_alone() -> None:
    alone = [name for name, phase in PHASES.items() if not phase.asks]
    assert alone == ["training_alone"]
    assert PHASES["training_alone"].training == PHASES["training"].training
    assert not PHASES["idle"].training
    assert not PHASES["idle"].busy
