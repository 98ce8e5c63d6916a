//! Networks as bytes, in the safetensors format: a length, a JSON header, the numbers. Loading
//! executes nothing, and allocates no more than the bytes that are present.

use crate::nn::{Layer, Mlp};
use ndarray::{Array1, Array2};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Serialize, Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Bytes that are not a network; the message names the part that is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a network's weights: {0}")]
pub struct BadWeights(&'static str);

/// Encodes a network: the tensors `layers.N.weight` and `layers.N.bias`, as little-endian `F32`.
pub fn save(net: &Mlp) -> Vec<u8> {
    let (mut header, mut data) = (BTreeMap::new(), Vec::new());
    for (i, layer) in net.layers.iter().enumerate() {
        let (rows, columns) = layer.weights.dim();
        put(
            &mut header,
            &mut data,
            format!("layers.{i}.weight"),
            vec![rows, columns],
            layer.weights.iter(),
        );
        put(
            &mut header,
            &mut data,
            format!("layers.{i}.bias"),
            vec![columns],
            layer.bias.iter(),
        );
    }
    let header = serde_json::to_vec(&header).unwrap_or_default();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data);
    out
}

fn put<'a>(
    header: &mut BTreeMap<String, Tensor>,
    data: &mut Vec<u8>,
    name: String,
    shape: Vec<usize>,
    values: impl Iterator<Item = &'a f32>,
) {
    let from = data.len();
    data.extend(values.flat_map(|v| v.to_le_bytes()));
    header.insert(
        name,
        Tensor {
            dtype: "F32".to_owned(),
            shape,
            data_offsets: (from, data.len()),
        },
    );
}

/// Decodes a network.
///
/// # Errors
///
/// When the bytes are truncated or malformed, hold other tensors, or layers whose shapes do not
/// fit together, or a number is not finite.
pub fn load(bytes: &[u8]) -> Result<Mlp, BadWeights> {
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or(BadWeights("too short"))?;
    let length =
        usize::try_from(u64::from_le_bytes(*length)).map_err(|_| BadWeights("header length"))?;
    let (header, data) = rest
        .split_at_checked(length)
        .ok_or(BadWeights("header length"))?;
    let header: BTreeMap<String, Tensor> =
        serde_json::from_slice(header).map_err(|_| BadWeights("header"))?;
    let mut layers: Vec<Layer> = Vec::new();
    while let Some(weight) = header.get(&format!("layers.{}.weight", layers.len())) {
        let bias = header
            .get(&format!("layers.{}.bias", layers.len()))
            .ok_or(BadWeights("a bias is missing"))?;
        let [rows, columns] = weight.shape[..] else {
            return Err(BadWeights("a weight is not a matrix"));
        };
        let fits =
            layers.last().is_none_or(|l| l.weights.ncols() == rows) && bias.shape == [columns];
        if !fits {
            return Err(BadWeights("the layers do not fit"));
        }
        let weights = Array2::from_shape_vec((rows, columns), read(weight, data)?);
        layers.push(Layer {
            weights: weights.map_err(|_| BadWeights("shape"))?,
            bias: Array1::from_vec(read(bias, data)?),
        });
    }
    if layers.is_empty() || layers.len() * 2 != header.len() {
        return Err(BadWeights("unknown tensors"));
    }
    Ok(Mlp { layers })
}

fn read(tensor: &Tensor, data: &[u8]) -> Result<Vec<f32>, BadWeights> {
    let (from, to) = tensor.data_offsets;
    let bytes = data.get(from..to).ok_or(BadWeights("offsets"))?;
    let size = tensor
        .shape
        .iter()
        .try_fold(4usize, |n, d| n.checked_mul(*d));
    if tensor.dtype != "F32" || size != Some(bytes.len()) {
        return Err(BadWeights("a tensor's type or size"));
    }
    let values: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
        .collect();
    if values.iter().all(|v| v.is_finite()) {
        Ok(values)
    } else {
        Err(BadWeights("a number is not finite"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn weights_round_trip_and_damaged_bytes_are_refused() {
        let net = Mlp::new(&[4, 8, 2], &mut StdRng::seed_from_u64(1));
        let bytes = save(&net);
        assert_eq!(load(&bytes).unwrap(), net);
        for end in 0..bytes.len() {
            assert!(load(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut huge = bytes.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(load(&huge).is_err());
        let mut nan = bytes;
        let at = nan.len() - 4;
        nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(load(&nan).is_err());
    }
}
