//! What the network costs: floating point operations, and activations kept for the gradients.
//! Counted from the configuration, layer by layer, as this crate runs them; nothing is loaded.

use super::UNetConfig;

/// Height and width of a convolution's kernel.
const KERNEL: f64 = 9.0;
/// How much wider the hidden layer of the feed-forward network (GEGLU) is.
const EXPANSION: f64 = 4.0;

/// The cost of one row of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct UNetCost {
    /// Floating point operations of a forward pass, two for a product and its sum. A backward pass
    /// needs twice as many.
    pub forward_operations: f64,
    /// Activations, as a count of numbers, that a forward pass keeps for its backward pass.
    pub kept: f64,
    /// The same with gradient checkpointing.
    pub kept_with_checkpointing: f64,
    /// Activations of the largest part that gradient checkpointing recomputes.
    pub largest_part: f64,
    /// Numbers of the largest tensor.
    pub largest_tensor: f64,
    /// Of `kept`, those that only the weights of the feed-forward networks need: their inputs, which
    /// frozen weights do not keep.
    pub kept_for_feed_forward: f64,
    /// Of `kept`, those that only the projections around the blocks of transformers need.
    pub kept_for_projections: f64,
    /// Weights of the part that has the most of those that gradient checkpointing recomputes.
    pub largest_part_weights: f64,
}

impl UNetCost {
    /// A part that gradient checkpointing may recompute: it keeps `kept` numbers, and the last
    /// `output` of them are its result.
    fn part(&mut self, operations: f64, weights: f64, kept: f64, output: f64) {
        self.forward_operations += operations;
        self.largest_part_weights = self.largest_part_weights.max(weights);
        self.kept += kept;
        self.kept_with_checkpointing += output;
        self.largest_part = self.largest_part.max(kept);
        self.largest_tensor = self.largest_tensor.max(output);
    }

    /// A layer whose result is always kept.
    fn layer(&mut self, operations: f64, output: f64) {
        self.forward_operations += operations;
        self.kept += output;
        self.kept_with_checkpointing += output;
        self.largest_tensor = self.largest_tensor.max(output);
    }

    fn resnet(&mut self, pixels: f64, input: f64, output: f64, embedding: f64) {
        let shortcut = if input == output { 0.0 } else { input * output };
        let (convolved, from_embedding) =
            (KERNEL * (input + output) * output + shortcut, embedding * output);
        let products = pixels * convolved + from_embedding;
        // Each activation, the sum with the time embedding, the result.
        let kept = pixels * (input + 3.0 * output);
        self.part(2.0 * products, convolved + from_embedding, kept, pixels * output);
    }

    fn transformer(&mut self, pixels: f64, channels: f64, layers: f64, text: (f64, f64)) {
        let (length, width) = text;
        let square = channels * channels;
        let to_itself = pixels * 4.0 * square + 2.0 * pixels * pixels * channels;
        let to_text = pixels * 2.0 * square
            + 2.0 * length * width * channels
            + 2.0 * pixels * length * channels;
        let feed_forward = pixels * 3.0 * EXPANSION * square;
        let products = pixels * 2.0 * square + layers * (to_itself + to_text + feed_forward);
        let weights =
            2.0 * square + layers * ((6.0 + 3.0 * EXPANSION) * square + 2.0 * width * channels);
        // In a block: three normalisations and sums; queries, keys and values, and again queries;
        // two results of attention and three tensors of the feed-forward network. Around them: the
        // normalisation and both projections.
        let block = pixels * channels * (12.0 + 3.0 * EXPANSION) + 2.0 * length * channels;
        let kept = layers * block + pixels * channels * 3.0;
        self.part(2.0 * products, weights, kept, pixels * channels);
        self.kept_for_feed_forward += layers * pixels * channels * (1.0 + EXPANSION);
        self.kept_for_projections += 2.0 * pixels * channels;
        self.largest_tensor = self.largest_tensor.max(EXPANSION * pixels * channels);
    }
}

