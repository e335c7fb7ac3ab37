#error layerport-unsupported: cooperative groups
