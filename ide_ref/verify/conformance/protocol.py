"""Running a port in any language: a case a line to its standard input, an answer a line from its standard output.

Source: ``docs/conformance.md``.
"""

from __future__ import annotations

import base64
import json
import math
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ide_ref.verify.conformance.compare import CaseResult, ConformanceReport, Divergence, check
from ide_ref.verify.conformance.pack import DISCRETE, Case, PackError, read_arrays, stage_of

_LONGEST = 1 << 27
"""Bytes of an answer; of the case of full size, with all stages in words, it has 0.7 · 10⁸."""

_DTYPES = ("float64", "float32", "uint8", "int64")


class ProtocolError(ValueError):
    """An answer that is none; the message is one line."""


def run_command(
    command: Sequence[str],
    cases: Sequence[Case],
    *,
    form: Literal["json", "words", "files"] = "json",
    timeout: float = 10.0,
    stages: Sequence[str] | None = None,
) -> ConformanceReport:
    """Ask a port that is a program of its own, case by case, and compare.

    A port that hangs, dies, answers with what is no answer or with another case fails that case, and is started again
    for the next.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; no shell reads them.
    cases : sequence of Case
        What it is asked.
    form : {"json", "words", "files"}
        What lines look like: arrays as base64 in JSON, everything as words, or JSON that names safetensors files.
    timeout : float
        Seconds for an answer.
    stages : sequence of str, optional
        Compare these alone.

    Raises
    ------
    ValueError
        For a command that cannot be started.
    """
    results = []
    port: _Port | None = None
    with tempfile.TemporaryDirectory() as folder:
        write, read = _FORMS[form]
        for case in cases:
            if case.lacking:
                results.append(CaseResult(case.name, None, (), False, declined=case.lacking))
                continue
            try:
                port = port or _Port(command)
                outputs = read(case, port.ask(write(case, Path(folder)), timeout), Path(folder))
            except (ProtocolError, PackError) as error:
                wrong = Divergence(case.name, "", "", "error", detail=str(error))
                results.append(CaseResult(case.name, wrong, (), False))
                if port is not None:
                    port.end()
                port = None
                continue
            if isinstance(outputs, str):
                results.append(CaseResult(case.name, None, (), False, declined=outputs))
            else:
                results.append(check(case, outputs, stages=stages))
        if port is not None:
            port.end(timeout)
    return ConformanceReport(tuple(results), groups={case.name: case.group for case in cases})


class _Port:
    """A program that answers a line for a line."""

    def __init__(self, command: Sequence[str]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                start_new_session=True,
            )
        except OSError as error:
            self.errors.close()
            raise ValueError(f"command {command[0]!r} cannot be started: {error.strerror}") from None
        # One line ahead: a port that prints without end waits.
        self.lines: queue.Queue[bytes] = queue.Queue(1)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        stdout = self.process.stdout
        with suppress(OSError, ValueError):
            while stdout is not None and (line := stdout.readline(_LONGEST + 1)):
                self.lines.put(line)
        self.lines.put(b"")

    def ask(self, line: bytes, timeout: float) -> bytes:
        """The answer to a line; ProtocolError where there is none in time."""

        def send() -> None:
            with suppress(OSError, ValueError):
                if self.process.stdin is not None:
                    self.process.stdin.write(line)
                    self.process.stdin.flush()

        # A port that reads nothing must not stop this one.
        threading.Thread(target=send, daemon=True).start()
        try:
            answer = self.lines.get(timeout=timeout)
        except queue.Empty:
            advice = "an answer closes with a line break, and has to be flushed"
            raise ProtocolError(f"no answer within {timeout:g} s; the port was ended ({advice})") from None
        if len(answer) > _LONGEST:
            raise ProtocolError(f"an answer of more than {_LONGEST} bytes")
        if not answer.endswith(b"\n"):
            # Its output is at an end.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
            status = self.process.poll()
            if status or not answer:
                when = "in the middle of its answer" if answer else "before it answered"
                raise ProtocolError(f"the port ended with status {status} {when}{self._last()}")
        return answer

    def _last(self) -> str:
        """The last line of its standard error."""
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - 1000))
        lines = self.errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f"; its last words: {said[-1][:200]}" if said else ""

    def end(self, patience: float = 0.0) -> None:
        """End it: by the end of its input where there is patience, else at once, with all that it started."""
        if patience and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        while self.reader.is_alive():
            with suppress(queue.Empty):
                self.lines.get(timeout=0.01)
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()


