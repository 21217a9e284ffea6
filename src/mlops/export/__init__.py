"""From a checkpoint to model.onnx, whose answers are compared with those of the checkpoint before it is written."""
