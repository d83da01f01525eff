"""The second structure: features in the voxel's own frame, trees that sort voxels by them, and
filters in stages.
"""
