//! Small dense systems of linear equations.

/// Columns between two polls of whether to stop.
const CHECK_EVERY: usize = 16;
/// Pivots below this make the system singular.
const SINGULAR: f64 = 1e-13;

/// Solves `matrix · x = right` in place by Gaussian elimination with partial pivoting; `None` when the
/// matrix is singular or the computation was stopped.
pub(crate) fn solve(
    matrix: &mut [f64],
    right: &mut [f64],
    stopped: &dyn Fn() -> bool,
) -> Option<()> {
    let n = right.len();
    for column in 0..n {
        if column % CHECK_EVERY == CHECK_EVERY - 1 && stopped() {
            return None;
        }
        let pivot = (column..n).max_by(|i, j| {
            let at = |row: &usize| matrix[row * n + column].abs();
            at(i).total_cmp(&at(j))
        })?;
        let size = matrix[pivot * n + column].abs();
        if size.is_nan() || size <= SINGULAR {
            return None;
        }
        if pivot != column {
            let (above, below) = matrix.split_at_mut(pivot * n);
            above[column * n..(column + 1) * n].swap_with_slice(&mut below[..n]);
            right.swap(pivot, column);
        }
        let (done, rest) = matrix.split_at_mut((column + 1) * n);
        let pivot_row = &done[column * n + column..];
        for (index, row) in rest.chunks_exact_mut(n).enumerate() {
            let factor = row[column] / pivot_row[0];
            if factor != 0.0 {
                crate::kernel::add_scaled(&mut row[column..], -factor, pivot_row);
                right[column + 1 + index] -= factor * right[column];
            }
        }
    }
    for row in (0..n).rev() {
        let known =
            crate::kernel::dot(&matrix[row * n + row + 1..(row + 1) * n], &right[row + 1..]);
        right[row] = (right[row] - known) / matrix[row * n + row];
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_systems_are_solved_and_singular_ones_refused() {
        let mut matrix = vec![0.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 3.0];
        let mut right = vec![7.0, 6.0, 11.0];
        solve(&mut matrix, &mut right, &|| false).unwrap();
        let truth = [1.0, 2.0, 3.0];
        assert!(right.iter().zip(truth).all(|(x, t)| (x - t).abs() < 1e-12));
        assert!(solve(&mut [1.0, 2.0, 2.0, 4.0], &mut [1.0, 1.0], &|| false).is_none());
        assert!(solve(&mut [f64::NAN], &mut [1.0], &|| false).is_none());
    }
}
