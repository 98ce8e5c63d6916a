//! The value of a state and an action. The action joins after the first layer, as in the paper, so that the
//! network consists of two: one for the state, and one for its outputs and the action.

use super::LAST;
use crate::net::{Activation, Adam, Batch, Init, Net, clip_all};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// The two networks and their optimisers.
#[derive(Debug, Clone)]
pub(super) struct Critic {
    encoder: Net,
    head: Net,
    adams: [Adam; 2],
}

/// What is saved of a critic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Saved {
    encoder: Vec<f32>,
    head: Vec<f32>,
    adams: [Adam; 2],
}

/// The buffers of a batch.
pub(super) struct CriticBatch {
    encoder: Batch,
    head: Batch,
    /// The encoder's outputs and the action, for each row.
    joint: Vec<f32>,
}

impl Critic {
    pub(super) fn new(
        inputs: usize,
        actions: usize,
        (hidden, activation): (usize, Activation),
        rng: &mut impl Rng,
    ) -> Self {
        let mut encoder = Net::new(inputs);
        encoder.add(None, hidden, activation, Init::He(1.0), rng);
        let mut head = Net::new(hidden + actions);
        let layer = head.add(None, hidden, activation, Init::He(1.0), rng);
        head.add(Some(layer), 1, Activation::Identity, LAST, rng);
        let adam = |net: &Net| Adam::new(net.params().len(), 1e-8);
        Self {
            adams: [adam(&encoder), adam(&head)],
            encoder,
            head,
        }
    }

    pub(super) fn set_weight_decay(&mut self, weight_decay: f32) {
        for adam in &mut self.adams {
            adam.set_weight_decay(weight_decay);
        }
    }

    pub(super) fn blend(&mut self, other: &Self, rate: f32) {
        self.encoder.blend(&other.encoder, rate);
        self.head.blend(&other.head, rate);
    }

    /// One step against the gradient of a batch.
    pub(super) fn step(&mut self, batch: &mut CriticBatch, rate: f32) {
        let [encoder, head] = &mut self.adams;
        encoder.step(self.encoder.params_mut(), batch.encoder.gradient(), rate);
        head.step(self.head.params_mut(), batch.head.gradient(), rate);
    }

    pub(super) fn save(&self) -> Saved {
        Saved {
            encoder: self.encoder.params().to_vec(),
            head: self.head.params().to_vec(),
            adams: self.adams.clone(),
        }
    }

    /// Takes over what was saved; `None` when it is of another shape.
    pub(super) fn restore(&mut self, saved: Saved) -> Option<()> {
        self.encoder.set_params(&saved.encoder)?;
        self.head.set_params(&saved.head)?;
        let nets = [&self.encoder, &self.head];
        let fits = |(adam, net): (&Adam, &Net)| adam.fits(net.params().len());
        let all = saved.adams.iter().zip(nets).all(fits);
        all.then(|| self.adams = saved.adams)
    }
}

#[cfg(test)]
impl Critic {
    /// The parameters of both networks, the encoder's first.
    pub(super) fn params(&self) -> Vec<f32> {
        [self.encoder.params(), self.head.params()].concat()
    }

    pub(super) fn set_params(&mut self, params: &[f32]) {
        let (encoder, head) = params.split_at(self.encoder.params().len());
        self.encoder.params_mut().copy_from_slice(encoder);
        self.head.params_mut().copy_from_slice(head);
    }
}

impl CriticBatch {
    pub(super) fn new(critic: &Critic, rows: usize) -> Self {
        Self {
            encoder: Batch::new(&critic.encoder, rows),
            head: Batch::new(&critic.head, rows),
            joint: vec![0.0; rows * critic.head.inputs()],
        }
    }

    /// Evaluates states and actions, row-major.
    pub(super) fn forward(&mut self, critic: &Critic, states: &[f32], actions: &[f32]) {
        let Some(layer) = critic.encoder.heads().next() else {
            return;
        };
        let (hidden, width) = (critic.encoder.outputs(layer), critic.head.inputs());
        self.encoder.forward(&critic.encoder, states);
        let encoded = self.encoder.output(&critic.encoder, layer);
        let rows = encoded.chunks_exact(hidden);
        let actions = actions.chunks_exact(width - hidden);
        for ((joint, encoded), action) in self.joint.chunks_exact_mut(width).zip(rows).zip(actions)
        {
            joint[..hidden].copy_from_slice(encoded);
            joint[hidden..].copy_from_slice(action);
        }
        self.head.forward(&critic.head, &self.joint);
    }

