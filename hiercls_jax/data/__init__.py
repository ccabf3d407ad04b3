"""Images and labels, as uint8, from the embedded set, TFDS or an image folder."""
