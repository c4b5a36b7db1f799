"""Other simulators on small cases, in an environment of their own: a JSON request on standard input, JSON out.

Knows nothing of the package that it judges. A case is one layer: ``w`` (n, n_in), ``rec`` (n, n) or none, ``leak``,
``v_th`` and ``x`` (T, n_in); every behaviour returns its spikes (T, n), or a text where it refuses.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import sys
import tempfile
import warnings
from importlib.metadata import version

import nir
import norse.torch as norse
import numpy as np
import sinabs.layers as sl
import sinabs.nir
import snntorch as snn
import torch
from norse.torch.functional.reset import reset_subtract
from norse.torch.utils.export_nir import to_nir as norse_to_nir
from norse.torch.utils.import_nir import from_nir as norse_from_nir
from sinabs.activation import SingleSpike
from snntorch.export_nir import export_to_nir as snntorch_to_nir
from snntorch.import_nir import import_from_nir as snntorch_from_nir
from spikingjelly.activation_based import layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir as spikingjelly_to_nir
from spikingjelly.activation_based.nir_exchange import import_from_nir as spikingjelly_from_nir

LIBRARIES = ("snntorch", "spikingjelly", "norse", "sinabs", "nir", "nirtorch", "torch")
NORSE_DT = 0.001  # its default
F64 = torch.float64


def tensor(value):
    return torch.tensor(value, dtype=F64)


def run(case, update):
    """Spikes of T steps; ``update`` takes the drive (1, n) of a step to its spikes."""
    w, x = tensor(case["w"]), tensor(case["x"])
    rec = tensor(case["rec"]) if case.get("rec") else torch.zeros(len(w), len(w), dtype=F64)
    s, found = torch.zeros(1, len(w), dtype=F64), []
    for frame in x:
        s = update(w @ frame[:, None] + rec @ s.reshape(-1, 1)).reshape(1, -1).to(F64)
        found.append([int(n) for n in s[0]])
    return found


def row(update):
    """The same for modules that want the drive as (1, n)."""
    return lambda drive: update(drive.T)


def step(case):
    """(STEP), for the search."""
    u = 0.0

    def update(drive):
        nonlocal u
        v = case["leak"] * u + drive
        s = (v >= case["v_th"]).to(F64)
        u = v - case["v_th"] * s
        return s

    return run(case, update)


def snntorch_leaky(case, **options):
    module = snn.Leaky(tensor(case["leak"]), threshold=tensor(case["v_th"]), **options)
    mem = torch.zeros(1, len(case["w"]), dtype=F64)

    def update(drive):
        nonlocal mem
        spikes, mem = module(drive.T, mem)
        return spikes

    return run(case, update)


def spikingjelly_node(case, twice=False, **options):
    if case["leak"] == 1.0:
        module = neuron.IFNode(v_threshold=case["v_th"], **options)
    else:
        module = neuron.LIFNode(tau=1 / (1 - case["leak"]), v_threshold=case["v_th"], **options)
    if twice:
        run(case, row(module))
    return run(case, row(module))


def norse_box(case, scaled=True, strict=True, **options):
    """LIFBoxCell with drives divided by its damping; ``strict=False`` lowers the threshold by one bit."""
    damping = 1 - case["leak"]
    v_th = tensor(case["v_th"])
    if not strict:
        v_th = torch.nextafter(v_th, tensor(0.0))
    module = norse.LIFBoxCell(
        norse.LIFBoxParameters(
            tau_mem_inv=tensor(damping / NORSE_DT), v_leak=tensor(0.0), v_th=v_th, v_reset=tensor(0.0), **options
        ),
        dt=NORSE_DT,
    )
    return run(case, stateful(module, lambda drive: drive.T / (damping if scaled else 1.0)))


def norse_iaf(case):
    return run(case, stateful(norse.IAFCell(norse.IAFParameters(v_th=tensor(case["v_th"])))))


def stateful(module, given=lambda drive: drive.T):
    """A module that returns its output and its state."""
    state = None

    def update(drive):
        nonlocal state
        spikes, state = module(given(drive), state)
        return spikes

    return update


def sinabs_lif(case, twice=False, **options):
    v_th = tensor(case["v_th"])
    if case["leak"] == 1.0:
        options.pop("norm_input", None)
        module = sl.IAF(spike_threshold=v_th, **options)
    else:
        module = sl.LIF(tau_mem=tensor(-1 / math.log(case["leak"])), spike_threshold=v_th, **options)
    if twice:
        run(case, lambda drive: module(drive.T[None]))
    return run(case, lambda drive: module(drive.T[None]))


def graph_of(case):
    """The case in NIR, as ide_ref writes it for dt = 1e-4, every linear node with a bias."""
    n, dt = len(case["w"]), 1e-4

    def full(value):
        return np.full(n, value, np.float32)

    if case["leak"] == 1.0:
        cell = nir.IF(full(1 / dt), full(case["v_th"]), full(0))
    else:
        rest = 1 - case["leak"]
        cell = nir.LIF(full(dt / rest), full(1 / rest), full(0), full(case["v_th"]), full(0))
    weight = np.array(case["w"], np.float32)
    nodes = {
        "input": nir.Input(np.array([weight.shape[1]])), "w": nir.Affine(weight, full(0)), "n": cell,
        "output": nir.Output(np.array([n])),
    }  # fmt: skip
    edges = [("input", "w"), ("w", "n"), ("n", "output")]
    if case.get("rec"):
        nodes["rec"] = nir.Affine(np.array(case["rec"], np.float32), full(0))
        edges += [("n", "rec"), ("rec", "n")]
    return nir.NIRGraph(nodes, edges)


def through(module, case, *, sequence=False):
    """Spikes of a whole imported graph, which has the weights itself."""
    state, found = None, []
    for frame in torch.tensor(case["x"], dtype=torch.float32):
        out = module(frame[None]) if sequence else module(frame[None], state)
        spikes, state = out if isinstance(out, tuple) else (out, None)
        # snntorch's imported IF returns its potential too.
        spikes = spikes[0] if isinstance(spikes, tuple) else spikes
        found.append([int(n) if n % 1 == 0 else float(n) for n in spikes.reshape(-1)])
    return found


def snntorch_import(case, r=None):
    graph = graph_of(case)
    if r is not None:
        graph.nodes["n"].r[:] = r
    return through(snntorch_from_nir(graph), case)


def norse_import(case):
    return through(norse_from_nir(graph_of(case), ignore_warnings=True, dt=1e-4), case)


def norse_round_trip(case):
    n = len(case["w"])
    cell = norse.LIFBoxCell(
        norse.LIFBoxParameters(
            tau_mem_inv=torch.full((n,), (1 - case["leak"]) / NORSE_DT), v_leak=torch.zeros(n), v_th=torch.ones(n)
        )
    )
    linear = torch.nn.Linear(len(case["x"][0]), n, bias=False)
    linear.weight.data = torch.tensor(case["w"])
    graph = norse_to_nir(norse.SequentialState(linear, cell), torch.zeros(1, len(case["x"][0])))
    return through(norse_from_nir(graph, ignore_warnings=True), case)


def sinabs_import(case):
    return through(sinabs.nir.from_nir(graph_of(case), batch_size=1), case, sequence=True)


def sinabs_import_linear(case):
    graph = graph_of(case)
    graph.nodes["w"] = nir.Linear(graph.nodes["w"].weight)
    return through(sinabs.nir.from_nir(graph, batch_size=1), case, sequence=True)


def spikingjelly_import(case):
    return through(spikingjelly_from_nir(graph_of(case)), case)


def spikingjelly_export(case):
    module = torch.nn.Sequential(layer.Linear(1, 1), neuron.IFNode(v_threshold=case["v_th"], v_reset=None))
    spikingjelly_to_nir(module, torch.zeros(1, 1))
    return step(case)


def nir_in_words(case):
    """NIR's own equations: the exact solution of a step, a spike where v > v_threshold, then v = v_reset."""
    v = 0.0

    def update(drive):
        nonlocal v
        v = case["leak"] * v + drive
        s = (v > case["v_th"]).to(F64)
        v = v * (1 - s)
        return s

    return run(case, update)


