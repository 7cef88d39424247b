"""A matrix times a few vectors is NumPy's product, whatever the sizes leave over beside whole vectors and fours."""

import numpy as np
import pytest

from tdraft.kernels.few_products import few_products


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 8, 11, 16, 21])
@pytest.mark.parametrize("rows", [1, 3, 4, 6, 33])
@pytest.mark.parametrize("columns", [1, 7, 8, 16, 17, 48, 100])
def test_it_is_the_product(T, rows, columns):
    rng = np.random.default_rng(T * rows * columns)
    matrix, x = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, columns), (T, columns)))
    out = np.full((T, rows), np.nan, np.float32)
    few_products(matrix, x, out)
    assert np.abs(out - x.astype(float) @ matrix.T.astype(float)).max() <= 1e-5 * np.sqrt(columns)
