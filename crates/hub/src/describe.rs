//! Describes what a path holds instead of the model that was expected, in one sentence with a hint.
//! Reads only names and the beginnings of files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use runkit::files;
use runkit::path::meant_hub_name;

/// The expected kind of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A diffusion pipeline in the layout of diffusers.
    Pipeline,
    /// A UNet that replaces a pipeline's.
    Unet,
    /// A folder of some other model, such as CLIP.
    Model,
}

impl Wanted {
    fn shown(self) -> &'static str {
        match self {
            Self::Pipeline => "a folder in the layout of diffusers, with model_index.json",
            Self::Unet => "a folder with a UNet: config.json and weights",
            Self::Model => "the folder of a model",
        }
    }
}

/// How much of a file is read to recognise its kind: the header of a large safetensors file has
/// some hundred kilobytes.
const HEADER_BYTES: u64 = 8 << 20;
/// How many names of a folder are examined.
const EXAMINED_NAMES: usize = 2_000;
/// How many weights files of a folder are examined.
const EXAMINED_FILES: usize = 8;
/// Names of LoRA weights as diffusers and PEFT write them.
const LORA_FILES: [&str; 5] = [
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
];
const FOLDER_OF_HUB: [&str; 2] = ["models--", "datasets--"];

/// Describes `path`, which is not what was `wanted`: a sentence without its subject, the path, and
/// a hint.
pub fn describe(path: &Path, wanted: Wanted) -> String {
    let (what, hint) = if path.is_dir() {
        of_folder(path, wanted)
    } else if path.is_file() {
        of_file(path, wanted)
    } else {
        of_nothing(path)
    };
    format!("{what}; expected {}\nhint: {hint}", wanted.shown())
}

fn of_nothing(path: &Path) -> (String, String) {
    if let Some(name) = meant_hub_name(path, false) {
        let hint = format!("for the repository on the hub write {name}, which downloads it");
        return ("does not exist".to_owned(), hint);
    }
    if runkit::path::is_address(path) {
        let hint = "only hf://owner/name[@revision] addresses work; download the model and name its folder";
        return ("is an address".to_owned(), hint.to_owned());
    }
    let above = path.ancestors().skip(1).find(|folder| folder.is_dir());
    let hint = match above.filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => format!("{} exists; {}", folder.display(), holds(&names(folder))),
        None => "check the path; a repository on the hub is hf://owner/name".to_owned(),
    };
    ("does not exist".to_owned(), hint)
}

fn of_file(path: &Path, wanted: Wanted) -> (String, String) {
    let name = file_name(path);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new(".")).display().to_string();
    if name == "model_index.json" || name == "config.json" {
        return ("is a file of a model's folder".to_owned(), format!("name the folder, {parent}"));
    }
    let kind = Kind::of(path);
    if kind == Kind::Part && path.with_file_name("config.json").is_file() {
        let hint = match wanted {
            Wanted::Pipeline => "name the folder of the pipeline that it belongs to".to_owned(),
            _ => format!("name its folder, {parent}"),
        };
        return ("is one file of a model's folder".to_owned(), hint);
    }
    let shown = path.display().to_string();
    match kind {
        Kind::Single => (
            "is a single checkpoint file in the layout of Automatic1111 and ComfyUI".to_owned(),
            convert(&shown),
        ),
        Kind::Lora => ("holds LoRA weights, not a whole model".to_owned(), merge(&shown)),
        Kind::Part => (
            "holds the weights of one network, without its config.json".to_owned(),
            "put the config.json of its base model beside it, and name the folder".to_owned(),
        ),
        Kind::Other(kind) => {
            let hint = kind.hint().unwrap_or("name a folder, or hf://owner/name");
            (format!("is {kind}, not a folder"), hint.to_owned())
        }
    }
}
fn of_folder(path: &Path, wanted: Wanted) -> (String, String) {
    let names = names(path);
    let has = |name: &str| names.iter().any(|found| found == name);
    let shown = path.display().to_string();
    if names.is_empty() {
        return ("is an empty folder".to_owned(), "download the model into it first".to_owned());
    }
    if let Some(found) = of_cache(path, &names) {
        return found;
    }
    if LORA_FILES.iter().any(|file| has(file)) {
        return ("holds LoRA weights, not a whole model".to_owned(), merge(&shown));
    }
    if let Some(found) = of_training(path, &names, wanted) {
        return found;
    }
    if let Some(found) = of_one_network(path, wanted) {
        return found;
    }
    if let Some(inner) =
        names.iter().find(|name| path.join(name).join("model_index.json").is_file())
        && wanted != Wanted::Model
    {
        let inner = path.join(inner).display().to_string();
        return ("is a folder around a pipeline".to_owned(), format!("name {inner}"));
    }
    let files = names.iter().map(|name| path.join(name)).filter(|file| is_weights(file));
    let mut files = files.take(EXAMINED_FILES).map(|file| (Kind::of(&file), file));
    if let Some((kind, file)) = files.find(|(kind, _)| matches!(kind, Kind::Single | Kind::Lora)) {
        let file = file.display().to_string();
        return match kind {
            Kind::Lora => ("holds LoRA weights, not a whole model".to_owned(), merge(&file)),
            _ => (
                "holds single checkpoint files in the layout of Automatic1111 and ComfyUI"
                    .to_owned(),
                convert(&file),
            ),
        };
    }
    let hint = match wanted {
        Wanted::Pipeline => {
            "name the folder that DiffusionPipeline.save_pretrained wrote, or hf://owner/name"
        }
        Wanted::Unet => "name the folder that the UNet's save_pretrained wrote, or hf://owner/name",
        Wanted::Model => "name the folder that save_pretrained wrote, or hf://owner/name",
    };
    (format!("is another folder: it {}", holds(&names)), hint.to_owned())
}

