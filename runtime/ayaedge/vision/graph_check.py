"""Whether a bundle's vision graph is one that `ayaedge export` may have written, told before ONNX Runtime loads it.

ONNX Runtime computes what is constant while it loads, and a graph may hold loops: a stranger's could keep a program
busy for ever, or take all memory, before anybody can cancel it.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from ayaedge.checks import shown
from ayaedge.errors import BundleError, list_faults
from ayaedge.manifest import Manifest
from ayaedge.vision.graph_reader import FLOAT, SMALL, Graph, GraphReader, Node
from ayaedge.vision.graph_shapes import RULES, Value, scores, work
from ayaedge.vision.protobuf import Part, WireError

_OPSETS = {"": range(18, 21), "com.microsoft": range(1, 2)}
_LARGEST = 1 << 26
"""Numbers that one operator may give. The released tower's largest has 7 million."""
_MOST, _MOST_WORK = 1 << 33, 1 << 43
"""Numbers that all operators may give for a tile, and multiplications: 8 and 26 times the released tower's."""
_CONSTANT = 1 << 16
"""Numbers that may be computed from weights alone, beside twice the weights."""


def check_graph(path: Path, manifest: Manifest) -> None:
    """Raise BundleError, with all faults, unless the graph at `path` is of known operators and bounded sizes."""
    data = path.with_name(f"{path.name}.data")
    reader = GraphReader(data.name, data.stat().st_size if data.is_file() else 0)
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as source:
            graph = reader.read(Part(source, 0, len(source)))
    except (WireError, ValueError) as error:
        raise BundleError(f"cannot load the vision graph {path}: {error}") from None
    except OSError as error:
        raise BundleError(f"cannot load the vision graph {path}: {error}") from error
    faults = [*graph.faults, *_header_faults(graph, manifest), *_operator_faults(graph)]
    if not faults:
        faults = _size_faults(graph, manifest)
    if faults:
        raise BundleError(
            list_faults(f"the vision graph {path}", faults)
            + "\nayaedge writes no such graph: export again, or update ayaedge if a newer one wrote the bundle"
        )


def _header_faults(graph: Graph, manifest: Manifest) -> list[str]:
    faults = [
        f"it needs version {version} of the operators {shown(domain or 'ai.onnx')}"
        for domain, version in graph.opsets.items()
        if version not in _OPSETS.get(domain, ())
    ]
    size = manifest.tiling.tile_size
    wanted = {
        "input": (graph.inputs, (3, size, size)),
        "output": (graph.outputs, _embedding_sizes(manifest)),
    }
    for what, (declared, dims) in wanted.items():
        if len(declared) != 1 or declared[0].kind != FLOAT or declared[0].dims[1:] != dims:
            sizes = ", ".join(map(str, ("tiles", *dims)))
            told = shown([(one.kind, one.dims) for one in declared])
            faults.append(
                f"it does not belong to this bundle: its {what} must be one of floats of ({sizes}), not {told}"
            )
    return faults


def _operator_faults(graph: Graph) -> list[str]:
    """Unknown operators, attributes that they never have, and names that are not known where they are used."""
    faults: dict[str, None] = {}
    known = {*graph.tensors, *(one.name for one in graph.inputs)}
    for node in graph.nodes:
        rule = RULES.get(node.operator)
        if rule is None:
            faults[f"it uses the operator {shown(node.operator)}"] = None
            continue
        for name in node.attributes.keys() - rule.attributes:
            faults[f"its operator {node.operator} has the attribute {shown(name)}"] = None
        fewest, most = rule.inputs
        if not fewest <= len(node.inputs) <= most or not known.issuperset(node.inputs):
            faults[f"its operator {node.operator} has the inputs {shown(node.inputs)}"] = None
        if len(node.outputs) != (
            len(node.outputs) if node.operator == "Split" else 1
        ) or not known.isdisjoint(node.outputs):
            faults[f"its operator {node.operator} has the outputs {shown(node.outputs)}"] = None
        known.update(node.outputs)
    return list(faults)


def _size_faults(graph: Graph, manifest: Manifest) -> list[str]:
    """What is too large, or does not fit, when one tile goes through the graph."""
    size = manifest.tiling.tile_size
    weights = sum(tensor.items for tensor in graph.tensors.values())
    values = {one.name: Value(one.dims, one.numbers, constant=True) for one in graph.tensors.values()}
    values[graph.inputs[0].name] = Value((1, 3, size, size))
    items = multiplied = folded = 0
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        try:
            outputs = RULES[node.operator].apply(node, inputs)
        except (ValueError, IndexError, OverflowError) as error:
            return [f"its operator {_name(node)}: {error}"]
        constant = all(one.constant for one in inputs)
        largest = max(scores(node, inputs), *(one.items for one in outputs))
        effort = work(node, inputs, outputs)
        items, multiplied, folded = items + largest, multiplied + effort, folded + effort * constant
        if largest > _LARGEST or items > _MOST or multiplied > _MOST_WORK:
            return [
                f"its operator {_name(node)} gives {largest:,} numbers, of {items:,} in all, by {multiplied:,} steps"
            ]
        if folded > 2 * weights + _CONSTANT:
            return [f"its operator {_name(node)} computes {effort:,} numbers that depend on no image"]
        for name, value in zip(node.outputs, outputs, strict=True):
            values[name] = Value(value.shape, value.numbers if value.items <= SMALL else None, constant)
    found = values.get(graph.outputs[0].name)
    wanted = (1, *_embedding_sizes(manifest))
    return (
        []
        if found is not None and found.shape == wanted
        else [f"its output is of {found and found.shape}, not {wanted}"]
    )


def _embedding_sizes(manifest: Manifest) -> tuple[int, int]:
    return manifest.image_prompt.tokens_per_tile, manifest.decoder.hidden_size


def _name(node: Node) -> str:
    return f"{node.operator} for {shown(node.outputs[0])}"
