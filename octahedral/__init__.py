"""The method of --preset best and scan: features in the voxel's own frame, trees that sort voxels
by these features, and filters in several stages.
"""
