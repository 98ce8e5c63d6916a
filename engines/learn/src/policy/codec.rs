//! Policies as bytes, in the safetensors format: a length, a JSON header, the numbers. Loading executes
//! nothing and allocates no more than in proportion to the bytes that are present.
//!
//! The header's metadata describe the network and carry a checksum, so that damaged bytes are refused. Bytes
//! without metadata are those of the first version: a chain of layers with ReLU between them, whose outputs
//! are the values that DQN learned.

use super::{Bounds, Policy, Readout};
use crate::{
    checksum::Checksum,
    net::{Activation, Dense, LayerId, Net},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most layers of a network.
const MAX_LAYERS: usize = 64;

/// Bytes that are not a policy; the message names the part that is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a policy: {0}")]
pub struct BadPolicy(&'static str);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Safetensors' metadata, whose values are strings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    algorithm: String,
    /// The [`Readout`].
    readout: String,
    /// For each layer its parent, or `-`, and its activation: `- relu, 0 relu, 1 identity`.
    layers: String,
    /// Of the rest of the header and the numbers.
    checksum: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Tensor>,
}

impl Policy {
    /// Encodes the policy.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (mut header, mut data) = (Header::default(), Vec::new());
        for (at, layer) in self.net().layers().iter().enumerate() {
            let (weights, bias) = layer.split(self.net().params());
            let shape = vec![layer.inputs, layer.outputs];
            header.put(&mut data, format!("layers.{at}.weight"), shape, weights);
            let shape = vec![layer.outputs];
            header.put(&mut data, format!("layers.{at}.bias"), shape, bias);
        }
        for (name, values) in self.readout().tensors() {
            header.put(&mut data, name.to_owned(), vec![values.len()], values);
        }
        let mut metadata = Metadata {
            algorithm: self.algorithm().to_owned(),
            readout: self.readout().name().to_owned(),
            layers: describe(self.net().layers()),
            checksum: String::new(),
        };
        metadata.checksum = header.checksum(&metadata, &data);
        header.metadata = Some(metadata);
        let json = serde_json::to_vec(&header).expect("a header is plain data");
        let length = (json.len() as u64).to_le_bytes();
        [&length[..], &json, &data].concat()
    }

    /// Decodes a policy.
    ///
    /// # Errors
    ///
    /// When the bytes are cut, changed or malformed, hold other tensors, or layers that do not fit together,
    /// or a number is not finite.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadPolicy> {
        let too_short = BadPolicy("the header is cut");
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or(too_short)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| too_short)?;
        let (json, data) = rest.split_at_checked(length).ok_or(too_short)?;
        let mut header: Header =
            serde_json::from_slice(json).map_err(|_| BadPolicy("the header is malformed"))?;
        match header.metadata.take() {
            None => header.read_first_version(data),
            Some(metadata) => header.read(&metadata, data),
        }
    }
}

impl Header {
    fn put(&mut self, data: &mut Vec<u8>, name: String, shape: Vec<usize>, values: &[f32]) {
        let from = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let tensor = Tensor {
            dtype: "F32".to_owned(),
            shape,
            data_offsets: (from, data.len()),
        };
        self.tensors.insert(name, tensor);
    }

    /// The checksum of tensors, the other metadata and the numbers.
    fn checksum(&self, metadata: &Metadata, data: &[u8]) -> String {
        let tensors = serde_json::to_vec(&self.tensors).expect("a header is plain data");
        let mut sum = Checksum::default();
        let Metadata {
            algorithm,
            readout,
            layers,
            ..
        } = metadata;
        for part in [algorithm.as_bytes(), readout.as_bytes(), layers.as_bytes()] {
            sum.add(part);
        }
        sum.add(&tensors);
        sum.add(data);
        format!("{:016x}", sum.finish())
    }

    fn read(&self, metadata: &Metadata, data: &[u8]) -> Result<Policy, BadPolicy> {
        if self.checksum(metadata, data) != metadata.checksum {
            return Err(BadPolicy("the checksum differs"));
        }
        let layers = parse(&metadata.layers).ok_or(BadPolicy("the layers are malformed"))?;
        let (net, mut taken) = self.net(&layers, data)?;
        let readout = self.readout(&metadata.readout, data, &mut taken)?;
        self.finish(&metadata.algorithm, net, readout, taken)
    }

    fn read_first_version(&self, data: &[u8]) -> Result<Policy, BadPolicy> {
        let count = self.tensors.len() / 2;
        let layer = |at: usize| match at + 1 == count {
            true => (at.checked_sub(1), Activation::Identity),
            false => (at.checked_sub(1), Activation::Relu),
        };
        let layers: Vec<_> = (0..count.min(MAX_LAYERS)).map(layer).collect();
        let (net, taken) = self.net(&layers, data)?;
        self.finish("dqn", net, Readout::Values, taken)
    }

