#error layerport-unsupported: asynchronous copies (cuda_pipeline.h)
