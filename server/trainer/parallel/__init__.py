"""One model trained by several processes: data, tensor and pipeline parallelism in any mix."""
