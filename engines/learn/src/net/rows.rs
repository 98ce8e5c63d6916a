//! A dense layer for a few rows, by loops that the compiler turns into vector instructions.

/// Inputs that are added to an output at once, so that it is loaded and stored less often.
const AT_ONCE: usize = 4;

/// Writes the inputs times the weights, which have a row for each input, plus the bias. All are row-major.
pub(super) fn affine((weights, bias): (&[f32], &[f32]), inputs: &[f32], outputs: &mut [f32]) {
    let (columns, width) = (bias.len(), weights.len() / bias.len());
    let rows = inputs.chunks_exact(width);
    for (input, output) in rows.zip(outputs.chunks_exact_mut(columns)) {
        output.copy_from_slice(bias);
        let several = input.chunks_exact(AT_ONCE);
        let done = width - several.remainder().len();
        let (blocks, rest) = weights.split_at(done * columns);
        for (x, w) in several.zip(blocks.chunks_exact(AT_ONCE * columns)) {
            add_four(x, w, output);
        }
        for (x, w) in input[done..].iter().zip(rest.chunks_exact(columns)) {
            output.iter_mut().zip(w).for_each(|(y, w)| *y += x * w);
        }
    }
}

/// Adds four inputs, each times its row of weights.
fn add_four(x: &[f32], weights: &[f32], output: &mut [f32]) {
    let columns = output.len();
    let (a, rest) = weights.split_at(columns);
    let (b, rest) = rest.split_at(columns);
    let (c, d) = rest.split_at(columns);
    let d = &d[..columns];
    let [p, q, r, s] = [x[0], x[1], x[2], x[3]];
    for (at, y) in output.iter_mut().enumerate() {
        *y += (p * a[at] + q * b[at]) + (r * c[at] + s * d[at]);
    }
}
