"""model.onnx over HTTP: no torch in these processes, and nothing of the training."""