def _write_json(case: Case, folder: Path) -> bytes:
    arrays = {
        name: {"dtype": str(v.dtype), "shape": v.shape, "data": base64.b64encode(_little(v)).decode()}
        for name, v in case.given.items()
    }
    return _line({"case": case.name, "config": case.config, "arrays": arrays})


def _write_files(case: Case, folder: Path) -> bytes:
    from safetensors.numpy import save_file

    given = folder / f"{case.name}.given.safetensors"
    save_file(case.given, given)
    asked = {"file": str(given), "answer": str(folder / f"{case.name}.safetensors")}
    return _line({"case": case.name, "config": case.config, **asked})


def _line(document: Mapping[str, Any]) -> bytes:
    about = {"format": "ide_ref conformance case", "version": 1}
    return json.dumps({**about, **document}, separators=(",", ":")).encode() + b"\n"


def _little(value: NDArray) -> bytes:
    return np.asarray(value, value.dtype.newbyteorder("<"), order="C").tobytes()


def _write_words(case: Case, folder: Path) -> bytes:
    return " ".join(map(str, _words(case))).encode() + b"\n"


def _words(case: Case) -> Iterator[Any]:
    config = case.config
    yield from ("case", case.name, config["dtype"], config["input"], config["n_steps"], config["n_classes"])
    yield from (config["neuron"]["leak"], config["neuron"]["v_th"], config["bn"]["epsilon"], config["bn"]["momentum"])
    yield from (config["sgd"]["rate"], config["sgd"]["weight_decay"], config["solver_tol"], config["readout"]["source"])
    yield from ("populations", 1 + len(config["populations"]))
    for population in ({"name": "input", "shape": config["input_shape"]}, *config["populations"]):
        yield from (population["name"], len(population["shape"]), *population["shape"])
    yield from ("connections", len(config["connections"]))
    for c in config["connections"]:
        yield from (c["name"], c["source"], c["target"], c["kind"])
        yield from (c.get(part, 0) for part in ("kernel", "stride", "padding", "output_padding"))
        restriction = c["restriction"] or {"c": 0.0, "norm": "none"}
        yield from (int(c["bias"]), int(c["batch_norm"]), restriction["norm"], restriction["c"])
    yield from ("arrays", len(case.given))
    for name, value in case.given.items():
        yield from (name, value.ndim, *value.shape)
        # As many digits as give the same number back.
        yield from map(repr, value.astype(np.float64 if value.dtype.kind == "f" else np.int64).ravel().tolist())
    yield "end"


