"""Networks in the files of other programs: safetensors, torchvision's state_dict, ONNX."""
