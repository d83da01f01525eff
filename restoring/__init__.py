"""Use of learned filters: restoring, upscaling and evaluation of volumes."""
