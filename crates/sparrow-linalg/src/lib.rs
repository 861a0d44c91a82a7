//! Dense linear algebra for calibration and pruning: products, symmetric eigenvectors, Cholesky factors; on all cores unless
//! an operation says otherwise.
//!
//! A crate of its own because the library behind it is generic and slow to compile: here it is compiled once.
#![deny(unsafe_code)]

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltParams, LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, Auto, Mat, MatMut, MatRef, Par, Side, Spec, get_global_parallelism};

/// A row-major matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

/// Eigenvalues, ascending, and the eigenvector of each as a column.
#[derive(Debug, Clone)]
pub struct Eigen {
    /// `[n]`.
    pub values: Vec<f64>,
    /// `[n, n]`.
    pub vectors: Matrix,
}

impl Matrix {
    /// From row-major values.
    ///
    /// # Panics
    /// If there are not `rows · cols`.
    pub fn new(rows: usize, cols: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), rows * cols, "{rows} x {cols} matrix of {} values", values.len());
        Matrix { rows, cols, values }
    }

    /// From a function of row and column.
    pub fn from_fn(rows: usize, cols: usize, f: impl Fn(usize, usize) -> f64) -> Self {
        Matrix { rows, cols, values: (0..rows * cols).map(|i| f(i / cols, i % cols)).collect() }
    }

    fn from_faer(m: MatRef<f64>) -> Self {
        Matrix::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)])
    }

    fn view(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.values, self.rows, self.cols)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row-major values.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The value in a row and column.
    ///
    /// # Panics
    /// If there is none.
    pub fn at(&self, row: usize, col: usize) -> f64 {
        assert!(row < self.rows && col < self.cols, "no ({row}, {col}) in a {} x {} matrix", self.rows, self.cols);
        self.values[row * self.cols + col]
    }

    /// `selfᵀ`.
    #[must_use]
    pub fn transposed(&self) -> Matrix {
        Matrix::from_fn(self.cols, self.rows, |i, j| self.at(j, i))
    }

    /// `self · other`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    #[must_use]
    pub fn times(&self, other: &Matrix) -> Matrix {
        let mut out = Matrix::new(self.rows, other.cols, vec![0.0; self.rows * other.cols]);
        let to = MatMut::from_row_major_slice_mut(&mut out.values, self.rows, other.cols);
        matmul(to, Accum::Replace, self.view(), other.view(), 1.0, get_global_parallelism());
        out
    }

    /// `selfᵀ · self`.
    #[must_use]
    pub fn gram(&self) -> Matrix {
        let mut out = Matrix::new(self.cols, self.cols, vec![0.0; self.cols * self.cols]);
        let to = MatMut::from_row_major_slice_mut(&mut out.values, self.cols, self.cols);
        matmul(to, Accum::Replace, self.view().transpose(), self.view(), 1.0, get_global_parallelism());
        out
    }

    /// Of a symmetric matrix, whose lower triangle is read; none if the iteration does not converge (values that are not
    /// finite).
    ///
    /// # Panics
    /// If it is not square.
    pub fn symmetric_eigen(&self) -> Option<Eigen> {
        assert_eq!(self.rows, self.cols, "eigenvectors of a matrix that is not square");
        let eigen = self.view().self_adjoint_eigen(Side::Lower).ok()?;
        let values = (0..self.rows).map(|i| eigen.S().column_vector()[i]).collect();
        Some(Eigen { values, vectors: Matrix::from_faer(eigen.U()) })
    }

    /// `self⁻¹ · right` of a symmetric positive definite matrix, by its Cholesky factor; none if it is not positive definite.
    ///
    /// # Panics
    /// If it is not square or the sizes do not fit.
    pub fn solve_positive_definite(&self, right: &Matrix) -> Option<Matrix> {
        assert!(self.rows == self.cols && right.rows == self.rows, "the sizes do not fit");
        let factor = self.view().llt(Side::Lower).ok()?;
        let solution: Mat<f64> = factor.solve(right.view());
        Some(Matrix::from_faer(solution.as_ref()))
    }
}

