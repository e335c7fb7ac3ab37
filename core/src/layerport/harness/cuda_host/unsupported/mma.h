#error layerport-unsupported: tensor cores (mma.h)
