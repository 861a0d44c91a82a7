//! The active neurons of an MLP.

use std::borrow::Cow;
use std::ffi::CStr;

use sparrow::internals::backend::DENSE_FROM;
use sparrow_kernels::{
    Activation, Compute, DType, LinearPart, Matrix, SparseMlp as Neurons, SparseMlpInputs, count_ones, mask_words,
};

use super::activation::activation;
use super::active::Active;
use super::int8_linear::check_columns;
use crate::torch::argument::{float, matrix, of_shape, row_stride, rows_of, same_type, two_dimensions};
use crate::torch::fault::{Fault, Result};
use crate::torch::floats;
use crate::torch::machine::compute;
use crate::torch::scalar_type::ScalarType;
use crate::torch::shim::{Operator, Stack, Tensor};

/// Up to how many rows only the weights of active neurons are read: the engine's own rule.
const GATHER_ROWS: usize = 8;
const WHAT: &str = "[neurons, hidden]";

/// x `[..., H]`; gate, up and down `[I, H]`, a row per neuron, gate not of ungated MLPs; active as [`Active`] reads it, none
/// for all neurons; biases `[I]`, `[I]` and `[H]`; gate_values `[..., I]`, gate · x with its bias, where it is known. All
/// of one type of floats; weights may be int8 tables as `quantize_int8` makes them. Returns `[..., H]`. Equation and error:
/// those of [`Compute::sparse_mlp`].
pub struct SparseMlp;

impl Operator for SparseMlp {
    const NAME: &'static CStr = c"sparse_mlp";
    const SCHEMA: &'static CStr = c"sparse_mlp(Tensor x, Tensor? gate, Tensor up, Tensor down, Tensor? active, \
        str activation, *, Tensor? gate_bias=None, Tensor? up_bias=None, Tensor? down_bias=None, \
        Tensor? gate_values=None) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let (x, gate) = (stack.tensor()?, stack.optional_tensor()?);
        let (up, down, active) = (stack.tensor()?, stack.tensor()?, stack.optional_tensor()?);
        let (name, gate_bias, up_bias) = (stack.string()?, stack.optional_tensor()?, stack.optional_tensor()?);
        let (down_bias, gate_values) = (stack.optional_tensor()?, stack.optional_tensor()?);
        let [_, hidden] = rows_of("x", &x, "[..., hidden]")?;
        float("x", &x)?;
        let up = weight("up", &up, &x, hidden)?;
        let down = weight("down", &down, &x, hidden)?;
        let gate = gate.as_ref().map(|gate| weight("gate", gate, &x, hidden)).transpose()?;
        same_rows("down", &down, up.rows())?;
        if let Some(gate) = &gate {
            same_rows("gate", gate, up.rows())?;
        }
        if gate.is_none() && (gate_bias.is_some() || gate_values.is_some()) {
            return Err(Fault::Option("gate: expected one with gate_bias or gate_values, found None".into()));
        }
        let compute = compute()?;
        let vector = |name: &str, b: &Option<Tensor>, n: usize| match b {
            None => Ok(None),
            Some(b) => {
                same_type("x", x.scalar_type(), name, b.scalar_type())?;
                of_shape(name, b, &[n], "[neurons], of down_bias [hidden],")?;
                Ok(Some(floats::read(compute, name, b)?.into_owned()))
            }
        };
        let gate_values = gate_values.as_ref().map(|values| {
            same_type("x", x.scalar_type(), "gate_values", values.scalar_type())?;
            let mut expected: Vec<usize> = x.sizes().iter().map(|&n| n as usize).collect();
            expected[x.sizes().len() - 1] = up.rows();
            of_shape("gate_values", values, &expected, "[..., neurons]")?;
            floats::read(compute, "gate_values", values)
        });
        let mlp = Mlp {
            gate,
            up,
            down,
            gate_bias: vector("gate_bias", &gate_bias, up.rows())?,
            up_bias: vector("up_bias", &up_bias, up.rows())?,
            down_bias: vector("down_bias", &down_bias, hidden)?,
            activation: activation(&name)?,
            gate_values: gate_values.transpose()?,
        };
        stack.give(mlp.run(compute, &x, active.as_ref())?)
    }
}

/// x `[..., H]`; concat_gate_up `[2, I, H]` or `[2 · I, H]`, gates before ups, or of ungated MLPs `[1, I, H]` or `[I, H]`;
/// down `[I, H]`; otherwise as [`SparseMlp`].
pub struct SparseMlpForward;

