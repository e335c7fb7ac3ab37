#error layerport-unsupported: asynchronous copies (cuda_pipeline_primitives.h)
