"""The method of --preset best and scan: voxels are turned into one of 48 orientations, trees sort
them by their features, and filters are applied in several stages.
"""
