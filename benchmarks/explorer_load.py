"""What a turn of a slider costs on the explorer's page: one user alone, then many at once, over a real store.

    sae-steer index --corpus FILE_OR_FOLDER --sae FOLDER_OF_AN_SAE --store STORE
    python benchmarks/explorer_load.py --store STORE [--users 20] [--seconds 30] [--alone 15] [--json]

The server is `sae-steer explore` in a process of its own, asked on this machine with the encoder beside it. A user asks
a question, drags a slider of one feature after another, and asks the next question, which the encoder has to embed.
Turns come as the page sends them: the next one 60 ms after the hits of the last have come. A round trip lasts from the
request until the hits are there; why they are there comes after, in the same answer, and is read to its end, though the
page would let it go. Anything but a complete answer is an error. Requests are a process' threads, which take part of
the two cores, too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

# The page's debounce, in s; turns of one slider; sliders a question.
DEBOUNCE, TURNS, SLIDERS = 0.06, 20, 3
BAR = 150.0
BARS = {"one user's p95 over 150 ms": 1.0, "errors": 0.0}
QUESTIONS = ("what is said about {}?", "{}", "how does {} compare with others", "the newest on {}")


class Turn(NamedTuple):
    """One turn of a slider: until its hits, until its reasons, in ms; whether its question was a new one."""

    results: float
    reasons: float
    first: bool


class User(threading.Thread):
    """Somebody who turns knobs until the time is over."""

    def __init__(self, address: str, names: list[tuple[int, str]], seed: int, end: float) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection(address, timeout=60)
        self._names = names
        self._random = random.Random(seed)
        self._page = f"user-{seed}-{end}"
        self._end = end
        self.turns: list[Turn] = []
        self.errors: list[str] = []

    def run(self) -> None:
        number = 0
        while time.perf_counter() < self._end:
            _, subject = self._random.choice(self._names)
            question = self._random.choice(QUESTIONS).format(subject)
            for slider in range(SLIDERS):
                feature, _ = self._random.choice(self._names)
                for step in range(TURNS):
                    number += 1
                    state = {"query": question, "edits": [{"name": f"#{feature}", "strength": round(0.05 * step, 2)}]}
                    first = slider == step == 0
                    self._turn({"state": state, "before": first, "page": self._page, "turn": number}, first)
                    if time.perf_counter() > self._end:
                        return
                    time.sleep(DEBOUNCE)

    def _turn(self, body: dict[str, Any], first: bool) -> None:
        began = time.perf_counter()
        try:
            self._connection.request("POST", "/api/search", json.dumps(body), {"content-type": "application/json"})
            response = self._connection.getresponse()
            results = json.loads(response.readline())
            came = time.perf_counter()
            reasons = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            self._connection.close()
            return
        kinds = (results.get("kind"), reasons.get("kind"))
        if response.status != 200 or kinds != ("results", "reasons") or not results["hits"]:
            self.errors.append(f"{response.status} {kinds} {results.get('error', '')}")
            return
        self.turns.append(Turn(1000 * (came - began), 1000 * (time.perf_counter() - began), first))


def asked(address: str, path: str) -> Any:  # noqa: ANN401 - JSON
    connection = http.client.HTTPConnection(address, timeout=120)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def measured(
    address: str, names: list[tuple[int, str]], users: int, seconds: float, seed: int
) -> tuple[list[Turn], list[str]]:
    """All turns of some users who begin at once, and what went wrong."""
    end = time.perf_counter() + seconds
    people = [User(address, names, seed + number, end) for number in range(users)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    return [turn for one in people for turn in one.turns], [error for one in people for error in one.errors]


def summary(turns: list[Turn], seconds: float) -> dict[str, float]:
    """Percentiles in ms; turns a second."""
    later = np.array([turn.results for turn in turns if not turn.first])
    asked_first = np.array([turn.results for turn in turns if turn.first])
    reasons = np.array([turn.reasons for turn in turns])
    return {
        "p50": float(np.percentile(later, 50)),
        "p95": float(np.percentile(later, 95)),
        "p99": float(np.percentile(later, 99)),
        "new question p95": float(np.percentile(asked_first, 95)),
        "with reasons p95": float(np.percentile(reasons, 95)),
        "turns": float(len(turns)),
        "turns a second": len(turns) / seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="a store that `sae-steer index` has filled")
    parser.add_argument("--sae", help="its SAE, if the store does not say where it is")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long they turn knobs")
    parser.add_argument("--alone", type=float, default=15.0, help="how long one of them does so alone, before")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "sae_steer_retriever", "explore", "--store", str(arguments.store)]
    command += ["--port", "0", "--json", *(["--sae", arguments.sae] if arguments.sae else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                print("the explorer does not start: see above", file=sys.stderr)
                return 1
            address = urlsplit(json.loads(line)["url"]).netloc
            about = asked(address, "/api/about")
            rows = asked(address, "/api/features?limit=200")["features"]
            names = [(row["id"], row["label"]) for row in rows if row["label"]]
            # The first question loads the encoder and the index, once.
            measured(address, names, 1, 3.0, 10_000)
            alone, wrong_alone = measured(address, names, 1, arguments.alone, 20_000)
            together, wrong = measured(address, names, arguments.users, arguments.seconds, 0)
        finally:
            server.terminate()
            server.wait(timeout=30)
    errors = [*wrong_alone, *wrong]
    for error in sorted(set(errors)):
        print(f"{errors.count(error)} times: {error}", file=sys.stderr)
    times = {
        "one user": summary(alone, arguments.alone),
        f"{arguments.users} users": summary(together, arguments.seconds),
    }
    ratios = {
        "one user's p95 over 150 ms": times["one user"]["p95"] / BAR,
        f"{arguments.users} users' p95 over one user's": times[f"{arguments.users} users"]["p95"]
        / times["one user"]["p95"],
        "errors": float(len(errors)),
    }
    if arguments.json:
        print(json.dumps({"ratios": ratios, "ms": times, "passages": about["passages"], "bars": BARS}))
        return 0
    print(f"{about['passages']:,} passages; ms until the hits of a slider's turn are there")
    print(f"{'':<10}" + "".join(f"{name:>18}" for name in times["one user"]))
    for name, row in times.items():
        print(f"{name:<10}" + "".join(f"{value:18.1f}" for value in row.values()))
    print()
    for name, value in ratios.items():
        bar = f"  (bar {BARS[name]:g})" if name in BARS else ""
        print(f"{name:<32}  {value:8.2f}{bar}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
