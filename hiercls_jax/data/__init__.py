"""Images and their labels: from CIFAR-100, the embedded data set, TFDS or an image folder.

Images are uint8 until the training step standardises them. `sources` lists where they come from.
"""
