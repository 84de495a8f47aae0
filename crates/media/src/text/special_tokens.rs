//! The files beside a CLIP vocabulary that name further tokens: those that start, end and pad a
//! text, and those that are found in it as they are written.
//!
//! Source: huggingface/transformers (5.23.0) `tokenization_utils_base.py` (`_from_pretrained`,
//! `PreTrainedTokenizerBase.__init__`), `tokenization_utils_tokenizers.py`
//! (`TokenizersBackend.__init__`). `docs/configuration.md` lists the keys.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TokenizerError;
use super::vocabulary::{TRANSFORMERS_SPECIALS, malformed, read_limited};

/// `SPECIAL_TOKENS_ATTRIBUTES`, in the order in which tokens are added.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// What a tokenizer's class has if a folder says nothing.
pub(super) struct Family {
    /// Its names of all versions.
    pub(super) classes: &'static [&'static str],
    /// Roles and their tokens.
    pub(super) defaults: &'static [(&'static str, &'static str)],
    /// The side on which it pads.
    pub(super) padding_side: &'static str,
}

/// CLIP's tokenizer. The defaults are those of `CLIPTokenizer.__init__`.
const CLIP: Family = Family {
    classes: &["CLIPTokenizer", "CLIPTokenizerFast"],
    defaults: &[
        ("bos_token", TRANSFORMERS_SPECIALS[0]),
        ("eos_token", TRANSFORMERS_SPECIALS[1]),
        ("unk_token", TRANSFORMERS_SPECIALS[1]),
        ("pad_token", TRANSFORMERS_SPECIALS[1]),
    ],
    padding_side: "right",
};
/// The classes that use a `tokenizer.json` as it is.
pub(super) const FILE_CLASSES: [&str; 2] = ["PreTrainedTokenizerFast", "TokenizersBackend"];

/// The context of every CLIP text encoder, for folders that name none.
const CLIP_CONTEXT: usize = 77;
/// A folder without a limit says so with a number beyond all contexts.
const LONGEST_CONTEXT: f64 = 65_536.0;

/// What the files beside a vocabulary say.
pub(super) struct SpecialTokens {
    /// Start, end, unknown and padding token.
    pub(super) start: String,
    pub(super) end: String,
    pub(super) unknown: String,
    pub(super) padding: String,
    /// All tokens that are added to the vocabulary, in the order in which they get their ids.
    pub(super) added: Vec<AddedToken>,
    /// `tokenizer_config.json` and its `model_max_length`.
    context_length: Option<(PathBuf, f64)>,
    /// `tokenizer_config.json` and its class, if that uses `tokenizer.json` as it is.
    pub(super) used_as_it_is: Option<(PathBuf, String)>,
    /// `tokenizer_config.json`; empty without that file.
    pub(super) config: File,
}

/// A token as a file gives it: a name, or a name with rules for finding it.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    content: String,
    /// Whether the file gives only a name.
    plain: bool,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    /// Whether to look for it in the normalised text; the opposite of `special` if not stated.
    normalized: Option<bool>,
    special: bool,
}

impl Token {
    fn plain(content: &str) -> Self {
        let content = content.to_owned();
        Self {
            content,
            plain: true,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special: true,
        }
    }

    fn read(path: &Path, key: &str, value: &Value) -> Result<Self, TokenizerError> {
        let wrong = || wrong(path, key, "a token", value);
        match value {
            Value::String(content) => Ok(Self::plain(content)),
            Value::Object(details) => {
                let flag = |name: &str| match details.get(name) {
                    None | Some(Value::Null) => Ok(None),
                    Some(Value::Bool(flag)) => Ok(Some(*flag)),
                    Some(_) => Err(wrong()),
                };
                let content = details.get("content").and_then(Value::as_str).ok_or_else(wrong)?;
                Ok(Self {
                    content: content.to_owned(),
                    plain: false,
                    single_word: flag("single_word")?.unwrap_or_default(),
                    lstrip: flag("lstrip")?.unwrap_or_default(),
                    rstrip: flag("rstrip")?.unwrap_or_default(),
                    normalized: flag("normalized")?,
                    special: flag("special")?.unwrap_or_default(),
                })
            }
            _ => Err(wrong()),
        }
    }

    /// The token for the `tokenizers` library; a token that has a role is special.
    fn added(self, has_role: bool) -> AddedToken {
        let special = self.special || has_role;
        AddedToken {
            content: self.content,
            single_word: self.single_word,
            lstrip: self.lstrip,
            rstrip: self.rstrip,
            normalized: self.normalized.unwrap_or(!special),
            special,
        }
    }
}

