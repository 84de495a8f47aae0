//! What the ranks of a run send each other in a step, by arithmetic.

use std::fmt;

use indicatif::HumanBytes;
use serde_json::{Value, json};

/// Links between GPUs or machines, with the bytes that a rank sends over them in a second during a
/// collective operation of NCCL: about what its own tests (nccl-tests, "busbw") report.
const LINKS: [(&str, &str, f64); 3] =
    [("nvlink", "NVLink", 300e9), ("pcie4", "PCIe 4.0", 20e9), ("network_100", "100 Gbit/s", 11e9)];

/// What each rank sends in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Communication {
    /// The bytes of the gradients, which are summed in f32.
    pub gradients: f64,
    /// The bytes that a rank sends: a ring all-reduce sends 2 (W - 1) / W of the gradients, and with
    /// sharded optimizer states each rank's part of the weights goes to all others.
    pub sent: f64,
}

impl Communication {
    /// Of a run of `ranks` ranks that trains `parameters` weights.
    pub fn new(parameters: f64, ranks: usize, is_sharded: bool) -> Self {
        let gradients = 4.0 * parameters;
        let ring = (ranks.max(1) - 1) as f64 / ranks.max(1) as f64;
        let passes = if is_sharded { 3.0 } else { 2.0 };
        Self { gradients, sent: passes * ring * gradients }
    }

    /// Seconds of a step over each link.
    fn seconds(self) -> impl Iterator<Item = (&'static str, &'static str, f64, f64)> {
        LINKS.into_iter().map(move |(key, name, rate)| (key, name, rate, self.sent / rate))
    }

    /// As JSON.
    pub fn json(self) -> Value {
        let by_link: serde_json::Map<String, Value> = self
            .seconds()
            .map(|(key, _, rate, seconds)| {
                let link = json!({"bytes_per_second": rate as u64, "seconds_per_step": seconds});
                (key.to_owned(), link)
            })
            .collect();
        json!({
            "gradient_bytes": self.gradients as u64,
            "sent_bytes_per_step": self.sent as u64,
            "links": by_link,
        })
    }
}

impl fmt::Display for Communication {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} per step and rank", HumanBytes(self.sent as u64))?;
        for (index, (_, name, rate, seconds)) in self.seconds().enumerate() {
            let between = if index == 0 { ": " } else { ", " };
            let seconds = match seconds {
                1.0.. => format!("{seconds:.1} s"),
                _ => format!("{:.1} ms", 1e3 * seconds),
            };
            write!(formatter, "{between}{seconds} over {name} ({:.0} GB/s)", rate / 1e9)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_stable_diffusion_take_twenty_milliseconds_on_eight_gpus() {
        let of = |ranks, is_sharded| Communication::new(859.5e6, ranks, is_sharded);
        let nvlink = |communication: Communication| communication.seconds().next().unwrap().3;
        assert!((nvlink(of(8, false)) - 0.02).abs() < 0.001);
        assert_eq!(of(8, true).sent, 1.5 * of(8, false).sent);
        assert_eq!(of(1, false).sent, 0.0);
        let text = of(8, false).to_string();
        assert!(
            text.starts_with("5.60 GiB per step and rank: 20.1 ms over NVLink (300 GB/s)"),
            "{text}"
        );
    }
}
