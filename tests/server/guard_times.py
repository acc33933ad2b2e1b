"""What the guard costs: a request at the server's door, and a run of 20 steps of a tiny checkpoint.

Run: COMFYUI_PATH=… python tests/server/guard_times.py [ROUNDS]

First without the guard, then with it, for only a restart ends it.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

# Of this folder.
import conftest
from test_guard import HARMLESS, OPEN, UNSAFE


def measure(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, conftest.serving(Path(folder)) as server:
        conftest.train(server)
        for guarded in (False, True):
            if guarded:
                (server.base / "user" / "sanitizer_guard.toml").write_text(OPEN, encoding="utf-8")
            for text in (HARMLESS, UNSAFE):
                requests, runs = zip(*(once(server, f"{text}, {guarded} {n}") for n in range(rounds + 2)), strict=True)
                print(
                    f"{'with the guard' if guarded else 'without':16}{text:42}"
                    f"request {1000 * statistics.median(requests[2:]):6.1f} ms, "
                    f"run {statistics.median(runs[2:]):6.2f} s",
                    flush=True,
                )


def once(server, text: str) -> tuple[float, float]:
    """Seconds of a request and of its run."""
    graph = server.graph(text, values={"KSampler": {"steps": 20}})
    began = time.perf_counter()
    prompt_id = server.start(graph)
    seconds = time.perf_counter() - began
    times = {name: told["timestamp"] for name, told in server.wait(prompt_id)["status"]["messages"]}
    return seconds, (times["execution_success"] - times["execution_start"]) / 1000


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