/// Row-major f32 values as a matrix, or as its transpose.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
    transposed: bool,
}

impl<'a> View<'a> {
    /// A matrix `[rows, cols]`.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "{rows} x {cols} view of {} values", values.len());
        View { values, rows, cols, stride: cols, transposed: false }
    }

    /// A matrix `[rows, cols]` whose rows begin `stride` values apart: columns of a wider one.
    ///
    /// # Panics
    /// If `values` ends before the matrix does, or rows overlap.
    pub fn strided(values: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        check_stride(values.len(), rows, cols, stride);
        View { values, rows, cols, stride, transposed: false }
    }

    /// Its transpose.
    #[must_use]
    pub fn transposed(self) -> Self {
        View { transposed: !self.transposed, ..self }
    }

    fn faer(self) -> MatRef<'a, f32> {
        let matrix = MatRef::from_row_major_slice_with_stride(self.values, self.rows, self.cols, self.stride);
        if self.transposed { matrix.transpose() } else { matrix }
    }
}

/// `out = a · b`, row-major.
///
/// # Panics
/// If the sizes do not fit.
pub fn product(a: View, b: View, out: &mut [f32]) {
    let (a, b) = (a.faer(), b.faer());
    let out = MatMut::from_row_major_slice_mut(out, a.nrows(), b.ncols());
    matmul(out, Accum::Replace, a, b, 1.0, get_global_parallelism());
}

/// Row-major f32 values as a matrix to write to.
#[derive(Debug)]
pub struct ViewMut<'a> {
    values: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> ViewMut<'a> {
    /// As [`View::strided`].
    ///
    /// # Panics
    /// As there.
    pub fn strided(values: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        check_stride(values.len(), rows, cols, stride);
        ViewMut { values, rows, cols, stride }
    }
}

fn check_stride(values: usize, rows: usize, cols: usize, stride: usize) {
    let needed = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
    assert!(stride >= cols && values >= needed, "{rows} x {cols} view, stride {stride}, of {values} values");
}

/// `out += factor · a · b`, on the calling thread alone: callers split the work themselves, in a way that does not depend on
/// how many threads there are, and so have the same sums on any number.
///
/// # Panics
/// If the sizes do not fit.
pub fn add_product(factor: f32, a: View, b: View, out: ViewMut) {
    let ViewMut { values, rows, cols, stride } = out;
    // faer 0.24 takes the strides of `from_row_major_slice_with_stride_mut` the wrong way round.
    let out = MatMut::from_column_major_slice_with_stride_mut(values, cols, rows, stride).transpose_mut();
    matmul(out, Accum::Add, a.faer(), b.faer(), factor, Par::Seq);
}

