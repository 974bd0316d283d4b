"""The systemd unit that ships: read here always, and by systemd itself where it is installed."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

from edge_client.process_worker import START_S

UNIT = Path(__file__).parents[3] / "deploy" / "fedge-edge.service"
ANALYZE = shutil.which("systemd-analyze")
# systemd before 254 knows no growing delay between restarts and says that it passes it over.
PASSED_OVER = re.compile(r"Unknown key '(RestartSteps|RestartMaxDelaySec)' in section \[Service\]")
EXPOSURE_LIMIT = 20  # tenths; 10.0 is a service without any protection


def read_unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_it_is_restarted_for_ever_and_watched() -> None:
    unit = read_unit()
    service = unit["Service"]
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["Restart"] == "always"
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert int(service["WatchdogSec"]) >= 30
    assert int(service["TimeoutStartSec"]) > START_S
    assert float(service["RestartSec"]) < float(service["RestartMaxDelaySec"])


def test_it_is_shut_in_and_its_training_process_can_still_lower_itself() -> None:
    service = read_unit()["Service"]
    for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "ProtectKernelTunables"):
        assert service[key] == "yes", key
    assert service["ProtectSystem"] == "strict"
    assert service["User"] != "root"
    assert service["CapabilityBoundingSet"] == ""
    assert service["StateDirectory"] == "fedge-edge"
    assert service["OOMPolicy"] == "continue"
    assert "MemoryMax" in service
    # nice(2) is in @resources, which @system-service holds; nothing may take it away again.
    assert service["SystemCallFilter"].split() == ["@system-service"]
    assert "MemoryDenyWriteExecute" not in service


def test_systemd_takes_the_unit_and_finds_it_well_shut_in(tmp_path: Path) -> None:
    if ANALYZE is None:
        print("systemd is not installed: the unit was only read")
        assert read_unit().sections() == ["Unit", "Service", "Install"]
        return
    program = read_unit()["Service"]["ExecStart"].split()[0]
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(program, sys.executable))
    verified = analyze("verify", str(unit))
    said = [line for line in verified.stderr.splitlines() if not PASSED_OVER.search(line)]
    assert (verified.returncode, said) == (0, [])
    exposed = analyze("security", "--offline=true", f"--threshold={EXPOSURE_LIMIT}", str(UNIT))
    assert exposed.returncode == 0, exposed.stdout


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run(
        [ANALYZE, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
