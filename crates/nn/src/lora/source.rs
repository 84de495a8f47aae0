//! A file of adapters as a user names it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `FILE[:SCALE]`: a file or folder of adapters, and the factor of what they add.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScaledLora {
    /// The file or folder.
    pub path: PathBuf,
    /// The factor, beside the scale in the file: a finite number.
    pub scale: f64,
}

// A scale is never NaN.
impl Eq for ScaledLora {}

impl ScaledLora {
    /// The path and the number after the last colon, if it is one.
    fn split(text: &str) -> (&str, Option<f64>) {
        let parts = text.rsplit_once(':');
        let number = parts.and_then(|(file, scale)| Some((file, scale.parse::<f64>().ok()?)));
        number.map_or((text, None), |(file, scale)| (file, Some(scale)))
    }
}

impl FromStr for ScaledLora {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (file, scale) = Self::split(text);
        if file.is_empty() {
            return Err(format!(
                "expected FILE or FILE:SCALE of adapters, found no file in {text:?}"
            ));
        }
        if file.starts_with("hf://") {
            return Err(format!(
                "adapters are read from a file or a folder on this machine, found {file:?}; hint: \
                 download it first"
            ));
        }
        let scale = scale.unwrap_or(1.0);
        if !scale.is_finite() {
            return Err(format!("expected FILE:SCALE with a finite number, found {text:?}"));
        }
        // Shells leave `~` alone after an equals sign.
        Ok(Self { path: runkit::path::expand_home(Path::new(file)), scale })
    }
}

impl fmt::Display for ScaledLora {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.path.display().to_string();
        // The name of a file may end like a scale.
        match self.scale == 1.0 && Self::split(&file).1.is_none() {
            true => formatter.write_str(&file),
            false => write!(formatter, "{file}:{}", self.scale),
        }
    }
}

impl TryFrom<String> for ScaledLora {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ScaledLora> for String {
    fn from(lora: ScaledLora) -> Self {
        lora.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_scales_are_read_and_written() {
        for (text, path, scale) in [
            ("a/b.safetensors", "a/b.safetensors", 1.0),
            ("a,b.safetensors:0.5", "a,b.safetensors", 0.5),
            ("a:-1", "a", -1.0),
            ("c:d", "c:d", 1.0),
        ] {
            let found: ScaledLora = text.parse().unwrap();
            assert_eq!((found.path.as_path(), found.scale), (Path::new(path), scale), "{text}");
            assert_eq!(found.to_string().parse::<ScaledLora>().unwrap(), found);
        }
        let odd = ScaledLora { path: "run:2".into(), scale: 1.0 };
        assert_eq!(odd.to_string().parse::<ScaledLora>().unwrap(), odd);
        for (wrong, says) in
            [("", "no file"), (":0.5", "no file"), ("b:nan", "finite"), ("hf://a/b", "download")]
        {
            assert!(wrong.parse::<ScaledLora>().unwrap_err().contains(says), "{wrong}");
        }
    }
}
