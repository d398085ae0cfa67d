"""Runs ONNX files in a process of its own and tells times and memory. Executed as a script: it imports no torch and
nothing of this package, so that its memory is that of the runtime and the model.

Reads one JSON object from stdin, see `Question` in `device_runs.py`; writes one JSON object to stdout.
"""

import json
import os
import sys
import time


def main() -> None:
    question = json.load(sys.stdin)
    if question["memory_limit"]:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (question["memory_limit"], question["memory_limit"]))
    print(json.dumps(answer(question)))


def answer(question: dict) -> dict:
    """Times of each model's runs, interleaved, and how far memory rose from before the first model was opened."""
    import numpy as np
    import onnxruntime as ort

    with np.load(question["inputs"], allow_pickle=False) as stored:
        inputs = {name: stored[name] for name in stored.files}
    options = ort.SessionOptions()
    options.intra_op_num_threads = question["threads"]
    options.inter_op_num_threads = 1
    before = peak()
    sessions = {
        name: ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for name, path in question["models"].items()
    }
    feeds = {name: feed(session, inputs) for name, session in sessions.items()}
    for _ in range(question["warmup"]):
        for name, session in sessions.items():
            session.run(None, feeds[name])
    times = {name: [] for name in sessions}
    for _ in range(question["repeats"]):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds[name])
            times[name].append(time.perf_counter() - start)
    return {"seconds": times, "memory_before": before, "memory_peak": peak()}


def feed(session, inputs: dict) -> dict:
    """The model's inputs by its own names: by name where they agree, else in order."""
    names = [item.name for item in session.get_inputs()]
    if set(names) <= set(inputs):
        return {name: inputs[name] for name in names}
    return dict(zip(names, inputs.values()))


def peak() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux's own figure of the address space comes first: what getrusage tells is also that of the process which
    started this one, from before it became this program.
    """
    try:
        with open("/proc/self/status", encoding="utf8") as file:
            return 1024 * int(next(line.split()[1] for line in file if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        pass
    import resource

    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss if sys.platform == "darwin" else rss * 1024


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its buffers would count as memory of the model
    main()