/// The upper triangular `U`, `[n, n]`, with `Uᵀ·U = A⁻¹` for a symmetric positive definite `A` `[n, n]`, whose upper triangle is
/// read; none if it is not positive definite. On the calling thread alone; takes the memory of two such matrices.
///
/// With `J` the matrix that reverses an order and `J·A·J = L·Lᵀ`, `U` is `J·L⁻¹·J`: one factorisation instead of the two and
/// the inverse that `chol(A⁻¹)` would need.
///
/// # Panics
/// If there are not `n · n` values.
pub fn inverse_cholesky_factor(mut a: Vec<f32>, n: usize) -> Option<Vec<f32>> {
    assert_eq!(a.len(), n * n, "{n} x {n} matrix of {} values", a.len());
    // J·A·J, row-major, is A's values from the last to the first.
    a.reverse();
    let mut factor = MatMut::from_row_major_slice_mut(&mut a, n, n);
    let params = Spec::<LltParams, f32>::from(<LltParams as Auto<f32>>::auto());
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f32>(n, Par::Seq, params));
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(factor.as_mut(), LltRegularization::default(), Par::Seq, stack, params).ok()?;
    let mut inverse = vec![0.0; n * n];
    let to = MatMut::from_row_major_slice_mut(&mut inverse, n, n);
    invert_lower_triangular(to, factor.as_ref(), Par::Seq);
    inverse.reverse();
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rows: usize, cols: usize) -> Matrix {
        Matrix::from_fn(rows, cols, |i, j| ((i * 31 + j * 17 + i * j * 7) % 23) as f64 / 11.0 - 1.0)
    }

    fn close(a: &Matrix, b: &Matrix) -> bool {
        a.values().iter().zip(b.values()).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn products_are_sums_of_products() {
        let (a, b) = (sample(3, 5), sample(5, 4));
        let naive = Matrix::from_fn(3, 4, |i, j| (0..5).map(|k| a.at(i, k) * b.at(k, j)).sum());
        assert!(close(&a.times(&b), &naive));
        assert!(close(&a.gram(), &a.transposed().times(&a)));
        let single = |m: &Matrix| m.values().iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let (at, b) = (single(&a.transposed()), single(&b));
        let mut out = vec![9.0; 12];
        product(View::new(&at, 5, 3).transposed(), View::new(&b, 5, 4), &mut out);
        assert!(out.iter().zip(naive.values()).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
    }

    #[test]
    fn eigenvectors_put_the_matrix_together_again() {
        let a = sample(9, 6).gram();
        let Eigen { values, vectors } = a.symmetric_eigen().unwrap();
        assert!(values.windows(2).all(|w| w[0] <= w[1]));
        let scaled = Matrix::from_fn(6, 6, |i, j| vectors.at(i, j) * values[j]);
        assert!(close(&scaled.times(&vectors.transposed()), &a));
        assert!(Matrix::new(1, 1, vec![f64::NAN]).symmetric_eigen().is_none_or(|e| e.values[0].is_nan()));
    }

    #[test]
    fn parts_of_matrices_are_added_to() {
        let values: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let mut out = vec![1.0; 12];
        // Columns 1 and 2 of rows 0 and 1 of a 4 x 5 matrix, times their transpose.
        let part = View::strided(&values[1..], 2, 2, 5);
        add_product(-1.0, part, part.transposed(), ViewMut::strided(&mut out[5..], 2, 2, 4));
        let (a, b, c) = (1.0 - 5.0, 1.0 - 20.0, 1.0 - 85.0);
        assert_eq!(out, [1.0, 1.0, 1.0, 1.0, 1.0, a, b, 1.0, 1.0, b, c, 1.0]);
    }

    #[test]
    fn factors_of_the_inverse_make_the_inverse() {
        for n in [1, 2, 7, 40, 130] {
            let a = sample(2 * n + 5, n).gram();
            let a = Matrix::from_fn(n, n, |i, j| a.at(i, j) + if i == j { n as f64 } else { 0.0 });
            // Only the upper triangle is read.
            let upper = (0..n * n).map(|i| if i % n < i / n { f32::NAN } else { a.at(i / n, i % n) as f32 }).collect();
            let factor = inverse_cholesky_factor(upper, n).unwrap();
            let factor = Matrix::from_fn(n, n, |i, j| f64::from(factor[i * n + j]));
            assert!((0..n).all(|i| factor.at(i, i) > 0.0 && (0..i).all(|j| factor.at(i, j) == 0.0)));
            let identity = factor.gram().times(&a);
            let error = |i, j| (identity.at(i, j) - f64::from(u8::from(i == j))).abs();
            assert!((0..n).all(|i| (0..n).all(|j| error(i, j) < 1e-3)), "{n}");
        }
        assert!(inverse_cholesky_factor(vec![-1.0], 1).is_none());
    }

    #[test]
    fn solutions_solve() {
        let a = sample(9, 4).gram();
        let right = sample(4, 3);
        assert!(close(&a.times(&a.solve_positive_definite(&right).unwrap()), &right));
        assert!(Matrix::new(1, 1, vec![-1.0]).solve_positive_definite(&Matrix::new(1, 1, vec![1.0])).is_none());
    }
}
