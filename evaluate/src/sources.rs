//! What a user names on the command line: models, folders of images, sizes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nn::lora::ScaledLora;
use serde::{Deserialize, Serialize};

/// A name must serve as a folder's name on every system.
const LONGEST_NAME: usize = 100;
/// Images wider or higher than this are a typo.
const LARGEST_SIDE: i64 = 16_384;

/// Gives types with `FromStr` and `Display` the conversions that `#[serde(try_from = "String", into
/// = "String")]` asks for: in settings and manifests they are the text that a user types.
macro_rules! as_text {
    ($($type:ty),+) => {$(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )+};
}
pub(crate) use as_text;

as_text!(ModelSource, ImagesSource, Size);

/// What may follow a pipeline's folder.
const UNET: &str = ",unet=";
const LORA: &str = ",lora=";

/// `NAME=DIR[,unet=DIR][,lora=FILE[:SCALE]]…`: a pipeline in the layout of diffusers under a name of
/// the user's. In place of a folder there may be `hf://owner/name[@revision]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelSource {
    /// What it is called, also in paths.
    pub name: String,
    /// The pipeline's folder, or its name on the hub.
    pub folder: PathBuf,
    /// A folder or a name on the hub. Its UNet replaces the pipeline's.
    pub unet: Option<PathBuf>,
    /// Adapters that are added to the weights, in this order.
    pub loras: Vec<ScaledLora>,
}

impl FromStr for ModelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "NAME=DIR, NAME=DIR,unet=DIR or NAME=DIR,lora=FILE:SCALE";
        let (name, rest) = name_and_folder(text, FORM)?;
        let next = |text: &str| [text.find(UNET), text.find(LORA)].into_iter().flatten().min();
        let (folder, mut options) = rest.split_at(next(rest).unwrap_or(rest.len()));
        let path = |part: &str| match part.is_empty() {
            true => Err(format!("expected {FORM}, found no folder in {text:?}")),
            // Shells leave `~` alone after an equals sign.
            false => Ok(runkit::path::expand_home(Path::new(part))),
        };
        let mut source =
            Self { name: name.to_owned(), folder: path(folder)?, unet: None, loras: Vec::new() };
        while !options.is_empty() {
            // Both marks have the same length, and one of them is at the beginning.
            let (mark, rest) = options.split_at(UNET.len());
            let (value, others) = rest.split_at(next(rest).unwrap_or(rest.len()));
            match mark {
                LORA => source.loras.push(value.parse()?),
                _ if source.unet.is_some() => {
                    return Err(format!("expected one unet=, found two in {text:?}"));
                }
                _ => source.unet = Some(path(value)?),
            }
            options = others;
        }
        Ok(source)
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.name, self.folder.display())?;
        self.unet.iter().try_for_each(|unet| write!(formatter, "{UNET}{}", unet.display()))?;
        self.loras.iter().try_for_each(|lora| write!(formatter, "{LORA}{lora}"))
    }
}

/// `NAME=DIR`: images made elsewhere, under a name of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImagesSource {
    /// What their model is called in tables.
    pub name: String,
    /// Where they are.
    pub folder: PathBuf,
}

impl FromStr for ImagesSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "NAME=DIR";
        let (name, folder) = name_and_folder(text, FORM)?;
        if folder.is_empty() || [UNET, LORA].iter().any(|mark| folder.contains(mark)) {
            return Err(format!("expected {FORM}, a folder of images, found {text:?}"));
        }
        let folder = runkit::path::expand_home(Path::new(folder));
        Ok(Self { name: name.to_owned(), folder })
    }
}

impl fmt::Display for ImagesSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.name, self.folder.display())
    }
}

/// The name before the first equals sign, and what follows it.
fn name_and_folder<'text>(
    text: &'text str,
    form: &str,
) -> Result<(&'text str, &'text str), String> {
    let found = text.split_once('=');
    let (name, rest) = found.ok_or_else(|| format!("expected {form}, found {text:?}"))?;
    if name.starts_with('.') {
        return Err(format!("a name does not begin with a dot, found {name:?}"));
    }
    if !is_name(name) {
        return Err(format!(
            "expected {form} with a name of letters, digits and . _ - +, found the name {name:?}"
        ));
    }
    Ok((name, rest))
}

