//! A condensed simplex tableau with the lexicographic ratio test (Dantzig, Orden and Wolfe, "The
//! Generalized Simplex Method", 1955), which prevents cycling in degenerate games.
//!
//! Only the columns of nonbasic variables are stored; a pivot exchanges a row's variable with a
//! column's.

/// The smallest pivot.
const PIVOT: f64 = 1e-10;
/// Ratios within this distance are ties.
const TIE: f64 = 1e-12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Row(usize),
    Column(usize),
}

#[derive(Debug, Clone)]
pub(crate) struct Tableau {
    /// Row-major, with the right-hand side as the last column.
    cells: Vec<f64>,
    width: usize,
    /// The variable that each row is solved for.
    basis: Vec<usize>,
    /// The variable of each column.
    columns: Vec<usize>,
    place: Vec<Place>,
    /// The variables that were basic at the start, whose columns are the inverse of the basis.
    first: std::ops::Range<usize>,
    pivot_row: Vec<f64>,
}

impl Tableau {
    /// A tableau whose rows are solved for the variables of `basis`, in order. `entry` gives the
    /// coefficients of the other variables by row and column, and the right-hand side as one more
    /// column.
    pub(crate) fn new(
        basis: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        entry: impl Fn(usize, usize) -> f64,
    ) -> Self {
        let width = columns.len() + 1;
        let mut cells = vec![0.0; basis.len() * width];
        for (row, line) in cells.chunks_exact_mut(width).enumerate() {
            line.iter_mut()
                .enumerate()
                .for_each(|(column, cell)| *cell = entry(row, column));
        }
        let mut place = vec![Place::Row(0); basis.len() + columns.len()];
        for (row, variable) in basis.clone().enumerate() {
            place[variable] = Place::Row(row);
        }
        for (column, variable) in columns.clone().enumerate() {
            place[variable] = Place::Column(column);
        }
        Self {
            cells,
            width,
            basis: basis.clone().collect(),
            columns: columns.collect(),
            place,
            first: basis,
            pivot_row: vec![0.0; width],
        }
    }

    /// Copies another tableau of the same size without an allocation.
    pub(crate) fn reset(&mut self, to: &Self) {
        self.cells.copy_from_slice(&to.cells);
        self.basis.copy_from_slice(&to.basis);
        self.columns.copy_from_slice(&to.columns);
        self.place.copy_from_slice(&to.place);
    }

    pub(crate) fn rows(&self) -> usize {
        self.basis.len()
    }

    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.cells[row * self.width..(row + 1) * self.width]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.cells[row * self.width..(row + 1) * self.width]
    }

    pub(crate) fn right(&self, row: usize) -> f64 {
        self.cells[(row + 1) * self.width - 1]
    }

    pub(crate) fn basic(&self, row: usize) -> usize {
        self.basis[row]
    }

    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The column of a nonbasic variable; `None` for a basic one.
    pub(crate) fn column(&self, variable: usize) -> Option<usize> {
        match self.place[variable] {
            Place::Column(column) => Some(column),
            Place::Row(_) => None,
        }
    }

    /// The basic variables with their values.
    pub(crate) fn solution(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        (0..self.rows()).map(|row| (self.basis[row], self.right(row)))
    }

    /// The row that leaves when a column enters, by the lexicographic ratio test; `None` when the column
    /// is unbounded.
    pub(crate) fn leaving(&self, column: usize) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for row in 0..self.rows() {
            let pivot = self.cells[row * self.width + column];
            if pivot <= PIVOT {
                continue;
            }
            let ratio = self.right(row) / pivot;
            best = match best {
                Some((other, least)) if ratio > least + TIE => Some((other, least)),
                Some((other, least)) if ratio > least - TIE && !self.less(row, other, column) => {
                    Some((other, least))
                }
                _ => Some((row, ratio)),
            };
        }
        best.map(|(row, _)| row)
    }

    /// Whether a row is lexicographically less than another with an equal ratio.
    fn less(&self, one: usize, other: usize, column: usize) -> bool {
        let entry = |row: usize, variable: usize| match self.place[variable] {
            Place::Row(at) => f64::from(u8::from(at == row)),
            Place::Column(at) => self.cells[row * self.width + at],
        };
        let (p, q) = (
            self.cells[one * self.width + column],
            self.cells[other * self.width + column],
        );
        for variable in self.first.clone() {
            let difference = entry(one, variable) / p - entry(other, variable) / q;
            if difference.abs() > TIE {
                return difference < 0.0;
            }
        }
        false
    }

    /// Exchanges a column's variable with a row's; returns the variable that left the basis.
    pub(crate) fn pivot(&mut self, row: usize, column: usize) -> usize {
        let width = self.width;
        let line = &mut self.cells[row * width..(row + 1) * width];
        let inverse = 1.0 / line[column];
        line[column] = 1.0;
        line.iter_mut().for_each(|v| *v *= inverse);
        self.pivot_row.copy_from_slice(line);
        for (index, other) in self.cells.chunks_exact_mut(width).enumerate() {
            let factor = other[column];
            if index != row && factor != 0.0 {
                other[column] = 0.0;
                crate::kernel::add_scaled(other, -factor, &self.pivot_row);
            }
        }
        let left = std::mem::replace(&mut self.basis[row], self.columns[column]);
        self.place[self.columns[column]] = Place::Row(row);
        self.columns[column] = left;
        self.place[left] = Place::Column(column);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pivot_solves_a_row_for_the_entering_variable() {
        // s0 + 2x + y = 4, s1 + x + 3y = 6.
        let rows = [[2.0, 1.0, 4.0], [1.0, 3.0, 6.0]];
        let mut tableau = Tableau::new(0..2, 2..4, |r, c| rows[r][c]);
        let start = tableau.clone();
        assert_eq!(tableau.leaving(0), Some(0));
        assert_eq!(tableau.pivot(0, 0), 0);
        assert_eq!(tableau.leaving(1), Some(1));
        assert_eq!(tableau.pivot(1, 1), 1);
        let solved: Vec<_> = tableau.solution().collect();
        assert_eq!((solved[0].0, solved[1].0), (2, 3));
        assert!((solved[0].1 - 1.2).abs() < 1e-12 && (solved[1].1 - 1.6).abs() < 1e-12);
        assert_eq!(tableau.column(1), Some(1));
        tableau.reset(&start);
        assert_eq!(tableau.row(1), rows[1]);
    }

    #[test]
    fn ties_are_broken_lexicographically() {
        // Both ratios are 1; perturbed right-hand sides 1 + e and 1 + e² let the second row leave.
        let rows = [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]];
        let tableau = Tableau::new(0..2, 2..4, |r, c| rows[r][c]);
        assert_eq!(tableau.leaving(0), Some(1));
        let free = Tableau::new(0..1, 1..2, |_, c| [-1.0, 1.0][c]);
        assert_eq!(free.leaving(0), None);
    }
}
