"""Training of ResNets on ImageNet: what runs on every rank of a job."""