/// A JSON object, with the file it comes from.
#[derive(Default)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) keys: Map<String, Value>,
}

impl File {
    /// The file of a folder, or an empty object if it has none.
    fn read(folder: &Path, name: &str, expected: &str) -> Result<Self, TokenizerError> {
        let path = folder.join(name);
        let keys = if path.is_file() {
            serde_json::from_slice(&read_limited(&path)?)
                .map_err(|error| malformed(&path, expected, error))?
        } else {
            Map::new()
        };
        Ok(Self { path, keys })
    }
}

pub(super) fn wrong(path: &Path, key: &str, expected: &str, found: &Value) -> TokenizerError {
    let found: String = found.to_string().chars().take(60).collect();
    malformed(path, format!("{expected} as `{key}`"), found)
}

impl SpecialTokens {
    /// What `CLIPTokenizer` is without any file.
    pub(super) fn defaults() -> Self {
        let mut roles = Roles::default();
        roles.complete(&CLIP);
        roles.finish(BTreeMap::new(), &[])
    }

    /// Reads the files of a folder with CLIP's tokenizer.
    pub(super) fn read(folder: &Path) -> Result<Self, TokenizerError> {
        Self::of_family(folder, &CLIP)
    }

    /// Reads the files of a folder.
    pub(super) fn of_family(folder: &Path, family: &Family) -> Result<Self, TokenizerError> {
        let specials = "the names of special tokens";
        let config = File::read(folder, "tokenizer_config.json", specials)?;
        check(&config, family)?;
        check_sides(&folder.join("tokenizer.json"), &config)?;
        let mut roles = Roles::default();
        roles.read(&config)?;
        let mut table = Table::default();
        if let Some(value) = config.keys.get("added_tokens_decoder") {
            // With this table, transformers does not read the older files.
            table.read_decoder(&config.path, value)?;
        } else {
            roles.read_map(&File::read(folder, "special_tokens_map.json", specials)?)?;
            let file = File::read(folder, "added_tokens.json", "an object of tokens and ids")?;
            table.read_added(&file, &roles)?;
            table.read_tokenizer(&folder.join("tokenizer.json"))?;
        }
        roles.describe(&table);
        roles.complete(family);
        let class = config.keys.get("tokenizer_class").and_then(Value::as_str);
        let used_as_it_is = class
            .filter(|class| FILE_CLASSES.contains(class))
            .map(|class| (config.path.clone(), class.to_owned()));
        let length = ["model_max_length", "max_len"]
            .into_iter()
            .find_map(|key| config.keys.get(key).filter(|value| !value.is_null()));
        let context_length = length
            .map(|value| {
                let what = "a number";
                value.as_f64().ok_or_else(|| wrong(&config.path, "model_max_length", what, value))
            })
            .transpose()?
            .map(|length| (config.path.clone(), length));
        let extra = std::mem::take(&mut roles.extra);
        let finished = roles.finish(table.by_id, &extra);
        Ok(Self { context_length, used_as_it_is, config, ..finished })
    }

    /// The longest text of a tokenizer of a diffusion pipeline, in tokens.
    pub(super) fn context_length(&self) -> Result<usize, TokenizerError> {
        match &self.context_length {
            Some((path, length)) if *length < 2.0 || length.fract() != 0.0 => {
                Err(malformed(path, "a model_max_length of 2 or more", length))
            }
            Some((_, length)) if *length <= LONGEST_CONTEXT => Ok(*length as usize),
            _ => Ok(CLIP_CONTEXT),
        }
    }
}

/// Rejects keys that would give other tokens and are not built here.
fn check(config: &File, family: &Family) -> Result<(), TokenizerError> {
    let known = |class: &str| family.classes.contains(&class) || FILE_CLASSES.contains(&class);
    let class = family.classes.first().copied().unwrap_or_default();
    if family.padding_side != "right" && !config.keys.contains_key("padding_side") {
        let found = format!("none, which means {:?} for {class}", family.padding_side);
        return Err(malformed(&config.path, "\"right\" as `padding_side`", found));
    }
    for (key, value) in &config.keys {
        let (fits, expected) = match key.as_str() {
            "tokenizer_class" => (value.is_null() || value.as_str().is_some_and(known), class),
            "padding_side" | "truncation_side" => (value == "right", "\"right\""),
            "split_special_tokens" => (value == false, "false"),
            "auto_map" => (value.is_null(), "no code of the model's own"),
            "fast_tokenizer_files" => {
                (*value == serde_json::json!(["tokenizer.json"]), "[\"tokenizer.json\"]")
            }
            "vocab" | "merges" | "tokenizer_object" | "model_specific_special_tokens" => {
                (false, "no such key: it belongs into a file of its own, but was found")
            }
            key if family
                .defaults
                .iter()
                .any(|(role, _)| *role == key && *role != "mask_token") =>
            {
                (!value.is_null(), "a token")
            }
            _ => (true, ""),
        };
        if !fits {
            return Err(wrong(&config.path, key, expected, value));
        }
    }
    Ok(())
}