AGREES = {
    "snntorch": ("Leaky(reset_delay=False)", lambda c: snntorch_leaky(c, reset_delay=False)),
    "spikingjelly": ("v_reset=None, decay_input=False", lambda c: spikingjelly_soft(c)),
    "norse": (
        "LIFBoxCell, reset_subtract, drive / (1 - leak), v_th one bit lower",
        lambda c: norse_box(c, strict=False, reset_method=reset_subtract),
    ),
    "sinabs": ("SingleSpike, norm_input=False", lambda c: sinabs_lif(c, spike_fn=SingleSpike, norm_input=False)),
}


def spikingjelly_soft(case, twice=False):
    options = {} if case["leak"] == 1.0 else {"decay_input": False}
    return spikingjelly_node(case, twice, v_reset=None, **options)


BEHAVIOURS = {
    **{f"{library}: {told}": function for library, (told, function) in AGREES.items()},
    "snntorch: Leaky()": snntorch_leaky,
    "snntorch: import_from_nir": snntorch_import,
    "snntorch: import_from_nir of IF with r = 1": lambda c: snntorch_import(c, 1.0),
    "spikingjelly: IFNode()": spikingjelly_node,
    "spikingjelly: LIFNode(v_reset=None)": lambda c: spikingjelly_node(c, v_reset=None),
    "spikingjelly: called twice": lambda c: spikingjelly_soft(c, twice=True),
    "spikingjelly: export_to_nir of v_reset=None": spikingjelly_export,
    "spikingjelly: import_from_nir": spikingjelly_import,
    "norse: LIFBoxCell, drive / (1 - leak)": norse_box,
    "norse: LIFBoxCell, reset_subtract, drive / (1 - leak)": lambda c: norse_box(c, reset_method=reset_subtract),
    "norse: LIFBoxCell, reset_subtract": lambda c: norse_box(
        c, scaled=False, strict=False, reset_method=reset_subtract
    ),
    "norse: IAFCell": norse_iaf,
    "norse: to_nir, then from_nir": norse_round_trip,
    "norse: from_nir": norse_import,
    "sinabs: IAF()": lambda c: sinabs_lif(c),
    "sinabs: LIF(spike_fn=SingleSpike)": lambda c: sinabs_lif(c, spike_fn=SingleSpike),
    "sinabs: called twice": lambda c: sinabs_lif(c, twice=True, spike_fn=SingleSpike, norm_input=False),
    "sinabs: from_nir": sinabs_import,
    "sinabs: from_nir of Linear": sinabs_import_linear,
    "nir: its equations": nir_in_words,
}


