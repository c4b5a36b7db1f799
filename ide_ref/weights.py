"""Weights of other programs' recurrent layers, from their state dicts: mappings of names to arrays or tensors.

Reading a file is left to the program that wrote it: what ``torch.load(path, map_location="cpu")`` returns is taken as
it is. Source: ``docs/fidelity.md``, which tells whether the other program fires the same spikes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref.network import INPUT, Connection, Network, Params, Population, Readout
from ide_ref.neurons import Neuron
from ide_ref.synapses import Conv2d, ConvTranspose2d, Dense

_LAYERS = {Dense: "fc", Conv2d: "conv", ConvTranspose2d: "convT"}
_BATCH_NORM = {"bn_weight": "weight", "bn_bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}
_RESTRICTED = {"weight": "weight_w", "alpha": "weight_g", "singular_vector": "weight_v"}


def authors_params(network: Network, state: Mapping[str, Any]) -> Params:
    """Parameters of a checkpoint of the authors' program.

    Parameters
    ----------
    network : Network
        Of the structure that was trained, as ``presets.load(name, profile="authors").network`` or ``build`` make it,
        the restriction's norm that of the kernel.
    state : dict
        The checkpoint, or its ``state_dict``: ``network_x``, ``network_s`` or ``network_s1`` to ``network_sN``, and
        ``classifier``; names may begin with ``module.``.

    Returns
    -------
    dict
        With α clipped to its bounds, unless the network's profile clamps it when it is used, as the program does.

    Raises
    ------
    ValueError
        For missing arrays, by the checkpoint's names, or arrays that do not fit the network.
    """
    _checks.kind("network", network, Network)
    arrays = _arrays(state)
    n_hidden = len(network.connections) - 2
    params: Params = {}
    for name in network.parameter_shapes:
        owner, part = name.rsplit(".", 1)
        if owner == "readout":
            params[name] = _take(arrays, f"classifier.{part}")
            continue
        c = next(c for c in network.connections if c.name == owner)
        numbered = f"network_s{int(owner.removeprefix('hidden')) if owner.startswith('hidden') else n_hidden + 1}"
        layer = "network_x" if owner == INPUT else numbered if n_hidden > 0 else "network_s"
        if part in _BATCH_NORM:
            params[name] = _take(arrays, f"{layer}.bn.{_BATCH_NORM[part]}")
        else:
            written = _RESTRICTED[part] if c.restriction and part in _RESTRICTED else part
            params[name] = _take(arrays, f"{layer}.{_LAYERS[type(c.synapse)]}.{written}")
    network.check_params(params)
    return network.project(params)


def from_snntorch(
    state: Mapping[str, Any], *, linear: str, cell: str, readout: str | None = None
) -> tuple[Network, Params]:
    """A linear layer, an ``RLeaky`` cell with weights between all its neurons, and a linear readout, of snntorch.

    Parameters
    ----------
    state : dict
        The state dict of the whole.
    linear, cell, readout : str
        Names of the three in it, such as ``"0"`` to ``"2"`` in a Sequential; without a readout the rates are the
        output.

    Returns
    -------
    network, params
        λ is the cell's beta, V_th its threshold. Reset by subtraction without delay (``reset_delay=False``) is that of
        (STEP), as long as no potential stays above V_th after it.

    Raises
    ------
    ValueError
        For missing arrays, another reset than by subtraction, or neurons that differ within the cell.
    """
    arrays = _arrays(state)
    mechanism = arrays.get(f"{cell}.reset_mechanism_val", np.zeros(()))
    if mechanism != 0:
        raise ValueError(f"{cell}.reset_mechanism_val is {mechanism}; expected 0, reset by subtraction")
    neuron = Neuron(_one(arrays, f"{cell}.beta"), _one(arrays, f"{cell}.threshold"))
    weights = {
        "input.weight": f"{linear}.weight",
        "input.bias": f"{linear}.bias",
        "recurrent.weight": f"{cell}.recurrent.weight",
        "recurrent.bias": f"{cell}.recurrent.bias",
    }
    return _recurrent(arrays, weights, readout, neuron)


def from_norse(
    state: Mapping[str, Any],
    *,
    cell: str,
    tau_mem_inv: float,
    tau_syn_inv: float,
    v_th: float,
    dt: float = 1e-3,
    readout: str | None = None,
) -> tuple[Network, Params]:
    """A ``LIFRecurrentCell`` and a linear readout of norse.

    Parameters
    ----------
    state : dict
        The state dict of the whole.
    cell, readout : str
        Names of the two in it, the cell's empty if it is the whole; without a readout the rates are the output.
    tau_mem_inv, tau_syn_inv, v_th, dt : float
        Constants of the cell, which its state dict does not hold.

    Returns
    -------
    network, params
        λ = 1 − dt tau_mem_inv and V_th = v_th/(1 − λ), for norse damps its input by 1 − λ. It resets to v_reset, not by
        subtraction: the same only where a potential meets V_th exactly.

    Raises
    ------
    ValueError
        For missing arrays, or a synaptic current that outlasts a step (dt tau_syn_inv other than 1), which (STEP) has
        not.
    """
    dt = _checks.positive("dt", dt)
    damping = dt * _checks.positive("tau_mem_inv", tau_mem_inv)
    if abs(dt * _checks.positive("tau_syn_inv", tau_syn_inv) - 1.0) > 1e-6:
        raise ValueError(f"tau_syn_inv is {tau_syn_inv!r}; expected 1/dt = {1 / dt:g}: (STEP) has no synaptic current")
    neuron = Neuron(1.0 - damping, _checks.positive("v_th", v_th) / damping)
    before = f"{cell}." if cell else ""
    weights = {"input.weight": f"{before}input_weights", "recurrent.weight": f"{before}recurrent_weights"}
    return _recurrent(_arrays(state), weights, readout, neuron)


def _arrays(state: Any) -> dict[str, NDArray]:
    """A state dict's arrays, without what a DataParallel puts before their names."""
    _checks.kind("state", state, Mapping)
    if "state_dict" in state:
        state = state["state_dict"]
    found = {}
    for name, value in state.items():
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} in the state is a {type(value).__name__}; expected an array of real numbers")
        found[str(name).removeprefix("module.")] = array
    return found


