#!/bin/sh
# onnxruntime: a Pad by zero before a MaxPool changes the numbers once graphs are optimised, which is the default.
# One would guess: optimisation keeps a graph's function. A zero beside -3 pools to 0.
# onnxruntime 1.31.1 moves the padding into the MaxPool, which pads by minus infinity: the zero is gone and -3 comes
# out. Convolutional encoders of PPG and ECG (AnyPPG, ECGFounder, PaPaGei) halve odd lengths in this very way, so a
# graph of a fixed length gave vectors 4 % off; one of dynamic length did not, as its padding is no constant.
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.22.0 'numpy<3'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

nodes = [
    helper.make_node("Pad", ["x", "pads", "zero"], ["padded"], mode="constant"),
    helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[2], strides=[2]),
]
graph = helper.make_graph(
    nodes,
    "halve",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 3])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2])],
    [
        numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 1], np.int64), "pads"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
x = np.array([[[-1, -2, -3]]], np.float32)
found = {}
for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    (y,) = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    found[level] = y.ravel().tolist()
    print(f"onnxruntime {version('onnxruntime')}, {level}: [-1, -2, -3] halved is {found[level]}")
assert found["ORT_DISABLE_ALL"] == [-1, 0], found
assert found["ORT_ENABLE_BASIC"] == found["ORT_ENABLE_ALL"] == [-1, -3], found
PY