    /// The values of the last [`forward`](Self::forward).
    pub(super) fn values(&self, critic: &Critic) -> &[f32] {
        let head = critic.head.heads().next();
        head.map_or(&[], |head| self.head.output(&critic.head, head))
    }

    /// The values and the gradient of the loss by them, which is to be written.
    pub(super) fn values_and_gradient(&mut self, critic: &Critic) -> (&[f32], &mut [f32]) {
        match critic.head.heads().next() {
            Some(head) => self.head.output_and_gradient(&critic.head, head),
            None => (&[], &mut []),
        }
    }

    /// Back-propagates to the parameters of both networks.
    pub(super) fn backward(&mut self, critic: &Critic, states: &[f32]) {
        let Some(layer) = critic.encoder.heads().next() else {
            return;
        };
        self.head.backward(&critic.head, &self.joint);
        let by_joint = self.head.input_gradient(&critic.head);
        let (hidden, width) = (critic.encoder.outputs(layer), critic.head.inputs());
        let by_encoded = self.encoder.output_gradient(&critic.encoder, layer);
        for (to, from) in by_encoded
            .chunks_exact_mut(hidden)
            .zip(by_joint.chunks_exact(width))
        {
            to.copy_from_slice(&from[..hidden]);
        }
        self.encoder.backward(&critic.encoder, states);
    }

    /// Back-propagates to the actions only, whose gradient it writes, row-major.
    pub(super) fn gradient_by_actions(&mut self, critic: &Critic, by_actions: &mut [f32]) {
        let Some(layer) = critic.encoder.heads().next() else {
            return;
        };
        let by_joint = self.head.backward_to_input(&critic.head);
        let (hidden, width) = (critic.encoder.outputs(layer), critic.head.inputs());
        for (to, from) in by_actions
            .chunks_exact_mut(width - hidden)
            .zip(by_joint.chunks_exact(width))
        {
            to.copy_from_slice(&from[hidden..]);
        }
    }

    /// Clips the gradient of both networks together. Returns its norm before.
    pub(super) fn clip(&mut self, max_norm: f32) -> f32 {
        clip_all([self.encoder.gradient(), self.head.gradient()], max_norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use tars_worlds::Generator;

    fn critic(activation: Activation) -> Critic {
        let rng = &mut Generator::seed_from_u64(4);
        let mut critic = Critic::new(3, 2, (8, activation), rng);
        critic.head.params_mut()[80..].fill(0.4);
        critic
    }

    /// Half the sum of the squares of the values.
    fn loss(critic: &Critic, states: &[f32], actions: &[f32]) -> f64 {
        let mut batch = CriticBatch::new(critic, 2);
        batch.forward(critic, states, actions);
        let square = |v: &f32| 0.5 * f64::from(*v) * f64::from(*v);
        batch.values(critic).iter().map(square).sum()
    }

    fn agree(numeric: f64, exact: f32) -> bool {
        (numeric - f64::from(exact)).abs() < 1e-2 * f64::from(exact.abs()).max(0.05)
    }

    #[test]
    fn gradients_through_both_networks_agree_with_finite_differences() {
        for activation in [Activation::Relu, Activation::Tanh] {
            assert_gradients(&critic(activation));
        }
    }

    fn assert_gradients(critic: &Critic) {
        let h = 2e-3f32;
        let (states, actions) = ([0.3, -0.8, 0.5, 1.1, 0.2, -0.4], [0.9, -0.2, 0.1, 0.6]);
        let mut batch = CriticBatch::new(critic, 2);
        let mut by_actions = [0.0; 4];
        for to_actions in [false, true] {
            batch.forward(critic, &states, &actions);
            let (values, gradient) = batch.values_and_gradient(critic);
            gradient.copy_from_slice(values);
            match to_actions {
                false => batch.backward(critic, &states),
                true => batch.gradient_by_actions(critic, &mut by_actions),
            }
        }
        for at in 0..critic.encoder.params().len() {
            let (mut up, mut down) = (critic.clone(), critic.clone());
            up.encoder.params_mut()[at] += h;
            down.encoder.params_mut()[at] -= h;
            let difference = loss(&up, &states, &actions) - loss(&down, &states, &actions);
            assert!(agree(
                difference / f64::from(2.0 * h),
                batch.encoder.gradient()[at]
            ));
        }
        for at in 0..4 {
            let (mut up, mut down) = (actions, actions);
            up[at] += h;
            down[at] -= h;
            let difference = loss(critic, &states, &up) - loss(critic, &states, &down);
            assert!(
                agree(difference / f64::from(2.0 * h), by_actions[at]),
                "{at}"
            );
        }
    }
}
