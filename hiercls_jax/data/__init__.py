"""Images and labels, held in memory as uint8, from the embedded set, TFDS or an image folder."""
