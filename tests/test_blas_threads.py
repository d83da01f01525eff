"""Steps of learning that call BLAS have it work in one thread: their number changes no bit."""
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from gram_cases import MEDIUM, SMALL, add, random_gram, random_samples
from test_stages import QUICK, TREE, random_sums
from test_tree import two_laws
from threadpoolctl import threadpool_info, threadpool_limits

from matrix_compute import Gram, ridge_filters, solve
from octahedral.ridge import solve_stage
from octahedral.tree import grow

# A function that a step calls amid its work, and the step.
STEPS = {
    "sums": ("matrix_compute.gram_of_rows", lambda: add(
        Gram(MEDIUM.buckets, MEDIUM.taps), *random_samples(), MEDIUM)),
    "ridge": ("matrix_compute.ridge_filter", lambda: ridge_filters(
        random_gram(SMALL, 60), range(36), 10.0, np.zeros(27), np.zeros((36, 27)),
        lambda solved: None)),
    "conjugate gradients": ("matrix_compute.symmetric_product", lambda: solve(
        random_gram(SMALL, 60), replace(SMALL, solver="cg"))),
    "leaves": ("octahedral.ridge.cho_factor", lambda: solve_stage(
        random_sums(TREE)[0], TREE, replace(QUICK, ridge=40.0))),
    "tree": ("octahedral.tree.errors_left", lambda: grow(*two_laws(), 3)),
}


@pytest.mark.parametrize("step", STEPS)
def test_blas_works_in_one_thread_in_each_step_of_learning(monkeypatch, step):
    where, work = STEPS[step]
    module, name = where.rsplit(".", 1)
    plain, seen = getattr(import_module(module), name), set()

    def watched(*arguments, **options):
        seen.update(pool["num_threads"] for pool in threadpool_info()
                    if pool["user_api"] == "blas")
        return plain(*arguments, **options)

    monkeypatch.setattr(where, watched)
    with threadpool_limits(3, "blas"):  # on a machine of one core, too
        work()
    assert seen == {1}
