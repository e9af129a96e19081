"""ResNet training on ImageNet: the code that runs on every rank of a job."""