/// Folders of the hub's cache.
fn of_cache(path: &Path, names: &[String]) -> Option<(String, String)> {
    let is_repository = |name: &str| FOLDER_OF_HUB.iter().any(|start| name.starts_with(start));
    let own_name = path.canonicalize().map(|path| file_name(&path)).unwrap_or_default();
    let own = is_repository(&own_name).then_some(own_name.as_str());
    if names.iter().any(|name| name == "snapshots")
        && (own.is_some() || names.iter().any(|name| name == "blobs" || name == "refs"))
    {
        let snapshots = path.join("snapshots");
        let at_head = std::fs::read_to_string(path.join("refs/main")).unwrap_or_default();
        let at_head = Some(at_head.trim().to_owned())
            .filter(|commit| snapshots.join(commit).is_dir() && !commit.is_empty());
        let newest = at_head.or_else(|| self::names(&snapshots).pop());
        let address = own.and_then(hub_name_of_folder);
        let hint = match (newest, address) {
            (Some(commit), Some(address)) => {
                format!("name {}, or {address}", snapshots.join(commit).display())
            }
            (Some(commit), None) => format!("name {}", snapshots.join(commit).display()),
            (None, Some(address)) => format!("it is empty; {address} downloads it"),
            (None, None) => "it is empty; hf://owner/name downloads a model".to_owned(),
        };
        return Some((
            "is a repository of the hub's cache, which holds snapshots of it".to_owned(),
            hint,
        ));
    }
    let found = names.iter().find(|name| is_repository(name))?;
    let hint = match hub_name_of_folder(found) {
        Some(address) => format!("name the model, for example {address}"),
        None => "name the model as hf://owner/name".to_owned(),
    };
    Some(("is the hub's cache, which holds many models".to_owned(), hint))
}

fn hub_name_of_folder(folder: &str) -> Option<String> {
    let (kind, rest) = match folder.strip_prefix("models--") {
        Some(rest) => ("", rest),
        None => ("datasets/", folder.strip_prefix("datasets--")?),
    };
    let (owner, name) = rest.split_once("--")?;
    Some(format!("hf://{kind}{owner}/{name}"))
}