def found(behaviour, case):
    try:
        return BEHAVIOURS[behaviour](case)
    except Exception as error:
        return f"refused: {type(error).__name__}"


def case_of(entry):
    """The one neuron of an entry."""
    rec = [[entry["rec"]]] if "rec" in entry else None
    return {"w": [[entry.get("w", 1.0)]], "rec": rec, "leak": entry["leak"], "v_th": 1.0, "x": entry.get("x")}


def smallest(entry):
    """The first train, in order of length, then size, on which the behaviour departs from (STEP)."""
    for n_steps in range(1, 4):
        trains = itertools.product(entry["grid"], repeat=n_steps)
        for train in sorted(trains, key=lambda xs: (sum(map(abs, xs)), xs)):
            tried = {**case_of(entry), "x": [[x] for x in train]}
            if found(entry["theirs"], tried) != step(tried):
                return tried["x"]
    return None


def exported(folder, case):
    """Files of NIR that the simulators export of one network, and the spikes that it fires in each of them."""
    w = torch.tensor(case["w"], dtype=torch.float32)
    n, n_in = w.shape
    made = {}

    def write(name, graph, spikes):
        nir.write(os.path.join(folder, f"{name}.nir"), graph)
        made[name] = spikes

    def linear():
        module = torch.nn.Linear(n_in, n)
        module.weight.data, module.bias.data = w, torch.zeros(n)
        return module

    cell = snn.RLeaky(case["leak"], threshold=case["v_th"], linear_features=n, init_hidden=True, reset_delay=False)
    cell.recurrent.weight.data = torch.tensor(case["rec"], dtype=torch.float32)
    cell.recurrent.bias.data = torch.zeros(n)
    module = torch.nn.Sequential(linear(), cell)
    graph = snntorch_to_nir(module, torch.zeros(n_in))
    write("snntorch", graph, through(module, case, sequence=True))
    plain = {**case, "rec": None}
    cell = norse.LIFBoxCell(
        norse.LIFBoxParameters(
            tau_mem_inv=torch.full((n,), (1 - case["leak"]) / NORSE_DT), v_leak=torch.zeros(n),
            v_th=torch.full((n,), case["v_th"] * (1 - case["leak"])), reset_method=reset_subtract,
        )
    )  # fmt: skip
    module = norse.SequentialState(linear(), cell)
    write("norse", norse_to_nir(module, torch.zeros(1, n_in)), through(module, plain))
    cell = sl.LIFSqueeze(
        tau_mem=torch.full((n,), -1 / math.log(case["leak"])), spike_threshold=torch.full((n,), case["v_th"]),
        spike_fn=SingleSpike, norm_input=False, batch_size=1,
    )  # fmt: skip
    module = torch.nn.Sequential(linear(), cell)
    module(torch.zeros(1, n_in))
    graph = sinabs.nir.to_nir(module, torch.zeros(1, n_in))
    cell.reset_states()
    write("sinabs", graph, through(module, plain, sequence=True))
    cell = neuron.LIFNode(tau=1 / (1 - case["leak"]), v_threshold=case["v_th"], decay_input=False)
    module = torch.nn.Sequential(layer.Linear(n_in, n), cell)
    module[0].weight.data, module[0].bias.data = w, torch.zeros(n)
    graph = spikingjelly_to_nir(module, torch.zeros(1, n_in))
    cell.reset()
    write("spikingjelly", graph, through(module, plain, sequence=True))
    return made