impl Operator for SparseMlpForward {
    const NAME: &'static CStr = c"sparse_mlp_forward";
    const SCHEMA: &'static CStr = c"sparse_mlp_forward(Tensor x, Tensor concat_gate_up, Tensor down, Tensor? active, \
        str activation) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let (x, both, down) = (stack.tensor()?, stack.tensor()?, stack.tensor()?);
        let (active, name) = (stack.optional_tensor()?, stack.string()?);
        let [_, hidden] = rows_of("x", &x, "[..., hidden]")?;
        float("x", &x)?;
        let down = weight("down", &down, &x, hidden)?;
        let parts = parts(&both, &x, down.rows(), hidden)?;
        let (gate, up) = match parts[..] {
            [gate, up] => (Some(gate), up),
            [up] => (None, up),
            _ => return Err(Fault::Internal("neither one nor two projections".into())),
        };
        let (gate_bias, up_bias, down_bias, gate_values) = (None, None, None, None);
        let activation = activation(&name)?;
        let mlp = Mlp { gate, up, down, gate_bias, up_bias, down_bias, activation, gate_values };
        stack.give(mlp.run(compute()?, &x, active.as_ref())?)
    }
}

/// Elements of a stored row of `hidden` of the type, and the kernels' name for it.
fn stored(name: &str, t: &Tensor, x: &Tensor, hidden: usize) -> Result<(DType, usize)> {
    if t.scalar_type() == ScalarType::Int8 {
        check_columns(name, hidden)?;
        return Ok((DType::I8, DType::I8.row_bytes(hidden)));
    }
    same_type("x", x.scalar_type(), name, t.scalar_type())?;
    Ok((float(name, t)?, hidden))
}

/// A weight `[I, H]` of floats, or as an int8 table.
fn weight<'a>(name: &str, t: &'a Tensor, x: &Tensor, hidden: usize) -> Result<Matrix<'a>> {
    let (dtype, columns) = stored(name, t, x, hidden)?;
    let [rows, found] = two_dimensions(name, t, WHAT)?;
    if found != columns {
        let what = if dtype == DType::I8 { " in a table of int8" } else { "" };
        return Err(Fault::Shape(format!("{name}: expected shape [neurons, {columns}]{what}, found {:?}", t.sizes())));
    }
    if dtype != DType::I8 {
        return matrix(name, t, WHAT);
    }
    if rows == 0 {
        return Ok(Matrix::new(dtype, 0, hidden, &[]));
    }
    Ok(Matrix::strided(dtype, rows, hidden, row_stride(name, t)?, t.bytes()))
}

fn same_rows(name: &str, w: &Matrix, neurons: usize) -> Result<()> {
    if w.rows() == neurons {
        return Ok(());
    }
    Err(Fault::Shape(format!("{name}: expected {neurons} neurons as up has, found {}", w.rows())))
}

/// The projections of `both`: gate and up, or up alone.
fn parts<'a>(both: &'a Tensor, x: &Tensor, neurons: usize, hidden: usize) -> Result<Vec<Matrix<'a>>> {
    let (dtype, columns) = stored("concat_gate_up", both, x, hidden)?;
    let wrong = |found: &[i64]| {
        Fault::Shape(format!(
            "concat_gate_up: expected shape [2, {neurons}, {columns}] by x and down, or [2 * {neurons}, {columns}], without \
             gate [1, {neurons}, {columns}] or [{neurons}, {columns}], found {found:?}"
        ))
    };
    let (sizes, strides) = (both.sizes(), both.strides());
    // Elements from gate to up, and from one neuron to the next.
    let (count, part, row) = match (sizes, strides) {
        (&[count, rows, cols], &[part, row, column]) if (rows, cols) == (neurons as i64, columns as i64) => {
            if column != 1 && columns > 1 {
                return Err(Fault::Shape(format!(
                    "concat_gate_up: expected rows of neighbouring elements, found strides {strides:?}: call .contiguous()"
                )));
            }
            (count as usize, part as usize, if neurons > 1 { row as usize } else { columns })
        }
        (&[rows, cols], _) if cols == columns as i64 && neurons > 0 && (rows as usize).is_multiple_of(neurons) => {
            let row = row_stride("concat_gate_up", both)?;
            (rows as usize / neurons, neurons * row, row)
        }
        (&[0, cols], _) if cols == columns as i64 && neurons == 0 => (2, 0, columns),
        (found, _) => return Err(wrong(found)),
    };
    if !(1..=2).contains(&count) {
        return Err(wrong(sizes));
    }
    if row < columns {
        return Err(Fault::Shape(format!(
            "concat_gate_up: expected rows that do not overlap, found strides {strides:?}"
        )));
    }
    if neurons == 0 || columns == 0 {
        return Ok(vec![Matrix::new(dtype, neurons, hidden, &[]); count]);
    }
    let size = both.scalar_type().size();
    Ok((0..count)
        .map(|i| Matrix::strided(dtype, neurons, hidden, row * size, &both.bytes()[i * part * size..]))
        .collect())
}

