"""Files of pixels: reading, writing, joining, and the tensors between them. The only room that knows codecs."""