/// Whether a model may have this name, which is also the name of its folder.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-+".contains(letter);
    let length = 1..=LONGEST_NAME;
    length.contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

/// Height and width of an image in pixels: `512`, or `512x768`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// Rows.
    pub height: i64,
    /// Pixels of a row.
    pub width: i64,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "expected a height, or height x width, of 1 to {LARGEST_SIDE} pixels, as 512 or \
                 512x768; found {text:?}"
            )
        };
        let side = |side: &str| {
            let digits = !side.is_empty() && side.bytes().all(|byte| byte.is_ascii_digit());
            let side = digits.then(|| side.parse().ok()).flatten();
            side.filter(|side| (1..=LARGEST_SIDE).contains(side)).ok_or_else(wrong)
        };
        let (height, width) = text.split_once('x').unwrap_or((text, text));
        Ok(Self { height: side(height)?, width: side(width)? })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x{}", self.height, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_and_written() {
        let plain: ModelSource = "sd-1.5=models/sd,15".parse().unwrap();
        assert_eq!((&*plain.name, plain.folder.as_path()), ("sd-1.5", Path::new("models/sd,15")));
        assert_eq!(plain.unet, None);
        let dpo: ModelSource = "dpo=base=1,unet=runs/x".parse().unwrap();
        assert_eq!(dpo.folder, Path::new("base=1"));
        assert_eq!(dpo.unet.as_deref(), Some(Path::new("runs/x")));
        let both: ModelSource = "x=sd,lora=a,b.safetensors:0.5,unet=u,lora=c:d".parse().unwrap();
        assert_eq!(
            (both.folder.as_path(), both.unet.as_deref()),
            (Path::new("sd"), Some(Path::new("u")))
        );
        let loras: Vec<(&Path, f64)> =
            both.loras.iter().map(|lora| (lora.path.as_path(), lora.scale)).collect();
        assert_eq!(loras, [(Path::new("a,b.safetensors"), 0.5), (Path::new("c:d"), 1.0)]);
        for source in [plain, dpo, both] {
            assert_eq!(source.to_string().parse::<ModelSource>().unwrap(), source);
        }
        for (wrong, says) in [
            ("sd=a,lora=", "no file"),
            ("sd=a,lora=:0.5", "no file"),
            ("sd=a,lora=b:nan", "finite"),
            ("sd=a,unet=b,unet=c", "found two"),
        ] {
            let error = wrong.parse::<ModelSource>().unwrap_err();
            assert!(error.contains(says), "{wrong:?}: {error}");
        }
        for wrong in
            ["", "sd", "=dir", "sd=", "sd=a,unet=", "a/b=c", "../x=y", ".a=b", "a b=c", "é=c"]
        {
            let error = wrong.parse::<ModelSource>().unwrap_err();
            assert!(error.contains("name") || error.contains("NAME"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn folders_of_images_have_no_unet() {
        let source: ImagesSource = "other=a,b".parse().unwrap();
        assert_eq!(source.to_string().parse::<ImagesSource>().unwrap(), source);
        assert!("a=b,unet=c".parse::<ImagesSource>().is_err());
        assert!("a=b,lora=c".parse::<ImagesSource>().is_err());
        assert!("a/b=c".parse::<ImagesSource>().unwrap_err().contains("expected NAME=DIR with"));
    }

    #[test]
    fn sizes_are_read_and_written() {
        let square: Size = "512".parse().unwrap();
        assert_eq!(square, Size { height: 512, width: 512 });
        let wide: Size = "64x128".parse().unwrap();
        assert_eq!((wide.height, wide.width), (64, 128));
        assert_eq!(wide.to_string(), "64x128");
        for wrong in ["", "x", "0", "64x", "x64", "64x0", "-64", "+64", "64.0", "64X64", "99999"] {
            let error = wrong.parse::<Size>().unwrap_err();
            assert!(error.contains("512x768"), "{wrong:?}: {error}");
        }
    }
}
