"""A worker: `python -m finlora.shards FOLDER` does units of work that arrive as lines of JSON, and answers each with one.

Started by shards.workers, whose settings lie in the folder.  It ends at once when its input does, so that none outlives
the process that started it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path

from ..errors import FinloraError
from . import unit as units
from .workers import read_request, run


def main(folder: Path) -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    settings, words = read_request(folder)
    while True:
        order = json.loads(lines.get())
        try:
            run(order, settings, words, folder)
            answer = {"peak": units.peak_bytes()}
        except FinloraError as error:
            answer = {"error": [error.message, error.hint]}
        except OSError as error:
            answer = {"error": [f"cannot write `{folder}`: {error.strerror or error}", "free some disk space or choose another folder, then run again"]}
        try:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        except BrokenPipeError:  # nobody is left to hear it
            os._exit(0)


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
