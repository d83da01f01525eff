"""Use of learned filters: restoring, upscaling, evaluation."""
