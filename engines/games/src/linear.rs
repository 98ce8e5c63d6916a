//! Small dense linear systems.

/// Solves `matrix · x = right` in place by elimination with partial pivoting; `None` when singular.
pub(crate) fn solve(matrix: &mut [f64], right: &mut [f64]) -> Option<()> {
    let n = right.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|i, j| {
            matrix[i * n + column]
                .abs()
                .total_cmp(&matrix[j * n + column].abs())
        })?;
        if matrix[pivot * n + column].abs() < 1e-13 {
            return None;
        }
        if pivot != column {
            for k in 0..n {
                matrix.swap(pivot * n + k, column * n + k);
            }
            right.swap(pivot, column);
        }
        for row in column + 1..n {
            let factor = matrix[row * n + column] / matrix[column * n + column];
            if factor != 0.0 {
                for k in column..n {
                    matrix[row * n + k] -= factor * matrix[column * n + k];
                }
                right[row] -= factor * right[column];
            }
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| matrix[row * n + k] * right[k]).sum();
        right[row] = (right[row] - known) / matrix[row * n + row];
    }
    Some(())
}
