"""Encoders of every origin behind one class: bundles, classes of other people, ONNX files, model folders."""
