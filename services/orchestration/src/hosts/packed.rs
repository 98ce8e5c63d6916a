//! Arrays as they travel: little-endian numbers behind a type and a shape. What a host sends is read only
//! after the type, the shape and the length have been checked, and every number is finite.

use super::Fault;

/// The type of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    U32,
    /// A byte, 0 or 1.
    Bool,
}

/// An array, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u32>,
    pub(crate) data: Vec<u8>,
}

impl Dtype {
    fn width(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bool => 1,
        }
    }
}

fn shape_of(shape: &[usize]) -> Vec<u32> {
    let size = |n: &usize| u32::try_from(*n).expect("the sizes of offers are bounded");
    shape.iter().map(size).collect()
}

impl Packed {
    pub(crate) fn numbers(shape: &[usize], values: impl Iterator<Item = f32>) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: shape_of(shape),
            data: values.flat_map(f32::to_le_bytes).collect(),
        }
    }

    pub(crate) fn positions(shape: &[usize], values: impl Iterator<Item = u32>) -> Self {
        Self {
            dtype: Dtype::U32,
            shape: shape_of(shape),
            data: values.flat_map(u32::to_le_bytes).collect(),
        }
    }

    /// Reads an array of finite numbers, which a fault calls `field`.
    pub(super) fn read_numbers(&self, field: &str, shape: &[usize]) -> Result<Vec<f32>, Fault> {
        self.check(field, Dtype::F32, shape)?;
        let values = self.data.as_chunks().0.iter();
        let values: Vec<f32> = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(Fault::answer(field, "has a number that is not finite")),
        }
    }

    /// Reads an array of booleans, which a fault calls `field`.
    pub(super) fn read_flags(&self, field: &str, shape: &[usize]) -> Result<Vec<bool>, Fault> {
        self.check(field, Dtype::Bool, shape)?;
        match self.data.iter().all(|byte| *byte <= 1) {
            true => Ok(self.data.iter().map(|byte| *byte == 1).collect()),
            false => Err(Fault::answer(
                field,
                "has a boolean that is neither 0 nor 1",
            )),
        }
    }

    fn check(&self, field: &str, dtype: Dtype, shape: &[usize]) -> Result<(), Fault> {
        if self.dtype != dtype {
            let problem = format!("has the type {:?}; {dtype:?} is required", self.dtype);
            return Err(Fault::answer(field, problem));
        }
        if self.shape != shape_of(shape) {
            let problem = format!("has the shape {:?}; {shape:?} is required", self.shape);
            return Err(Fault::answer(field, problem));
        }
        let length = shape.iter().product::<usize>() * dtype.width();
        if self.data.len() != length {
            let problem = format!("has {} bytes; {length} are required", self.data.len());
            return Err(Fault::answer(field, problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(values: &[f32]) -> Packed {
        Packed::numbers(&[values.len()], values.iter().copied())
    }

    #[test]
    fn numbers_are_little_endian_and_read_back() {
        let packed = numbers(&[1.0, -2.5]);
        assert_eq!(packed.data, [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
        assert_eq!(packed.read_numbers("x", &[2]), Ok(vec![1.0, -2.5]));
        let positions = Packed::positions(&[1], [258].into_iter());
        assert_eq!(positions.data, [2, 1, 0, 0]);
    }

    #[test]
    fn another_type_shape_or_length_is_refused_by_name() {
        let refusal = |packed: &Packed| {
            let fault = packed.read_numbers("rewards", &[2]).unwrap_err();
            fault.to_string()
        };
        let positions = Packed::positions(&[2], [1, 2].into_iter());
        assert!(refusal(&positions).contains("rewards has the type U32"));
        assert!(refusal(&numbers(&[1.0])).contains("rewards has the shape [1]"));
        let mut cut = numbers(&[1.0, 2.0]);
        cut.data.pop();
        assert!(refusal(&cut).contains("rewards has 7 bytes"));
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let fault = numbers(&[0.0, bad]).read_numbers("x", &[2]).unwrap_err();
            assert!(fault.to_string().contains("not finite"));
        }
    }

    #[test]
    fn booleans_are_zero_or_one() {
        let mut flags = Packed {
            dtype: Dtype::Bool,
            shape: vec![3],
            data: vec![0, 1, 0],
        };
        assert_eq!(flags.read_flags("x", &[3]), Ok(vec![false, true, false]));
        flags.data[1] = 2;
        assert!(flags.read_flags("x", &[3]).is_err());
        assert!(numbers(&[0.0]).read_flags("x", &[1]).is_err());
    }
}
