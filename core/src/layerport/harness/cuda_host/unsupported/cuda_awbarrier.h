#error layerport-unsupported: asynchronous barriers (cuda_awbarrier.h)
