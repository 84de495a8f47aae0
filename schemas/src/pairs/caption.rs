//! Which captions can be used as prompts.

use crate::labels::Status;

/// The longest caption that counts as a prompt, in bytes. A longer one keeps its row, which gets
/// the status `caption_too_long`.
pub const MAX_CAPTION_BYTES: usize = 64 * 1024;

/// Whether a caption may be empty: a reward model has nothing to compare an image with then, but
/// training knows the empty prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyCaption {
    /// It is a prompt like any other.
    Allowed,
    /// It gets the status `empty_caption`, as does one of white space only.
    Refused,
}

/// Why a caption cannot be used as a prompt, if it cannot.
#[must_use]
pub fn caption_problem(caption: Option<&str>, empty: EmptyCaption) -> Option<(Status, String)> {
    match caption {
        None => Some((Status::MissingCaption, "caption is null".to_owned())),
        Some(caption) if empty == EmptyCaption::Refused && caption.trim().is_empty() => {
            Some((Status::EmptyCaption, "caption is empty".to_owned()))
        }
        Some(caption) if caption.len() > MAX_CAPTION_BYTES => Some((
            Status::CaptionTooLong,
            format!(
                "caption has {} bytes; at most {MAX_CAPTION_BYTES} are taken for a prompt",
                caption.len()
            ),
        )),
        Some(_) => None,
    }
}