/// Rejects a `tokenizer.json` that truncates or pads on the left, unless `tokenizer_config.json`
/// says otherwise.
fn check_sides(path: &Path, config: &File) -> Result<(), TokenizerError> {
    if !path.is_file() {
        return Ok(());
    }
    #[derive(Default, serde::Deserialize)]
    struct Sides {
        padding: Option<Side>,
        truncation: Option<Side>,
    }
    #[derive(serde::Deserialize)]
    struct Side {
        direction: Option<String>,
    }
    // Other faults of the file are reported when its vocabulary is read.
    let sides: Sides = serde_json::from_slice(&read_limited(path)?).unwrap_or_default();
    for (part, side) in [("padding", sides.padding), ("truncation", sides.truncation)] {
        let direction = side.and_then(|side| side.direction);
        let named = config.keys.contains_key(&format!("{part}_side"));
        if let Some(direction) = direction.filter(|direction| !named && direction != "Right") {
            let key = format!("{part}.direction");
            return Err(wrong(path, &key, "\"Right\"", &direction.into()));
        }
    }
    Ok(())
}

/// Tokens by their roles.
#[derive(Default)]
struct Roles {
    named: HashMap<&'static str, Token>,
    /// Tokens of a model's own roles, in the order of the file.
    others: Vec<(String, Token)>,
    /// Special tokens without a role.
    extra: Vec<Token>,
}

impl Roles {
    fn read(&mut self, config: &File) -> Result<(), TokenizerError> {
        for (key, value) in &config.keys {
            self.read_role(&config.path, key, value)?;
        }
        let extra = ["extra_special_tokens", "additional_special_tokens"];
        let stated = extra.into_iter().find_map(|key| {
            let value = config.keys.get(key)?;
            let nothing = value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            (!nothing).then_some((key, value))
        });
        if let Some((key, value)) = stated {
            self.read_extra(&config.path, key, value)?;
        }
        Ok(())
    }

    fn read_role(&mut self, path: &Path, key: &str, value: &Value) -> Result<(), TokenizerError> {
        if let Some(name) = NAMED.into_iter().find(|name| *name == key) {
            if !value.is_null() {
                self.named.insert(name, Token::read(path, key, value)?);
            }
        } else if key.ends_with("_token") && value.is_string() {
            let token = Token::read(path, key, value)?;
            match self.others.iter_mut().find(|(other, _)| other == key) {
                Some((_, other)) => *other = token,
                None => self.others.push((key.to_owned(), token)),
            }
        }
        Ok(())
    }

    fn read_extra(&mut self, path: &Path, key: &str, value: &Value) -> Result<(), TokenizerError> {
        match value {
            Value::Array(tokens) => {
                for token in tokens {
                    let token = Token::read(path, key, token)?;
                    if !self.extra.contains(&token) {
                        self.extra.push(token);
                    }
                }
                Ok(())
            }
            Value::Object(tokens) => {
                for (role, token) in tokens {
                    self.others.push((role.clone(), Token::read(path, role, token)?));
                }
                Ok(())
            }
            _ => Err(wrong(path, key, "a list of tokens", value)),
        }
    }

    /// `special_tokens_map.json`, whose tokens win over those of `tokenizer_config.json`.
    fn read_map(&mut self, map: &File) -> Result<(), TokenizerError> {
        for (key, value) in &map.keys {
            match key.as_str() {
                "extra_special_tokens" => self.read_extra(&map.path, key, value)?,
                // only read if tokenizer_config.json has none
                "additional_special_tokens" if self.extra.is_empty() => {
                    self.read_extra(&map.path, key, value)?;
                }
                "additional_special_tokens" => {}
                "bos_token" | "eos_token" | "unk_token" | "pad_token" if value.is_null() => {
                    return Err(wrong(&map.path, key, "a token", value));
                }
                _ => {
                    let mut value = value.clone();
                    if let Value::Object(details) = &mut value {
                        details.insert("special".to_owned(), true.into());
                    }
                    self.read_role(&map.path, key, &value)?;
                }
            }
        }
        Ok(())
    }

