//! The members of a sample in a tar: what each is, by its name, and labels as text.

use crate::columns::is_human_label;
use crate::pairs::{LABELS, NoVote};

/// The endings of images.
const IMAGES: [&str; 5] = ["jpg", "jpeg", "png", "webp", "jpe"];

/// What a member of a sample is, by its name behind the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Image(usize),
    Uid(usize),
    Label(usize),
    Caption,
    PairId,
    HasLabel,
    Json,
    Other,
}

impl Part {
    /// By the name behind the key.
    pub(super) fn of(extension: &str) -> Self {
        let extension = extension.to_ascii_lowercase();
        let (name, ending) = extension.split_once('.').unwrap_or((&extension, ""));
        let is_image = ending.is_empty() || IMAGES.contains(&ending);
        let is_text = ["", "txt", "text", "cls"].contains(&ending);
        match name {
            "jpg_0" | "image_0" | "0" if is_image => Self::Image(0),
            "jpg_1" | "image_1" | "1" if is_image => Self::Image(1),
            "image_0_uid" if is_text => Self::Uid(0),
            "image_1_uid" if is_text => Self::Uid(1),
            "label_0" if is_text => Self::Label(0),
            "label_1" if is_text => Self::Label(1),
            "has_label" if is_text => Self::HasLabel,
            "ranking_id" | "pair_id" if is_text => Self::PairId,
            "original_prompt" | "caption" | "prompt" | "txt" if is_text => Self::Caption,
            "json" if ending.is_empty() => Self::Json,
            _ => Self::Other,
        }
    }
}

/// The key of a member, and the rest of its name.
pub(super) fn key(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name.get(base..)?.find('.')?;
    (dot > base).then(|| (&name[..dot], &name[dot + 1..]))
}

/// A label as text; none if it is empty or `None`.
pub(super) fn label_of_text(
    text: &str,
    no_vote: &mut Option<NoVote>,
) -> Result<Option<f64>, String> {
    let text = text.trim();
    if text.is_empty() || ["none", "null"].contains(&text.to_ascii_lowercase().as_str()) {
        return Ok(None);
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_nan() => {
            *no_vote = Some(NoVote::NotANumber);
            Ok(None)
        }
        Ok(number) if is_human_label(number) => Ok(Some(number)),
        _ => Err(format!("the label is {text:?}, expected {LABELS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_first_dot_of_the_name() {
        assert_eq!(key("a.b/000.jpg_0.jpg"), Some(("a.b/000", "jpg_0.jpg")));
        assert_eq!(key("./000.json"), Some(("000", "json")));
        assert_eq!((key("README"), key("a/.hidden")), (None, None));
    }

    #[test]
    fn members_are_known_by_their_names() {
        for (name, expected) in [
            ("jpg_0.jpg", Part::Image(0)),
            ("1.PNG", Part::Image(1)),
            ("jpg_1", Part::Image(1)),
            ("label_1.txt", Part::Label(1)),
            ("original_prompt.txt", Part::Caption),
            ("json", Part::Json),
            ("0.txt", Part::Other),
            ("jpg", Part::Other),
        ] {
            assert_eq!(Part::of(name), expected, "{name}");
        }
    }
}
