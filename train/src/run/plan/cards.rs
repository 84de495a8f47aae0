//! Which GPUs a run fits, and which flags would make it fit a smaller one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use indicatif::HumanBytes;
use nn::device::Precision;
use nn::lora::{LoraConfig, Targets};
use nn::optimizer::OptimizerKind;
use serde_json::{Value, json};
use tch::Device;

use super::memory::{memory, sum};
use crate::config::{Config, Source};
use crate::model::BaseModel;

/// The memory of usual cards in GiB. They are sold as so many GB.
const CARDS: [u64; 7] = [6, 8, 12, 16, 24, 40, 80];
const GIB: u64 = 1 << 30;
/// The rank of adapters, where they are a way to fit.
const RANK: i64 = 8;

/// Bytes as a flag takes them: a number and a unit, `12GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("expected a number and a unit, such as 12GiB, found {text:?}");
        let split = text.find(|letter: char| letter.is_ascii_alphabetic()).ok_or_else(refused)?;
        let (number, unit) = text.split_at(split);
        let unit = match unit.to_ascii_lowercase().as_str() {
            "gib" => GIB as f64,
            "mib" => (1u64 << 20) as f64,
            "gb" => 1e9,
            "mb" => 1e6,
            _ => return Err(refused()),
        };
        let number: f64 = number.trim().parse().map_err(|_| refused())?;
        let bytes = number * unit;
        // A petabyte of memory is a typo.
        if (1e6..1e15).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(refused()) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        HumanBytes(self.0).fmt(formatter)
    }
}

/// The memory of the GPU that a run should fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Nobody asks for one.
    None,
    /// That of the GPU that is here, or the one asked for.
    Here(u64),
    /// The one asked for, of a GPU that is not here.
    Elsewhere(u64),
}

impl Limit {
    fn bytes(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Here(bytes) | Self::Elsewhere(bytes) => Some(bytes),
        }
    }
}

/// A card that a run does not fit, and the flags with which it would.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Smaller {
    gigabytes: u64,
    flags: Vec<&'static str>,
}

/// Which GPUs a run fits.
#[derive(Debug, Clone, PartialEq)]
pub struct Cards {
    /// Bytes at the peak on a GPU.
    peak: f64,
    /// Cards that it fits, in GB.
    fits: Vec<u64>,
    /// Cards that it would fit with other flags, the largest first.
    smaller: Vec<Smaller>,
    limit: Limit,
    /// For the limit, if the run does not fit: the flags with which it would; `None` if none would.
    flags: Option<Vec<&'static str>>,
}

/// A flag that needs less memory, and what it changes in a run.
type Remedy = (&'static str, fn(&mut Config) -> bool);

/// What makes a run smaller, in the order in which it is tried: first what changes the result by
/// rounding only. Each says whether it changes anything.
const REMEDIES: [Remedy; 7] = [
    ("--cache DIR", |config| {
        let is_other = matches!(config.source, Source::Pairs(_));
        config.source = Source::Cache(PathBuf::new());
        is_other
    }),
    ("--grad-checkpointing", |config| {
        !std::mem::replace(&mut config.settings.grad_checkpointing, true)
    }),
    ("--micro-batch 1", |config| std::mem::replace(&mut config.settings.micro_batch, 1) > 1),
    ("--ema-device cpu", |config| {
        let is_other = config.settings.ema.is_some() && config.settings.ema_device.is_none();
        config.settings.ema_device = Some("cpu".to_owned());
        is_other
    }),
    ("--dtype bf16", |config| {
        let is_other = config.precision == Precision::F32;
        if is_other {
            config.precision = Precision::Bf16;
        }
        is_other
    }),
    ("--optimizer adamw8bit", |config| {
        let is_other = config.optimizer.kind == OptimizerKind::Adamw;
        if is_other {
            config.optimizer.kind = OptimizerKind::Adamw8bit;
        }
        is_other
    }),
    ("--adapter lora", |config| {
        let is_other = config.lora.is_none();
        if is_other {
            let targets = Targets::Attention;
            config.lora = Some(LoraConfig { rank: RANK, alpha: RANK as f64, targets });
        }
        is_other
    }),
];

impl Cards {
    /// Plans `config` for GPUs.
    ///
    /// # Errors
    /// If a weights file cannot be read.
    pub(super) fn of(config: &Config, base: &BaseModel, limit: Limit) -> Result<Self> {
        let on_gpu = Config { device: Device::Cuda(0), ..config.clone() };
        let peak = sum(&memory(&on_gpu, base)?);
        let fits: Vec<u64> = CARDS.into_iter().filter(|card| peak <= (card * GIB) as f64).collect();
        let mut smaller = Vec::new();
        for gigabytes in CARDS.into_iter().rev().filter(|card| !fits.contains(card)) {
            match flags(&on_gpu, base, (gigabytes * GIB) as f64)? {
                Some(flags) => smaller.push(Smaller { gigabytes, flags }),
                None => break,
            }
        }
        let flags = match limit.bytes().filter(|bytes| peak > *bytes as f64) {
            Some(bytes) => flags(&on_gpu, base, bytes as f64)?,
            None => Some(Vec::new()),
        };
        Ok(Self { peak, fits, smaller, limit, flags })
    }

    /// As lines of a plan.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let peak = HumanBytes(self.peak as u64);
        let fits = match self.fits.first() {
            None => "more than any usual card has".to_owned(),
            Some(least) => format!("cards of {least} GB and more"),
        };
        let mut lines = vec![("on a GPU", format!("{peak} (estimate): {fits}"))];
        for Smaller { gigabytes, flags } in &self.smaller {
            lines.push(("", format!("{gigabytes} GB with {}", flags.join(" "))));
        }
        let Some(bytes) = self.limit.bytes() else { return lines };
        let card = HumanBytes(bytes);
        let elsewhere = match self.limit {
            Limit::Elsewhere(_) => ", which is not here",
            _ => "",
        };
        let answer = match &self.flags {
            Some(flags) if flags.is_empty() => "the run fits".to_owned(),
            Some(flags) => format!("the run does not fit; it would with {}", flags.join(" ")),
            None => {
                "the run does not fit, whatever the flags; hint: a smaller --resolution".to_owned()
            }
        };
        lines.push(("", format!("a GPU of {card}{elsewhere}: {answer}")));
        lines
    }

    /// As JSON.
    pub(super) fn json(&self) -> Value {
        let smaller = self.smaller.iter();
        let smaller: Vec<Value> =
            smaller.map(|card| json!({"gigabytes": card.gigabytes, "flags": card.flags})).collect();
        let limit = self.limit.bytes().map(|bytes| {
            json!({
                "bytes": bytes,
                "is_here": matches!(self.limit, Limit::Here(_)),
                "fits": self.flags.as_ref().is_some_and(Vec::is_empty),
                "flags": self.flags,
            })
        });
        json!({
            "peak_memory_bytes": self.peak as u64,
            "fits_gigabytes": self.fits,
            "with_flags": smaller,
            "memory": limit,
        })
    }
}