def recurrent(case):
    """State dicts of recurrent layers with these weights, as lists, an input and the spikes that they fire on it."""
    n, n_in = len(case["w"]), len(case["w"][0])
    module = torch.nn.Sequential(
        torch.nn.Linear(n_in, n),
        snn.RLeaky(case["leak"], threshold=case["v_th"], linear_features=n, init_hidden=True, reset_delay=False),
    )
    module[0].weight.data, module[0].bias.data = torch.tensor(case["w"]), torch.full((n,), 0.0625)
    module[1].recurrent.weight.data, module[1].recurrent.bias.data = (
        torch.tensor(case["rec"]),
        torch.full((n,), -0.03125),
    )
    state = {name: value.tolist() for name, value in module.state_dict().items()}
    found = {"snntorch": {"state": state, "x": case["x"], "spikes": through(module, case, sequence=True)}}
    # Potentials that meet the threshold exactly, with that lower by one bit: there norse's reset is that of (STEP).
    weights = torch.eye(3), torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    v_th = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0))
    constants = norse.LIFParameters(tau_syn_inv=torch.tensor(1 / NORSE_DT), tau_mem_inv=torch.tensor(500.0), v_th=v_th)
    cell = norse.LIFRecurrentCell(3, 3, constants, input_weights=weights[0], recurrent_weights=weights[1], dt=NORSE_DT)
    x = [[1.0, 0, 0], *[[0.0, 0, 0]] * 4, [0.0, 0, 1.0], *[[0.0, 0, 0]] * 6]
    spikes = through(cell, {"x": x})
    state = {"input_weights": weights[0].tolist(), "recurrent_weights": weights[1].tolist()}
    found["norse"] = {"state": state, "x": x, "spikes": spikes}
    return found


def answer(request):
    return {
        "versions": {name: version(name) for name in LIBRARIES},
        "rows": [
            {
                "x": x,
                "spikes": found(entry["theirs"], {**case_of(entry), "x": x}),
                "agrees": found(entry["agrees"], {**case_of(entry), "x": x}) if entry["agrees"] else None,
            }
            for entry in request["rows"]
            for x in [smallest(entry) if request["search"] else entry["x"]]
        ],
        "network": {key: found(f"{key}: {told}", request["network"]) for key, (told, _) in AGREES.items()},
        "recurrent": recurrent(request["network"]),
        "files": exported(request["folder"] or tempfile.mkdtemp(), request["network"]),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    # What the libraries print is not the answer.
    with contextlib.redirect_stdout(sys.stderr):
        said = answer(json.load(sys.stdin))
    json.dump(said, sys.stdout)