def _take(arrays: Mapping[str, NDArray], name: str) -> NDArray:
    if name not in arrays:
        raise ValueError(f"the state has no {name}; it has {', '.join(sorted(arrays)) or 'nothing'}")
    return np.array(arrays[name])


def _one(arrays: Mapping[str, NDArray], name: str) -> float:
    values = np.unique(_take(arrays, name))
    if values.size != 1:
        raise ValueError(f"{name} differs between neurons ({values.size} values); expected one number")
    return float(values[0])


def _recurrent(
    arrays: Mapping[str, NDArray], weights: Mapping[str, str], readout: str | None, neuron: Neuron
) -> tuple[Network, Params]:
    """One population that reads the input and itself; a bias where the state has one."""
    params = {ours: _take(arrays, its) for ours, its in weights.items() if ours.endswith("weight") or its in arrays}
    n, n_in = params["input.weight"].shape
    params["recurrent.weight"] = params["recurrent.weight"].reshape(n, n)
    if readout is None:
        dtype = params["input.weight"].dtype
        params |= {"readout.weight": np.eye(n, dtype=dtype), "readout.bias": np.zeros(n, dtype)}
    else:
        params["readout.weight"] = _take(arrays, f"{readout}.weight")
        n_out = len(params["readout.weight"])
        zeros = np.zeros(n_out, params["readout.weight"].dtype)
        params["readout.bias"] = np.array(arrays.get(f"{readout}.bias", zeros))
    network = Network(
        (n_in,),
        (Population("a", (n,)),),
        (
            Connection("input", INPUT, "a", Dense((n_in,), (n,)), bias="input.bias" in params),
            Connection("recurrent", "a", "a", Dense((n,), (n,)), bias="recurrent.bias" in params),
        ),
        Readout("a", Dense((n,), (len(params["readout.weight"]),))),
        neuron,
    )
    network.check_params(params)
    return network, params