/// The fewest flags, in the order of [`REMEDIES`], with which a run needs no more than `bytes`; `None`
/// if all of them are not enough.
fn flags(config: &Config, base: &BaseModel, bytes: f64) -> Result<Option<Vec<&'static str>>> {
    let needs = |remedies: &[Remedy]| -> Result<f64> {
        let mut changed = config.clone();
        for (_, change) in remedies {
            change(&mut changed);
        }
        Ok(sum(&memory(&changed, base)?))
    };
    let mut chosen: Vec<Remedy> = Vec::new();
    for remedy in REMEDIES {
        if needs(&chosen)? <= bytes {
            break;
        }
        if remedy.1(&mut config.clone()) {
            chosen.push(remedy);
        }
    }
    if needs(&chosen)? > bytes {
        return Ok(None);
    }
    // The last ones may have made earlier ones unnecessary: those that change the result the most
    // are left out first.
    for index in (0..chosen.len()).rev() {
        let mut fewer = chosen.clone();
        fewer.remove(index);
        if needs(&fewer)? <= bytes {
            chosen = fewer;
        }
    }
    Ok(Some(chosen.into_iter().map(|(flag, _)| flag).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_unit() {
        for (text, bytes) in [
            ("12GiB", 12 * GIB),
            ("12 GiB", 12 * GIB),
            ("24gb", 24_000_000_000),
            ("512MiB", 512 << 20),
            ("1.5GiB", GIB + GIB / 2),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for text in ["", "12", "GiB", "-1GiB", "0GiB", "nanGiB", "1e9GiB", "12TB"] {
            assert!(text.parse::<Bytes>().unwrap_err().contains("such as 12GiB"), "{text}");
        }
    }

    fn cards(peak: f64, limit: Limit, flags: Option<Vec<&'static str>>) -> Cards {
        let fits = CARDS.into_iter().filter(|card| peak <= (card * GIB) as f64).collect();
        let smaller = vec![Smaller { gigabytes: 8, flags: vec!["--cache DIR", "--micro-batch 1"] }];
        Cards { peak, fits, smaller, limit, flags }
    }

    #[test]
    fn a_named_card_holds_what_is_printed() {
        let text = |cards: Cards| {
            let lines = cards.lines().into_iter().map(|(_, value)| value);
            lines.collect::<Vec<_>>().join("\n")
        };
        let exactly = text(cards(12.0 * GIB as f64, Limit::None, Some(Vec::new())));
        assert!(exactly.starts_with("12.00 GiB (estimate): cards of 12 GB and more"), "{exactly}");
        assert!(exactly.contains("8 GB with --cache DIR --micro-batch 1"), "{exactly}");
        let above = cards(12.0 * GIB as f64 + 1.0, Limit::None, Some(Vec::new()));
        assert_eq!(above.fits, [16, 24, 40, 80]);
        let elsewhere = Limit::Elsewhere(10 * GIB);
        let with = text(cards(1.2e10, elsewhere, Some(vec!["--adapter lora"])));
        assert!(
            with.contains(
                "10.00 GiB, which is not here: the run does not fit; it would with --adapter lora"
            ),
            "{with}"
        );
        let never = text(cards(1e12, elsewhere, None));
        assert!(never.contains("more than any usual card has"), "{never}");
        assert!(never.contains("whatever the flags"), "{never}");
        let fits = cards(1e9, Limit::Here(10 * GIB), Some(Vec::new()));
        assert_eq!(fits.json()["memory"]["fits"], true);
        assert!(text(fits).contains("a GPU of 10.00 GiB: the run fits"));
    }
}
