"""The fidelity ledger: every departure of another simulator from (STEP), run in an environment of its own.

    python -m venv ENV && ENV/bin/pip install -r tests/ledger/requirements.txt
    ENV/bin/pip install --no-deps sinabs==3.1.3
    python tests/ledger/run.py --python ENV/bin/python

compares what the simulators do with ``ledger.json``; ``--search`` looks for the smallest inputs anew, ``--write``
writes what was found into the ledger, the exported files and the table of docs/fidelity.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ide_ref import Connection, Dense, Network, Population, Readout, freeze, nir, simulate
from ide_ref.neurons import Neuron

HERE = Path(__file__).parent
LEDGER = HERE / "ledger.json"
PAGE = HERE.parent.parent / "docs/fidelity.md"


def entry_case(entry):
    """The one neuron of an entry and its input."""
    rec = [[entry["rec"]]] if "rec" in entry else None
    return {"w": [[entry.get("w", 1.0)]], "rec": rec, "leak": entry["leak"], "v_th": 1.0, "x": entry["x"]}


def ours(case):
    """Spikes (T, n) of (STEP), as lists."""
    w, x = np.array(case["w"]), np.array(case["x"])
    n, n_in = w.shape
    connections = [Connection("in", "input", "a", Dense((n_in,), (n,)))]
    params = {"in.weight": w, "readout.weight": np.ones((1, n)), "readout.bias": np.zeros(1)}
    if case.get("rec"):
        connections.append(Connection("rec", "a", "a", Dense((n,), (n,))))
        params["rec.weight"] = np.array(case["rec"])
    readout = Readout("a", Dense((n,), (1,)))
    neuron = Neuron(case["leak"], case["v_th"])
    network = Network((n_in,), (Population("a", (n,)),), tuple(connections), readout, neuron)
    return simulate(freeze(network, params), x[None], len(x), record=True).recording.s[0].tolist()


def of_file(name, case):
    """Spikes of the last population of an exported file, read as what that simulator writes."""
    network, params = nir.load(HERE / "files" / f"{name}.nir", reading=name)
    # norse writes its sample's batch axis into the shape.
    x = np.array(case["x"], params["readout.weight"].dtype).reshape(-1, *network.input_shape)
    run = simulate(freeze(network, params), x[None], len(x), record=True).recording
    return run.spikes(network.readout.source)[0].tolist()


def inline(value):
    """Lists of one number a step, as the page has them; a refusal as it is."""
    return value if isinstance(value, str) else ", ".join(f"{x:g}" for (x,) in value)


def page_row(entry, versions):
    """The line of an entry in the page."""
    weight = f", weight {entry['w']:g}" if "w" in entry else ""
    weight += f", to itself {entry['rec']:g}" if "rec" in entry else ""
    cells = (
        f"{entry['library']} {versions[entry['library']]}", entry["what"],
        f"{inline(entry['x'])} (leak {entry['leak']:g}{weight})", inline(entry["ours"]), inline(entry["spikes"]),
        entry["since"], entry["how"],
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def answered(python, ledger, *, search, folder):
    """What the simulators say, from their own environment."""
    request = {"rows": ledger["rows"], "network": ledger["network"]["case"], "search": search, "folder": folder}
    command = [python, str(HERE / "simulators.py")]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} could not run the simulators:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", required=True, help="interpreter of the environment with the simulators")
    parser.add_argument("--search", action="store_true", help="look for the smallest inputs anew")
    parser.add_argument("--write", action="store_true", help="write what was found (with --search)")
    options = parser.parse_args()
    ledger = json.loads(LEDGER.read_text())
    search = options.search or options.write
    folder = str(HERE / "files") if options.write else tempfile.mkdtemp()
    said = answered(options.python, ledger, search=search, folder=folder)
    if options.write:
        ledger["versions"] = said["versions"]
        for entry, found in zip(ledger["rows"], said["rows"], strict=True):
            entry |= {"x": found["x"], "spikes": found["spikes"]}
            entry["ours"] = ours(entry_case(entry))
        ledger["network"] |= {"spikes": ours(ledger["network"]["case"])}
        ledger |= {"files": said["files"], "recurrent": said["recurrent"]}
        LEDGER.write_text(json.dumps(ledger, indent=1) + "\n")
        rows = "\n".join(page_row(entry, ledger["versions"]) for entry in ledger["rows"])
        page = PAGE.read_text()
        PAGE.write_text(re.sub(r"(\|---.*\|\n)(\| .*\n)*", rf"\g<1>{rows}\n", page, count=1))
    wrong = [
        f"{k} is {v}, locked {ledger['versions'][k]}" for k, v in said["versions"].items() if v != ledger["versions"][k]
    ]
    checked = []
    for entry, found in zip(ledger["rows"], said["rows"], strict=True):
        reproduced = all(found[key] == entry[key] for key in ("x", "spikes")) and entry["ours"] != entry["spikes"]
        agrees = entry["agrees"] is None or found["agrees"] == entry["ours"]
        checked.append((f"{entry['library']}: {entry['what']}", reproduced and agrees))
    for name, spikes in said["network"].items():
        checked.append((f"{name}: one network, 20 steps, the same spikes", spikes == ledger["network"]["spikes"]))
    for name, spikes in said["files"].items():
        checked.append((f"{name}: spikes of the network that it exports", spikes == ledger["files"][name]))
    checked.append(("spikes of the recurrent layers whose weights are read", said["recurrent"] == ledger["recurrent"]))
    for what, holds in checked:
        sys.stdout.write(f"{'ok  ' if holds else 'NOT '} {what}\n")
    wrong += [what for what, holds in checked if not holds]
    if wrong:
        raise SystemExit("differs from the ledger: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