impl UNetConfig {
    /// The cost of one row of a batch: latents of `height` and `width`, and a text of `length`
    /// tokens.
    pub fn cost(&self, height: i64, width: i64, length: i64) -> UNetCost {
        let number = |number: i64| number as f64;
        let text = (number(length), number(self.cross_attention_dim));
        let channels: Vec<f64> =
            self.block_out_channels.iter().map(|channels| number(*channels)).collect();
        let levels = channels.len();
        // Downsampling rounds height and width up.
        let sides = |level: usize| {
            let halve = |side: i64| (0..level).fold(side, |side, _| (side + 1) / 2);
            number(halve(height)) * number(halve(width))
        };
        let (first, deepest) = (channels[0], channels[levels - 1]);
        let embedding = first * 4.0;
        let mut cost = UNetCost::default();
        let in_out = number(self.in_channels + self.out_channels);
        cost.layer(2.0 * KERNEL * in_out * first * sides(0), sides(0) * first);
        for level in 0..levels {
            let (pixels, output) = (sides(level), channels[level]);
            for layer in 0..self.layers[level] {
                let input = match (layer, level) {
                    (0, 0) => first,
                    (0, _) => channels[level - 1],
                    _ => output,
                };
                cost.resnet(pixels, input, output, embedding);
                if self.down_attends[level] {
                    let layers = number(self.transformer_layers[level]);
                    cost.transformer(pixels, output, layers, text);
                }
            }
            if level + 1 < levels {
                let below = sides(level + 1);
                cost.layer(2.0 * KERNEL * output * output * below, below * output);
            }
        }
        let bottom = sides(levels - 1);
        cost.resnet(bottom, deepest, deepest, embedding);
        let layers = number(self.transformer_layers[levels - 1]);
        cost.transformer(bottom, deepest, layers, text);
        cost.resnet(bottom, deepest, deepest, embedding);
        for index in 0..levels {
            let level = levels - 1 - index;
            let (pixels, output) = (sides(level), channels[level]);
            let (below, above) =
                (channels[(level + 1).min(levels - 1)], channels[level.saturating_sub(1)]);
            let layers = self.layers[level] + 1;
            for layer in 0..layers {
                let features = if layer == 0 { below } else { output };
                let skip = if layer == layers - 1 { above } else { output };
                // The skip concatenated with the features is one more tensor.
                cost.layer(0.0, pixels * (features + skip));
                cost.resnet(pixels, features + skip, output, embedding);
                if self.up_attends[index] {
                    let layers = number(self.transformer_layers[level]);
                    cost.transformer(pixels, output, layers, text);
                }
            }
            if index + 1 < levels {
                let above = sides(level - 1);
                // Upsampled, then convolved.
                cost.layer(0.0, above * output);
                cost.layer(2.0 * KERNEL * output * output * above, above * output);
            }
        }
        cost.layer(0.0, 2.0 * sides(0) * first);
        cost
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// SD 1.5, whose forward pass at 64 x 64 is known to take 401.6 billion products.
    #[test]
    fn operations_are_those_of_the_published_network() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let config = json!({
            "_class_name": "UNet2DConditionModel",
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 768,
        });
        runkit::files::write_json_atomic(&file, &config).unwrap();
        let config = UNetConfig::read(&file).unwrap();
        let cost = config.cost(64, 64, 77);
        let billions = cost.forward_operations / 2e9;
        assert!((billions / 401.6 - 1.0).abs() < 0.01, "{billions}");
        assert!(cost.kept > 5.0 * cost.kept_with_checkpointing);
        // The first residual block of the way up, from 2560 to 1280 channels.
        let (input, output) = (2560.0, 1280.0);
        let weights = 9.0 * (input + output) * output + input * output + output * output;
        assert_eq!(cost.largest_part_weights, weights);
    }
}
