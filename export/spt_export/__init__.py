"""From a checkpoint to one ONNX file that runs in ONNX Runtime, OpenVINO and TensorRT."""