    /// Replaces tokens by the table's descriptions of them.
    fn describe(&mut self, table: &Table) {
        for token in self.named.values_mut() {
            if let Some(described) = table.by_name.get(&token.content) {
                *token = described.clone();
            }
        }
    }

    /// The tokens that the class has if no file names others.
    fn complete(&mut self, family: &Family) {
        for (role, token) in family.defaults {
            self.named.entry(role).or_insert_with(|| Token::plain(token));
        }
    }

    fn has(&self, content: &str) -> bool {
        self.named.values().any(|token| token.content == content)
            || self.others.iter().any(|(_, token)| token.content == content)
    }

    fn finish(mut self, by_id: BTreeMap<i64, Token>, extra: &[Token]) -> SpecialTokens {
        let table: Vec<Token> = by_id.into_values().collect();
        let mut tokens = table.clone();
        let others = self.others.iter().map(|(_, token)| token);
        let named = NAMED.iter().filter_map(|role| self.named.get(role));
        for token in named.chain(others).chain(extra) {
            let known = table.iter().any(|other| other.content == token.content);
            if !known && !tokens.contains(token) {
                tokens.push(token.clone());
            }
        }
        let added = tokens
            .into_iter()
            .map(|token| {
                let has_role = token.plain || self.has(&token.content);
                token.added(has_role)
            })
            .collect();
        let mut name =
            |role: &str| self.named.remove(role).map(|token| token.content).unwrap_or_default();
        SpecialTokens {
            start: name("bos_token"),
            end: name("eos_token"),
            unknown: name("unk_token"),
            padding: name("pad_token"),
            added,
            context_length: None,
            used_as_it_is: None,
            config: File::default(),
        }
    }
}

/// Tokens that a file adds to the vocabulary. Their ids only give the order: each token gets the id
/// that its name has in the vocabulary, or the next free one.
#[derive(Default)]
struct Table {
    by_id: BTreeMap<i64, Token>,
    by_name: HashMap<String, Token>,
}

impl Table {
    fn insert(&mut self, id: i64, token: Token) {
        self.by_name.insert(token.content.clone(), token.clone());
        self.by_id.insert(id, token);
    }

    /// `added_tokens_decoder` of `tokenizer_config.json`: ids and tokens.
    fn read_decoder(&mut self, path: &Path, value: &Value) -> Result<(), TokenizerError> {
        let key = "added_tokens_decoder";
        let wrong = |found: &Value| wrong(path, key, "an object of ids and tokens", found);
        for (id, token) in value.as_object().ok_or_else(|| wrong(value))? {
            let number = id.parse().map_err(|_| wrong(&id.as_str().into()))?;
            if !token.is_object() {
                return Err(wrong(token));
            }
            self.insert(number, Token::read(path, key, token)?);
        }
        Ok(())
    }

    /// `added_tokens.json`: tokens and ids.
    fn read_added(&mut self, file: &File, roles: &Roles) -> Result<(), TokenizerError> {
        for (content, id) in &file.keys {
            let id = id.as_i64().ok_or_else(|| wrong(&file.path, content, "an id", id))?;
            let named = roles.named.values().any(|token| token.content == *content);
            let special = named || roles.extra.iter().any(|token| token.content == *content);
            let token = Token {
                plain: false,
                normalized: Some(!special),
                special,
                ..Token::plain(content)
            };
            self.insert(id, token);
        }
        Ok(())
    }

    /// `added_tokens` of `tokenizer.json`. Other faults of the file are reported when its
    /// vocabulary is read.
    fn read_tokenizer(&mut self, path: &Path) -> Result<(), TokenizerError> {
        if !path.is_file() {
            return Ok(());
        }
        #[derive(serde::Deserialize)]
        struct Tokens {
            #[serde(default)]
            added_tokens: Vec<Value>,
        }
        let Ok(Tokens { added_tokens }) = serde_json::from_slice(&read_limited(path)?) else {
            return Ok(());
        };
        for token in &added_tokens {
            let key = "added_tokens";
            let id = token.get("id").and_then(Value::as_i64);
            let id = id.ok_or_else(|| wrong(path, key, "a token with its id", token))?;
            self.insert(id, Token::read(path, key, token)?);
        }
        Ok(())
    }
}
