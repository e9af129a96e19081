"""`prepare imagenet`: ImageNet's archives laid out as folders or tar files."""