def _shown(answer: bytes) -> str:
    text = answer.decode(errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _document(case: Case, answer: bytes) -> dict[str, Any]:
    """An answer in JSON, of the case that was asked."""
    try:
        document = json.loads(answer, object_pairs_hook=_once)
    except ProtocolError:
        raise
    except (ValueError, RecursionError):
        raise ProtocolError(f"the answer is no JSON: {_shown(answer)}") from None
    if not isinstance(document, dict) or not isinstance(document.get("case"), str):
        raise ProtocolError(f"the answer names no case: {_shown(answer)}")
    _same(case, document["case"])
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a name that is there twice nobody knows which is meant."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ProtocolError(f"{name[:100]!r} is there twice")
        found[name] = value
    return found


def _same(case: Case, name: str) -> None:
    if name != case.name:
        raise ProtocolError(f"it answered case {name[:100]!r}")


def _read_json(case: Case, answer: bytes, folder: Path) -> dict[str, NDArray] | str:
    document = _document(case, answer)
    if "skip" in document:
        return _reason(document["skip"])
    arrays = document.get("arrays")
    if not isinstance(arrays, dict):
        raise ProtocolError("the answer has no object 'arrays', and no 'skip' with a reason")
    return {name: _array(name, value) for name, value in arrays.items()}


def _read_files(case: Case, answer: bytes, folder: Path) -> dict[str, NDArray] | str:
    document = _document(case, answer)
    if "skip" in document:
        return _reason(document["skip"])
    name = document.get("file")
    path = folder / f"{case.name}.safetensors"
    if not isinstance(name, str) or name not in (str(path), path.name):
        raise ProtocolError(f"'file' is {str(name)[:100]!r}; expected {path.name}, in the folder of the question")
    return read_arrays(path, f"answer to case {case.name}")


def _reason(skip: Any) -> str:
    if not isinstance(skip, str) or not skip.strip():
        raise ProtocolError(f"'skip' is {str(skip)[:100]!r}; expected why the case is left out")
    return " ".join(skip.split())[:200]


def _array(name: str, value: Any) -> NDArray:
    if not isinstance(value, dict) or value.get("dtype") not in _DTYPES:
        raise ProtocolError(f"array {name[:100]!r} is no object with a dtype of {', '.join(_DTYPES)}")
    shape, data = value.get("shape"), value.get("data", "")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape) or len(shape) > 8:
        raise ProtocolError(f"array {name[:100]!r} has the shape {str(shape)[:100]}; expected up to 8 sizes")
    dtype = np.dtype(value["dtype"]).newbyteorder("<")
    try:
        found = base64.b64decode(data, validate=True)
    except (ValueError, TypeError):
        raise ProtocolError(f"array {name[:100]!r}: 'data' is no base64") from None
    if len(found) != math.prod(shape) * dtype.itemsize:
        told = f"{len(found)} bytes for shape {tuple(shape)} of {value['dtype']}"
        raise ProtocolError(f"array {name[:100]!r} has {told}")
    return np.frombuffer(found, dtype).astype(value["dtype"]).reshape(shape)


def _read_words(case: Case, answer: bytes, folder: Path) -> dict[str, NDArray] | str:
    words = answer.decode(errors="replace").split()
    if len(words) < 3 or words[0] != "case":
        raise ProtocolError(f"the answer does not begin with 'case NAME': {_shown(answer)}")
    _same(case, words[1])
    if words[2] == "skip":
        return _reason(" ".join(words[3:]))
    if words[-1] != "end":
        raise ProtocolError(f"the answer does not close with 'end' but with {words[-1][:60]!r}")
    if "end" in words[2:-1]:
        raise ProtocolError("the answer goes on after 'end'")
    arrays: dict[str, NDArray] = {}
    given = iter(words[2:-1])
    for name in given:
        dtype = "uint8" if stage_of(name) in DISCRETE else case.config["dtype"]
        if name in arrays:
            raise ProtocolError(f"array {name[:100]!r} is there twice")
        try:
            ndim = int(next(given))
            shape = tuple(int(next(given)) for _ in range(ndim))
            size = math.prod(shape)
            if ndim > 8 or min(shape, default=0) < 0 or size > len(words):
                raise ValueError
            arrays[name] = np.array([float(next(given)) for _ in range(size)]).astype(dtype).reshape(shape)
        except (ValueError, RuntimeError, StopIteration):
            raise ProtocolError(f"array {name[:100]!r}: expected its number of axes, sizes and numbers") from None
    return arrays


_FORMS: dict[str, tuple[Callable[[Case, Path], bytes], Callable[[Case, bytes, Path], dict[str, NDArray] | str]]] = {
    "json": (_write_json, _read_json),
    "words": (_write_words, _read_words),
    "files": (_write_files, _read_files),
}