/// An MLP, and what is known of its gate.
struct Mlp<'a> {
    gate: Option<Matrix<'a>>,
    up: Matrix<'a>,
    down: Matrix<'a>,
    gate_bias: Option<Vec<f32>>,
    up_bias: Option<Vec<f32>>,
    down_bias: Option<Vec<f32>>,
    activation: Activation,
    /// `[m, I]`.
    gate_values: Option<Cow<'a, [f32]>>,
}

impl Mlp<'_> {
    /// The result as a tensor like x.
    fn run(&self, compute: &Compute, x: &Tensor, active: Option<&Tensor>) -> Result<Tensor> {
        let [m, hidden] = rows_of("x", x, "[..., hidden]")?;
        let neurons = self.up.rows();
        let active = active.map(|active| Active::read(active, x, neurons)).transpose()?;
        let values = floats::read(compute, "x", x)?;
        floats::write(compute, x.sizes(), x, |out| {
            if m == 0 || hidden == 0 {
                return;
            }
            let few =
                |active: &Active| m <= GATHER_ROWS && count_ones(&active.union) as f64 <= DENSE_FROM * neurons as f64;
            match &active {
                Some(active) if neurons == 0 || few(active) => self.gather(compute, &values, m, active, out),
                None if neurons == 0 => {
                    let none = Active { masks: None, union: Vec::new() };
                    self.gather(compute, &values, m, &none, out);
                }
                active => self.all(compute, &values, m, active.as_ref(), out),
            }
        })
    }

    /// Reads the active neurons only.
    fn gather(&self, compute: &Compute, x: &[f32], m: usize, active: &Active, out: &mut [f32]) {
        let mut ids = Vec::new();
        compute.mask_to_ids(&active.union, &mut ids);
        let mlp = Neurons {
            gate: self.gate.map(Into::into),
            up: self.up.into(),
            down: self.down.into(),
            gate_bias: self.gate_bias.as_deref(),
            up_bias: self.up_bias.as_deref(),
            down_bias: self.down_bias.as_deref(),
            left_out: None,
            activation: self.activation,
            pooled: None,
        };
        let (masks, gate) = (active.masks.as_deref(), self.gate_values.as_deref());
        compute.sparse_mlp(&mlp, &SparseMlpInputs { x, rows: m, neurons: &ids, masks, gate }, out);
    }

    /// Computes all neurons, and zeroes those that are not active.
    fn all(&self, compute: &Compute, x: &[f32], m: usize, active: Option<&Active>, out: &mut [f32]) {
        let neurons = self.up.rows();
        let (mut gate, mut up) = (Vec::new(), vec![0.0; m * neurons]);
        let up_part = LinearPart { weights: self.up.into(), bias: self.up_bias.as_deref(), out: &mut up };
        match (self.gate, &self.gate_values) {
            (Some(weights), None) => {
                gate = vec![0.0; m * neurons];
                let gate_part = LinearPart { weights: weights.into(), bias: self.gate_bias.as_deref(), out: &mut gate };
                compute.linear(x, m, &mut [gate_part, up_part]);
            }
            _ => compute.linear(x, m, &mut [up_part]),
        }
        let mut h = match (self.gate, &self.gate_values) {
            (None, _) => {
                compute.activate(self.activation, &mut up);
                up
            }
            (Some(_), known) => {
                let mut h = vec![0.0; m * neurons];
                compute.gated(self.activation, known.as_deref().unwrap_or(&gate), &up, &mut h);
                h
            }
        };
        if let Some(Active { masks, union }) = active {
            let words = mask_words(neurons);
            match masks {
                Some(masks) => compute.zero_unset(&mut h, neurons, masks),
                None => compute.zero_unset(&mut h, neurons, &union.repeat(m)[..m * words]),
            }
        }
        compute.linear_in_out(
            &h,
            m,
            None,
            &mut [LinearPart { weights: self.down.into(), bias: self.down_bias.as_deref(), out }],
        );
    }
}