    /// The network and the number of tensors that it took.
    fn net(
        &self,
        layers: &[(Option<usize>, Activation)],
        data: &[u8],
    ) -> Result<(Net, usize), BadPolicy> {
        let inputs = self.tensor("layers.0.weight")?.shape.first().copied();
        let mut net = Net::new(inputs.unwrap_or(0));
        let mut params = Vec::new();
        for (at, (parent, activation)) in layers.iter().enumerate() {
            let weight = self.tensor(&format!("layers.{at}.weight"))?;
            let bias = self.tensor(&format!("layers.{at}.bias"))?;
            let (weights, biases) = (weight.read(data)?, bias.read(data)?);
            let [rows, columns] = weight.shape[..] else {
                return Err(BadPolicy("a weight is not a matrix"));
            };
            let source = parent.map_or(net.inputs(), |p| net.layers()[p].outputs);
            if rows != source || bias.shape != [columns] || rows == 0 || columns == 0 {
                return Err(BadPolicy("the layers do not fit together"));
            }
            net.push(parent.map(LayerId), columns, *activation);
            params.extend(weights);
            params.extend(biases);
        }
        net.set_params(&params)
            .ok_or(BadPolicy("a number is not finite"))?;
        Ok((net, layers.len() * 2))
    }

    fn readout(&self, name: &str, data: &[u8], taken: &mut usize) -> Result<Readout, BadPolicy> {
        let mut vector = |name: &str| {
            *taken += 1;
            self.tensor(name)?.read(data)
        };
        let mut bounds = || -> Result<Bounds, BadPolicy> {
            let (low, high) = (vector("action.low")?, vector("action.high")?);
            let ordered = low.iter().zip(&high).all(|(l, h)| l < h);
            match low.len() == high.len() && ordered {
                true => Ok(Bounds { low, high }),
                false => Err(BadPolicy("the bounds are not in order")),
            }
        };
        Ok(match name {
            "values" => Readout::Values,
            "dueling" => Readout::Dueling,
            "logits" => Readout::Logits,
            "bounded" => Readout::Bounded(bounds()?),
            "gaussian" => Readout::Gaussian {
                bounds: bounds()?,
                log_std: vector("action.log_std")?,
            },
            _ => return Err(BadPolicy("the readout is unknown")),
        })
    }

    fn finish(
        &self,
        algorithm: &str,
        net: Net,
        readout: Readout,
        taken: usize,
    ) -> Result<Policy, BadPolicy> {
        if !readout.fits(&net) || taken != self.tensors.len() {
            return Err(BadPolicy("there are other tensors"));
        }
        Ok(Policy::new(algorithm, net, readout))
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, BadPolicy> {
        let missing = BadPolicy("a tensor is missing");
        self.tensors.get(name).ok_or(missing)
    }
}

impl Tensor {
    fn read(&self, data: &[u8]) -> Result<Vec<f32>, BadPolicy> {
        let (from, to) = self.data_offsets;
        let bytes = data.get(from..to).ok_or(BadPolicy("the numbers are cut"))?;
        let size = self.shape.iter().try_fold(4usize, |n, d| n.checked_mul(*d));
        if self.dtype != "F32" || size != Some(bytes.len()) {
            return Err(BadPolicy("a tensor's type or size"));
        }
        let (numbers, _) = bytes.as_chunks::<4>();
        let values: Vec<f32> = numbers.iter().map(|n| f32::from_le_bytes(*n)).collect();
        let finite = values.iter().all(|v| v.is_finite());
        finite
            .then_some(values)
            .ok_or(BadPolicy("a number is not finite"))
    }
}

impl Readout {
    fn name(&self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Dueling => "dueling",
            Self::Logits => "logits",
            Self::Bounded(_) => "bounded",
            Self::Gaussian { .. } => "gaussian",
        }
    }

    fn tensors(&self) -> Vec<(&'static str, &[f32])> {
        let mut tensors: Vec<(&str, &[f32])> = Vec::new();
        if let Some(bounds) = self.bounds() {
            tensors.push(("action.low", &bounds.low));
            tensors.push(("action.high", &bounds.high));
        }
        if let Self::Gaussian { log_std, .. } = self {
            tensors.push(("action.log_std", log_std));
        }
        tensors
    }
}

const ACTIVATIONS: [(Activation, &str); 3] = [
    (Activation::Identity, "identity"),
    (Activation::Relu, "relu"),
    (Activation::Tanh, "tanh"),
];

/// The form of [`Metadata::layers`].
fn describe(layers: &[Dense]) -> String {
    let one = |layer: &Dense| {
        let parent = layer.parent.map_or("-".to_owned(), |p| p.to_string());
        let mut known = ACTIVATIONS.iter();
        let name = known.find(|(activation, _)| *activation == layer.activation);
        format!("{parent} {}", name.map_or("", |(_, name)| name))
    };
    layers.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Reads what [`describe`] wrote; `None` when it is malformed, or a parent does not come before its child.
fn parse(layers: &str) -> Option<Vec<(Option<usize>, Activation)>> {
    let one = |(at, layer): (usize, &str)| {
        let (parent, name) = layer.split_once(' ')?;
        let parent = match parent {
            "-" => None,
            number => Some(number.parse().ok().filter(|p| *p < at)?),
        };
        let mut known = ACTIVATIONS.iter();
        let (activation, _) = known.find(|(_, known)| *known == name)?;
        Some((parent, *activation))
    };
    let layers: Vec<_> = layers
        .split(", ")
        .enumerate()
        .map(one)
        .collect::<Option<_>>()?;
    (layers.len() <= MAX_LAYERS).then_some(layers)
}