/// The output of a training run: one of its checkpoints is to be chosen.
fn of_training(path: &Path, names: &[String], wanted: Wanted) -> Option<(String, String)> {
    if names.iter().any(|name| name == "pipeline")
        && path.join("pipeline/model_index.json").is_file()
    {
        let inner = path.join(match wanted {
            Wanted::Unet => "pipeline/unet",
            _ => "pipeline",
        });
        let what = "is the folder of a training run".to_owned();
        return Some((what, format!("name its result, {}", inner.display())));
    }
    let folders = [(path.to_owned(), "checkpoint-"), (path.join("checkpoints"), "step-")];
    let mut found: Vec<(u64, PathBuf)> = folders
        .iter()
        .flat_map(|(folder, start)| {
            self::names(folder).into_iter().filter_map(move |name| {
                let step = name.strip_prefix(start)?.parse().ok()?;
                Some((step, folder.join(&name)))
            })
        })
        .collect();
    found.sort();
    let (_, last) = found.last()?;
    let unet = last.join("unet");
    let unet = if unet.is_dir() { unet } else { last.clone() };
    let count = found.len();
    let what = format!(
        "is the output of a training run with {count} checkpoint{}",
        if count == 1 { "" } else { "s" }
    );
    Some((what, stand_in(&unet, wanted)))
}

/// A folder of one network: a UNet instead of a pipeline, or another part of one.
fn of_one_network(path: &Path, wanted: Wanted) -> Option<(String, String)> {
    let text = read_start(&path.join("config.json"), 1 << 20)?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let class = config.get("_class_name").and_then(serde_json::Value::as_str);
    let kind = config.get("model_type").and_then(serde_json::Value::as_str);
    match (class, kind) {
        (Some("UNet2DConditionModel"), _) if wanted == Wanted::Pipeline => {
            Some(("is a UNet alone".to_owned(), stand_in(path, wanted)))
        }
        (Some("UNet2DConditionModel"), _) => None,
        (Some(class), _) => Some((
            format!("is one part of a pipeline, {class}"),
            "name the folder around it".to_owned(),
        )),
        (None, Some(kind)) if wanted != Wanted::Model => Some((
            format!("is a transformers model of the kind {kind}"),
            "name the folder of a diffusion model".to_owned(),
        )),
        _ => None,
    }
}

/// How to use a UNet of another folder.
fn stand_in(unet: &Path, wanted: Wanted) -> String {
    let unet = unet.display();
    match wanted {
        Wanted::Unet => format!("name one, for example {unet}"),
        _ => format!(
            "to use its UNet with the base model, give evaluate NAME=BASE,unet={unet}; or save the \
             whole pipeline with DiffusionPipeline.save_pretrained"
        ),
    }
}

fn convert(file: &str) -> String {
    format!(
        "convert it with Python: StableDiffusionPipeline.from_single_file({file:?})\
         .save_pretrained(\"FOLDER\") (StableDiffusionXLPipeline for SDXL), then name FOLDER"
    )
}

fn merge(path: &str) -> String {
    format!(
        "evaluate takes --model NAME=BASE,lora={path}, and train merge --model BASE --lora {path} \
         --out FOLDER merges them into their base model"
    )
}

/// The kind of a file, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A whole model in one file.
    Single,
    Lora,
    /// The weights of one network.
    Part,
    Other(files::Kind),
}

impl Kind {
    fn of(path: &Path) -> Self {
        use files::Kind as Format;
        let format = Format::of(path).unwrap_or(Format::Binary);
        let can_hold = matches!(
            format,
            Format::Safetensors | Format::Zip | Format::Pickle | Format::Binary | Format::Empty
        );
        if !can_hold || !is_weights(path) {
            return Self::Other(format);
        }
        let start = read_start(path, HEADER_BYTES).unwrap_or_default();
        let has = |text: &[u8]| start.windows(text.len()).any(|window| window == text);
        let lora: [&[u8]; 4] = [b"lora_", b".lora.", b"lora_A", b"hada_w1"];
        if has(b"model.diffusion_model.") || has(b"first_stage_model.") {
            Self::Single
        } else if lora.iter().any(|mark| has(mark)) {
            Self::Lora
        } else if path.extension().is_some_and(|extension| extension == "ckpt") {
            Self::Single
        } else {
            Self::Part
        }
    }
}

fn is_weights(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["safetensors", "ckpt", "pt", "pth", "bin"].contains(&extension.as_str())
}

fn read_start(path: &Path, most: u64) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(most).read_to_end(&mut start).ok()?;
    Some(start)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.take(EXAMINED_NAMES).collect();
    names.sort();
    names
}

fn holds(names: &[String]) -> String {
    if names.is_empty() {
        return "holds nothing".to_owned();
    }
    format!("holds {}", runkit::text::choices(names))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
