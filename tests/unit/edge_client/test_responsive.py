import subprocess
import sys


def test_threads_wait_shortly_and_the_collector_passes_over_what_is_there() -> None:
    code = (
        "import gc, sys;"
        "from edge_client.responsive import SWITCH_INTERVAL_S, be_responsive;"
        "be_responsive();"
        "assert abs(sys.getswitchinterval() - SWITCH_INTERVAL_S) < 1e-9;"
        "assert gc.get_freeze_count() > 1000;"
        "assert gc.isenabled()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
